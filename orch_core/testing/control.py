"""Coordinators in the test's own loop: real gRPC on loopback, real `Leader`, consensus by decree.

::

    async with ControlPlane() as plane:
        await plane.elect("c0")
        async with LeaderStream(plane.addresses, plane.token, "w0.1") as stream: ...
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from orch_core.contracts.ids import CoordinatorId, JobName, WorkerId
from orch_core.contracts.job import CoordinatorAddress, JobFile, JobSpec
from orch_core.contracts.status import Phase, WorkerStatus
from orch_core.coordinator.elections import Elections
from orch_core.coordinator.lead import Decide, Leader
from orch_core.coordinator.main import start_server
from orch_core.coordinator.publish import Board
from orch_core.coordinator.service import Service
from orch_core.protocol import cluster
from orch_core.testing.consensus_fake import FakeCluster

HANG_S = 30.0
TOKEN = "a secret of 32 bytes, or nearly so"


@dataclass(frozen=True, slots=True)
class Coordinator:
    """What a test may look into."""

    board: Board
    leader: Leader
    service: Service
    stack: contextlib.AsyncExitStack


class ControlPlane:
    """Some coordinators of one job. Nobody leads until :meth:`elect`."""

    def __init__(
        self, replicas: int = 3, *, workers: int = 1, min_workers: int = 1, decide: Decide = cluster.decide
    ) -> None:
        self.token = TOKEN
        ids = [CoordinatorId(f"c{i}") for i in range(replicas)]
        self._reserved = [_reserve() for _ in ids]
        rows = tuple(CoordinatorAddress(i, _address(s)) for i, s in zip(ids, self._reserved, strict=True))
        spec = JobSpec(JobName("test"), workers=workers, min_workers=min_workers, max_workers=workers)
        self.job = JobFile(JobName("test"), 0, rows, TOKEN, spec, started_at=1000.0)
        self.consensus = FakeCluster(ids)
        self.coordinators: dict[str, Coordinator] = {}
        self._decide = decide
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}

    @property
    def addresses(self) -> Sequence[str]:
        return [row.address for row in self.job.coordinators]

    def address(self, coordinator: str) -> str:
        return next(row.address for row in self.job.coordinators if row.id == coordinator)

    async def __aenter__(self) -> Self:
        for row in self.job.coordinators:
            await self.start(row.id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.coordinators):
            await self.stop(name)
        for reserved in self._reserved:
            reserved.close()

    async def start(self, name: str) -> None:
        me, board = CoordinatorId(name), Board()
        consensus = self.consensus.replicas[me]
        leader = Leader(
            consensus,
            self.job.spec,
            board,
            Elections(consensus),
            started_at=self.job.started_at,
            decide=self._decide,
        )
        service = Service(self.job, consensus, board, leader)
        stack = contextlib.AsyncExitStack()
        await start_server(service, self.address(name), stack)
        self.coordinators[name] = Coordinator(board, leader, service, stack)
        self._tasks[name] = [asyncio.create_task(leader.run()), asyncio.create_task(service.follow())]

    async def stop(self, name: str) -> None:
        """End one coordinator. Who leads is still up to the test."""
        coordinator = self.coordinators.pop(name)
        tasks = self._tasks.pop(name)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await coordinator.stack.aclose()
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def elect(self, name: str | None) -> None:
        """Returns when the new leader's first commit is in, or, for None, when nobody leads."""
        await self.consensus.elect(None if name is None else CoordinatorId(name))
        term = self.consensus.term
        await until(
            lambda: all(
                (c.board.term == term) if n == name else c.board.term is None for n, c in self.coordinators.items()
            )
        )


async def until(condition: Callable[[], bool], timeout_s: float = HANG_S) -> None:
    """Let the loop run until `condition` holds; TimeoutError if it never does."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what tests look at has no event
            await asyncio.sleep(0.002)


def worker_status(worker: str, sequence: int = 1, phase: Phase = Phase.STARTING, doing: str = "") -> WorkerStatus:
    """A worker that has little to say."""
    return WorkerStatus(WorkerId(worker), sequence, 4711, "here", "127.0.0.1:1", phase, doing)


def _reserve() -> socket.socket:
    """A port of our own: bound, not listening, as an agent keeps it."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def _address(reserved: socket.socket) -> str:
    host, port = reserved.getsockname()
    return f"{host}:{port}"
