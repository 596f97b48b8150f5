"""The stream that finds the leader: a worker's or an agent's only tie to the coordinators.

Whole statuses go up, the newest wins; documents and progress come down, the newest wins. Both sides have one slot, so
neither a slow leader nor a slow reader can make memory grow. An unreachable coordinator is no news: the stream dials
for ever and its user hears nothing.

Who leads is found by asking. A follower answers with the leader's address; a reset connection means that this one is
gone, so the others are asked at once. A replica that does not answer (stopped, or starved of CPU) holds nobody up:
after a moment the next one is asked beside it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from tenacity import AsyncRetrying, retry_if_exception_type, stop_never, wait_exponential, wait_random

from orch_core.contracts.errors import MalformedMessage, OrchError
from orch_core.rpc import wire
from orch_core.rpc.v1 import control_pb2_grpc
from orch_core.rpc.wire import Redirect, Status, Update

FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 0.5
STAGGER_S = 0.1  # a replica that has not answered for so long is no reason not to ask the next
ANSWER_S = 3.0  # ... and after so long it is given up
SILENCE_S = 1.5  # a leader says something every 500 ms at least
STEADY_S = 0.1  # a stream that ends earlier than this counts as a failed attempt

logger = logging.getLogger(__name__)


class NoLeader(OrchError):
    """Nobody leads, or nobody can be reached. Raised inside this module only."""


def redial() -> AsyncRetrying:
    """The policy: for ever, soon at first, never rarely."""
    return AsyncRetrying(
        retry=retry_if_exception_type(NoLeader),
        wait=wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S) + wait_random(0, FIRST_WAIT_S),
        stop=stop_never,
        reraise=True,
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """An open stream to the leader."""

    address: str
    call: Any  # grpc.aio.StreamStreamCall of untyped stubs
    first: Update
    close: AsyncExitStack


class LeaderStream:
    """``async with LeaderStream(addresses, token, who) as stream:`` runs one task; leaving ends it.

    `addresses`: the coordinators', host:port. `who`: this process's id, as in the log of the leader; a worker's id
    gets the short form of the document that workers need. All methods belong to the loop that entered.
    """

    def __init__(self, addresses: Sequence[str], token: str, who: str) -> None:
        self.leader: str | None = None  # the address that is streaming now
        self._addresses = tuple(addresses)
        self._metadata = wire.metadata(token, who)
        self._who = who
        self._status: Status | None = None
        self._status_changed = asyncio.Event()
        self._news: Update | None = None
        self._news_came = asyncio.Event()
        self._revision = -1  # of the newest document that came
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="leader-stream")
        self._task.add_done_callback(lambda _: self._news_came.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (failure := task.exception()) is not None and error is None:
            raise failure

    def send(self, status: Status) -> None:
        """Replace the status that is on its way or waits for a leader. Never blocks; sent again to each new leader."""
        self._status = status
        self._status_changed.set()

    async def updates(self) -> AsyncIterator[Update]:
        """News, the newest document and progress each, for one reader. A document comes once. Ends with the stream."""
        while True:
            await self._news_came.wait()
            self._news_came.clear()
            if (news := self._news) is not None:
                self._news = None
                yield news
            elif self._task is None or self._task.done():
                return

    # ------------------------------------------------------------------------------------------------ the task

    async def _run(self) -> None:
        order = deque(self._addresses)
        while True:  # each turn: a leader that was found, followed for a while and lost
            async for attempt in redial():
                with attempt:
                    line = await self._search(order)
                    try:
                        successor = await self._follow(line)
                    finally:
                        self.leader = None
                        await line.close.aclose()
                        _move(order, line.address, to_front=False)  # the others first
                    _move(order, successor, to_front=True)

    async def _search(self, order: Sequence[str]) -> _Line:
        """Ask everybody, one after the other or side by side if they are slow. Raises NoLeader."""
        todo, asked = deque(order), set[str]()
        tasks = set[asyncio.Task[_Line | Redirect]]()
        try:
            while todo or tasks:
                if todo:
                    address = todo.popleft()
                    if address in asked:
                        continue
                    asked.add(address)
                    tasks.add(asyncio.create_task(self._ask(address), name=f"ask {address}"))
                done, tasks = await asyncio.wait(
                    tasks, timeout=STAGGER_S if todo else None, return_when=asyncio.FIRST_COMPLETED
                )
                found = [task.result() for task in done]
                lines = [line for line in found if isinstance(line, _Line)]
                for spare in lines[1:]:
                    await spare.close.aclose()
                if lines:
                    return lines[0]
                todo.extendleft(answer.leader for answer in found if isinstance(answer, Redirect) and answer.leader)
        finally:
            await _cancel(tasks)
        raise NoLeader("no coordinator leads")

    async def _ask(self, address: str) -> _Line | Redirect:
        async with AsyncExitStack() as stack:
            channel = grpc.aio.insecure_channel(address, options=wire.CLIENT_OPTIONS)
            stack.push_async_callback(channel.close, None)
            stub = control_pb2_grpc.CoordinatorStub(channel)
            try:
                async with asyncio.timeout(ANSWER_S):
                    call = stub.Report(metadata=self._metadata)
                    answer = await _read(call)
            except (grpc.RpcError, MalformedMessage, TimeoutError) as error:
                logger.debug("event=coordinator-failed who=%s address=%s error=%r", self._who, address, _cause(error))
                return Redirect("")
            if isinstance(answer, Redirect):
                return answer
            return _Line(address, call, answer, stack.pop_all())

    async def _follow(self, line: _Line) -> str:
        """Until the leader is lost; the address of its successor, if it has named one.

        Raises NoLeader if that was so soon that the next try had better wait.
        """
        loop = asyncio.get_running_loop()
        began, successor = loop.time(), ""
        self.leader = line.address
        logger.info("event=leader-found who=%s leader=%s term=%d", self._who, line.address, line.first.term)
        if self._status is not None:
            self._status_changed.set()
        writer = asyncio.create_task(self._write(line.call), name="leader-stream-writer")
        try:
            self._take(line.first)
            async with asyncio.timeout(SILENCE_S) as silence:
                while isinstance(answer := await _read(line.call), Update):
                    self._take(answer)
                    silence.reschedule(loop.time() + SILENCE_S)
            successor = answer.leader
            cause = f"it leads no more; its successor: {successor or 'unknown'}"
        except (grpc.RpcError, MalformedMessage, TimeoutError) as error:
            cause = _cause(error)
        finally:
            await _cancel({writer})
        logger.info("event=leader-lost who=%s leader=%s cause=%r", self._who, line.address, cause)
        if loop.time() - began < STEADY_S:
            raise NoLeader(cause)
        return successor

    async def _write(self, call: Any) -> None:
        try:
            while True:
                await self._status_changed.wait()
                self._status_changed.clear()
                if self._status is not None:
                    await call.write(wire.pack_status(self._status))
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            logger.debug("event=status-unsent who=%s cause=%r", self._who, _cause(error))  # the reader hears of it, too

    def _take(self, update: Update) -> None:
        if update.document is not None:
            if update.revision < self._revision:
                logger.info(
                    "event=stale-document who=%s revision=%d newest=%d", self._who, update.revision, self._revision
                )
            if update.revision <= self._revision:
                update = replace(update, document=None)
            self._revision = max(self._revision, update.revision)
        waiting = self._news
        if waiting is not None:
            update = Update(
                update.document or waiting.document,
                update.progress or waiting.progress,
                update.term,
                update.revision if update.document else waiting.revision,
            )
        if update.document or update.progress:
            self._news = update
            self._news_came.set()


async def _read(call: Any) -> Update | Redirect:
    """The next message; a stream that ends without a word ends like a follower's."""
    message = await call.read()
    if message is grpc.aio.EOF:  # type: ignore[attr-defined]
        return Redirect("")
    return wire.unpack_update(message)


def _move(order: deque[str], address: str, *, to_front: bool) -> None:
    if address in order:
        order.remove(address)
        order.insert(0 if to_front else len(order), address)


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is None and isinstance(line := task.result(), _Line):
            await line.close.aclose()


def _cause(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
