"""The shell around the machine: one task owns the node, one bounded inbox feeds it, one timer wakes it.

Whatever happens becomes an event in the inbox. The owner takes all that is there, lets the node handle it, and carries
out the effects; then what has to be durable goes to the disk in one write and one sync, on a thread of its own. That
thread costs about 70 us per commit (0.30 against 0.22 ms, p50, 30 KB) and keeps heartbeats going through the seconds
that a sync can take while somebody writes a checkpoint to the same disk. While it is away, the next batch gathers.

A disk that refuses a write ends the replica: it steps down, says why, and answers nobody any more; what it did not
make durable it never promised.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import assert_never

from orch_consensus_raft.messages import Message, Saved
from orch_consensus_raft.node import (
    Accept,
    Apply,
    Drop,
    Effect,
    Event,
    Lead,
    Node,
    PeerConnected,
    PeerReset,
    Persist,
    Persisted,
    Proposal,
    Received,
    Refuse,
    Role,
    Send,
    StepDown,
    Tick,
    Timing,
)
from orch_consensus_raft.transport import Transport
from orch_consensus_raft.wal import LogInUse, WriteAheadLog
from orch_core.contracts.consensus import Committed, Consensus, ConsensusStatus, Leadership, ReplicaSpec
from orch_core.contracts.errors import ConfigurationError, LeadershipLost, OrchError
from orch_core.contracts.ids import CoordinatorId, Term
from orch_core.failpoints import reach

INBOX_SIZE = 256  # events; who has more waits
DOCUMENT_LIMIT = 16 * 1024 * 1024  # bytes
LOCK_PATIENCE_S = 5.0  # how long a new life waits for the last one's log to be let go
LOCK_RETRY_S = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ask:
    """A proposal and who waits for it."""

    proposal: Proposal
    committed: "asyncio.Future[None]"


class _Bell:
    """Wakes everybody who waits for news, once per ring."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        rung, self._event = self._event, asyncio.Event()
        rung.set()

    async def wait(self) -> None:
        await self._event.wait()


class RaftLeadership(Leadership):
    """Handed out by :meth:`RaftReplica.lead`."""

    def __init__(self, replica: "RaftReplica", term: Term, document: bytes | None) -> None:
        self.term, self.document = term, document
        self._replica = replica
        self._one_at_a_time = asyncio.Lock()
        self._over = asyncio.Event()
        self._reason = ""

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def commit(self, document: bytes) -> None:
        if len(document) > DOCUMENT_LIMIT:
            raise ConfigurationError(f"a document of {len(document)} bytes is larger than {DOCUMENT_LIMIT}")
        async with self._one_at_a_time:
            if self.is_over:
                raise LeadershipLost(f"term {self.term} is over: {self._reason}")
            await self._replica.propose(Proposal(self.term, bytes(document)))

    async def lost(self) -> None:
        await self._over.wait()

    def end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._over.set()


