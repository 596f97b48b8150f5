"""The gRPC handlers: check the token, decode, post; encode and send what the board shows. Nothing is decided here."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio

from orch_core import telemetry
from orch_core.contracts import codec
from orch_core.contracts.consensus import Committed, Consensus
from orch_core.contracts.document import Document
from orch_core.contracts.errors import ConfigurationError, LeadershipLost, MalformedMessage
from orch_core.contracts.ids import WorkerId, place_and_life
from orch_core.contracts.job import JobFile
from orch_core.contracts.status import AgentStatus, WorkerStatus
from orch_core.coordinator.lead import Leader
from orch_core.coordinator.publish import Board
from orch_core.coordinator.report import status_json
from orch_core.rpc import wire
from orch_core.rpc.v1 import control_pb2 as pb
from orch_core.rpc.v1 import control_pb2_grpc
from orch_core.rpc.wire import Status

ARGS_LIMIT = 64 * 1024  # bytes
ELECTION_S = 0.2  # who asks during an election gets its answer when that is over, or after so long
ELECTION_LOOK_S = 0.004

logger = logging.getLogger(__name__)

Context = Any  # grpc.aio.ServicerContext of untyped stubs


class Service(control_pb2_grpc.CoordinatorServicer):
    """One replica's face to workers, agents and the command line."""

    def __init__(self, job: JobFile, consensus: Consensus, board: Board, leader: Leader) -> None:
        self._job = job
        self._addresses = {row.id: row.address for row in job.coordinators}
        self._consensus = consensus
        self._board = board
        self._leader = leader
        self._newest: Committed | None = None

    async def follow(self) -> None:
        """Keep the newest committed document, for when this replica does not lead."""
        async for committed in self._consensus.watch():
            self._newest = committed

    async def Report(self, requests: AsyncIterator[pb.StatusUp], context: Context) -> None:  # noqa: N802
        who = await self._authenticate(context)
        if await self._leads():
            logger.info("event=stream-opened who=%s", who)
            reader = asyncio.create_task(self._read(requests, who), name=f"report {who}")
            try:
                async for update in self._board.read(short=_is_worker(who)):
                    await context.write(wire.pack_update(update))
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
                logger.info("event=stream-closed who=%s", who)
        await context.write(wire.pack_redirect(self._leader_address()))

    @property
    def document(self) -> Document | None:
        """The newest that this replica knows to be committed."""
        return self._board.document if self._board.term is not None else self._committed()

    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectReply:  # noqa: N802
        await self._authenticate(context)
        board = self._board
        leads = board.term is not None
        status = status_json(
            self._job,
            os.getpid(),
            self._consensus.status(),
            self.document,
            board.progress if leads else None,
        )
        return pb.InspectReply(version=wire.VERSION, status=codec.encode(status))

    async def Command(self, request: pb.CommandRequest, context: Context) -> pb.CommandReply:  # noqa: N802
        who = await self._authenticate(context)
        with telemetry.remote_context(context.invocation_metadata()):
            try:
                revision = await self._leader.command(request.name, _args(request))
            except LeadershipLost:
                return pb.CommandReply(version=wire.VERSION, redirect=True, leader=self._leader_address())
            except (ConfigurationError, MalformedMessage) as error:
                logger.warning("event=command-refused who=%s name=%r why=%r", who, request.name, str(error))
                return pb.CommandReply(version=wire.VERSION, error=str(error))
            return pb.CommandReply(version=wire.VERSION, revision=revision)

    async def _read(self, requests: AsyncIterator[pb.StatusUp], who: str) -> None:
        try:
            async for message in requests:
                try:
                    self._leader.post(_checked(wire.unpack_status(message)))
                except MalformedMessage as error:
                    logger.warning("event=status-malformed who=%s why=%r", who, str(error))
        except grpc.RpcError as error:
            logger.debug("event=stream-broken who=%s why=%r", who, str(error))

    async def _authenticate(self, context: Context) -> str:
        """Who calls; aborts the call if it does not know the job's secret."""
        given: Mapping[str, str | bytes] = dict(context.invocation_metadata() or ())
        who = str(given.get(wire.WHO_KEY, "?"))[:64]
        if not wire.knows(self._job.token, given.get(wire.TOKEN_KEY, "")):
            logger.warning("event=token-refused who=%r peer=%s", who, context.peer())
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not this job's")
        return who

    async def _leads(self) -> bool:
        loop = asyncio.get_running_loop()
        patience = loop.time() + ELECTION_S
        # Consensus has no event for "somebody leads", only for "I do".
        while self._board.term is None and not self._leader_address() and loop.time() < patience:  # noqa: ASYNC110
            await asyncio.sleep(ELECTION_LOOK_S)
        return self._board.term is not None

    def _leader_address(self) -> str:
        status = self._consensus.status()
        return "" if status.leader in (None, status.id) else self._addresses.get(status.leader, "")

    def _committed(self) -> Document | None:
        return codec.decode(Document, self._newest.document) if self._newest is not None else None


def _is_worker(who: str) -> bool:
    try:
        place_and_life(WorkerId(who))
    except ValueError:
        return False
    return True


def _checked(status: Status) -> Status:
    """Ids decide what happens to whom, so nothing that is none gets further than here."""
    match status:
        case WorkerStatus():
            workers = [status.worker]
        case AgentStatus():
            workers = [report.worker for report in status.processes]
    for worker in workers:
        if not _is_worker(worker):
            raise MalformedMessage(f"{worker!r} is no worker id")
    return status


def _args(request: pb.CommandRequest) -> dict[str, str]:
    if len(request.args) > ARGS_LIMIT:
        raise MalformedMessage(f"the arguments of a command are larger than {ARGS_LIMIT} bytes")
    try:
        args = json.loads(request.args or b"{}")
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"the arguments of a command are not JSON: {error}") from error
    if not isinstance(args, dict) or not all(isinstance(value, str) for value in args.values()):
        raise MalformedMessage("the arguments of a command should be an object of strings")
    return args