class RaftReplica(Consensus):
    """One replica of the document."""

    def __init__(self, spec: ReplicaSpec, *, draw: Callable[[], float] = random.random) -> None:
        if spec.id not in spec.peers:
            raise ConfigurationError(f"replica {spec.id} is not among the replicas {', '.join(spec.peers)}")
        if spec.options:
            raise ConfigurationError(f"raft has no option {', '.join(spec.options)}")
        self._spec, self._draw = spec, draw
        self._wal = WriteAheadLog(spec.folder, spec.id)
        self._transport = Transport(spec, self._deliver, self._peer_connected, self._peer_reset)
        self._inbox: asyncio.Queue[Event | _Ask] = asyncio.Queue(INBOX_SIZE)
        self._links: dict[PeerConnected | PeerReset, None] = {}  # news in order, at most two per peer: always room
        self._bell = _Bell()
        self._disk: ThreadPoolExecutor | None = None
        self._node: Node | None = None
        self._owner: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unsaved: list[Persist] = []
        self._writing: asyncio.Future[None] | None = None
        self._written: tuple[Persist, ...] = ()
        self._waiting: dict[int, tuple[asyncio.Future[None], float]] = {}  # by index: who waits, since when
        self._newest: Committed | None = None
        self._leadership: RaftLeadership | None = None
        self._last_commit_s: float | None = None
        self._failure: OrchError | None = None
        self._closed = False

    # ---- the contract ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"raft-disk-{self._spec.id}")
        try:
            saved = await self._open_log()
            self._node = Node(self._spec.id, self._spec.peers, saved, loop.time(), random=self._draw, timing=Timing())
            self._newest = self._node.log.base.document
            await self._transport.start()
        except BaseException:
            await self.close()
            raise
        self._owner = asyncio.create_task(self._own(self._node), name=f"raft {self._spec.id}")

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        self._let_go("the replica is closed")
        await self._transport.close()
        if self._disk is not None:
            self._disk.shutdown(wait=True)
            self._disk = None
        self._wal.close()

    async def lead(self) -> Leadership:
        while True:
            self._check_alive()
            if self._leadership is not None and not self._leadership.is_over:
                return self._leadership
            await self._bell.wait()

    async def watch(self) -> AsyncIterator[Committed]:
        seen = 0
        while not self._closed:
            newest = self._newest
            if newest is not None and newest.index > seen:
                seen = newest.index
                yield newest
                continue
            if self._failure is not None:
                raise self._failure
            await self._bell.wait()

    def status(self) -> ConsensusStatus:
        node = self._node
        if node is None or self._closed or self._failure is not None:
            term = node.term if node is not None else Term(0)
            return ConsensusStatus(self._spec.id, "follower", term, None, quorum=False)
        role = Role.CANDIDATE if node.role is Role.PRECANDIDATE else node.role
        return ConsensusStatus(
            id=self._spec.id,
            role=role.value,
            term=node.term,
            leader=node.leader,
            quorum=node.in_touch(asyncio.get_running_loop().time()),
            commit_index=node.log.base.index,
            last_commit_s=self._last_commit_s,
        )

    # ---- for its leadership, and for tests ---------------------------------------------------------------------------

    async def propose(self, proposal: Proposal) -> None:
        """Return when it is committed. Raises LeadershipLost when it is not, or when nobody can know."""
        self._check_alive()
        ask = _Ask(proposal, asyncio.get_running_loop().create_future())
        await self._inbox.put(ask)
        if self._closed or self._failure is not None:
            self._let_go("the replica ended")
        await ask.committed

    def abort(self) -> None:
        """End like a killed process: no farewell, all connections reset. Call `close` afterwards."""
        self._transport.abort()
        if self._owner is not None:
            self._owner.cancel()

    # ---- what happens ------------------------------------------------------------------------------------------------

    async def _deliver(self, sender: CoordinatorId, message: Message) -> None:
        await self._inbox.put(Received(sender, message))

    def _peer_connected(self, peer: CoordinatorId) -> None:
        self._link_news(PeerConnected(peer))

    def _peer_reset(self, peer: CoordinatorId) -> None:
        self._link_news(PeerReset(peer))

    def _link_news(self, news: PeerConnected | PeerReset) -> None:
        self._links.pop(news, None)
        self._links[news] = None
        self._ring()

    def _ring(self) -> None:
        """Wake the owner. If the inbox is full it is awake."""
        if not self._inbox.full():
            self._inbox.put_nowait(Tick())

    # ---- the owner ---------------------------------------------------------------------------------------------------

    async def _own(self, node: Node) -> None:
        try:
            self._turn(node, Tick())
            while self._failure is None:
                self._turn(node, await self._inbox.get())
        except OSError as error:
            self._fail(
                ConfigurationError(
                    f"replica {self._spec.id} cannot write its log {self._wal.path}: {error.strerror or error};"
                    " make room or mend the disk, then start it again"
                )
            )
        except Exception as error:  # the root of a task: nobody else would hear of it
            logger.exception("the replica broke replica=%s", self._spec.id)
            self._fail(OrchError(f"replica {self._spec.id} stopped: {error!r}; see its log"))

    def _turn(self, node: Node, event: Event | _Ask) -> None:
        self._handle(node, event)
        for _ in range(self._inbox.qsize()):
            self._handle(node, self._inbox.get_nowait())
        links, self._links = self._links, {}
        for news in links:
            self._handle(node, news)
        self._take_written(node)
        self._write(node)
        self._arm(node)

    def _handle(self, node: Node, event: Event | _Ask) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(event, _Ask):
            self._perform(node.handle(event.proposal, now), event)
        else:
            self._perform(node.handle(event, now))

    def _perform(self, effects: tuple[Effect, ...], ask: _Ask | None = None) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect)
                case Persist():
                    self._unsaved.append(effect)
                case Apply():
                    self._apply(effect)
                case Lead():
                    self._lead(effect)
                case StepDown():
                    logger.warning(
                        "leadership lost replica=%s term=%d reason=%s", self._spec.id, effect.term, effect.reason
                    )
                    self._end_leadership(effect.reason)
                case Accept():
                    assert ask is not None, "only a proposal is accepted"
                    self._waiting[effect.index] = (ask.committed, asyncio.get_running_loop().time())
                case Refuse():
                    assert ask is not None, "only a proposal is refused"
                    if not ask.committed.done():
                        ask.committed.set_exception(LeadershipLost(effect.reason))
                case Drop():
                    logger.warning(
                        "message dropped replica=%s peer=%s reason=%s", self._spec.id, effect.sender, effect.reason
                    )
                case _:
                    assert_never(effect)

    def _send(self, effect: Send) -> None:
        reach("send")
        self._transport.send(effect.peer, effect.message)

    def _apply(self, effect: Apply) -> None:
        self._newest = effect.snapshot.document
        for index in [index for index in self._waiting if index <= effect.snapshot.index]:
            committed, since = self._waiting.pop(index)
            self._last_commit_s = asyncio.get_running_loop().time() - since
            if not committed.done():
                committed.set_result(None)
        self._bell.ring()

    def _lead(self, effect: Lead) -> None:
        logger.info("leading replica=%s term=%d", self._spec.id, effect.term)
        document = effect.document.document if effect.document is not None else None
        self._leadership = RaftLeadership(self, effect.term, document)
        self._bell.ring()

    def _end_leadership(self, reason: str) -> None:
        for committed, _ in self._waiting.values():
            if not committed.done():
                committed.set_exception(LeadershipLost(f"nobody can know yet whether this is committed: {reason}"))
        self._waiting.clear()
        if self._leadership is not None:
            self._leadership.end(reason)
            self._leadership = None
        self._bell.ring()

    def _arm(self, node: Node) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(node.deadline, self._ring)

    # ---- the disk ----------------------------------------------------------------------------------------------------

    async def _open_log(self) -> Saved:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + LOCK_PATIENCE_S
        while True:
            try:
                return await loop.run_in_executor(self._disk, self._wal.open)
            except LogInUse:
                if loop.time() >= give_up_at:
                    raise
            await asyncio.sleep(LOCK_RETRY_S)

    def _write(self, node: Node) -> None:
        """Give the disk what has gathered, unless it is at work."""
        while self._unsaved and self._writing is None:
            self._written, self._unsaved = tuple(self._unsaved), []
            writes = [persist for persist in self._written if persist.writes]
            if writes:
                loop = asyncio.get_running_loop()
                self._writing = loop.run_in_executor(self._disk, self._save, writes, node.memory())
                self._writing.add_done_callback(lambda _: self._ring())
            else:
                self._take_written(node)

    def _save(self, writes: list[Persist], memory: Saved) -> None:
        reach("persist")
        self._wal.write(writes, memory)
        reach("persisted")

    def _take_written(self, node: Node) -> None:
        """Do what waited for the disk. Raises the OSError of a disk that refused."""
        if self._writing is not None:
            if not self._writing.done():
                return
            self._writing.result()
            self._writing = None
        batch, self._written = self._written, ()
        for persist in batch:
            for send in persist.then:
                self._send(send)
        if batch:
            self._handle(node, Persisted(batch[-1].sequence))

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise LeadershipLost("the replica is closed")

    def _fail(self, error: OrchError) -> None:
        logger.error("replica failed replica=%s error=%s", self._spec.id, error)
        self._failure = error
        self._let_go(str(error))
        self._transport.abort()

    def _let_go(self, reason: str) -> None:
        """Tell everybody who waits."""
        while not self._inbox.empty():
            if isinstance(ask := self._inbox.get_nowait(), _Ask) and not ask.committed.done():
                ask.committed.set_exception(LeadershipLost(reason))
        self._end_leadership(reason)
