"""Keeps the coordinators of a job running: each is started again from its disk whenever it ends.

At once the first time, later and later when it keeps ending soon. Training does not need them, so a coordinator that
cannot live is only worth a word when too few are left for a majority; what follows from that is the host's business.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_core.agent.folder import JobFolder
from orch_core.agent.logs import clean
from orch_core.agent.process import Child, Spawner
from orch_core.contracts.document import Failure
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import CoordinatorId, WorkerId
from orch_core.protocol.children import how_it_ended

STEADY_S = 5.0  # a life shorter than this counts as a failed start
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0
HOPELESS_STARTS = 6  # failed ones in a row
WRONG_USE = 2  # exit code: trying again does not help
LOG_TAIL = 4096  # bytes that are searched for the reason
LEAST_FREE = 64 * 1024  # bytes of disk; less is "full"

Program = Callable[[Path, str], Sequence[str]]


def coordinator_program(job_file: Path, which: str) -> Sequence[str]:
    return [sys.executable, "-P", "-m", "orch_core.coordinator.main", "--job-file", str(job_file), "--id", which]


logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Replica:
    id: CoordinatorId
    child: Child | None = None
    failed_starts: int = 0
    due_at: float = float("-inf")
    exit_code: int | None = None

    @property
    def is_hopeless(self) -> bool:
        if self.child is not None and self.child.alive and time.monotonic() - self.child.started_at >= STEADY_S:
            return False
        return self.failed_starts >= HOPELESS_STARTS or (self.exit_code == WRONG_USE and self.failed_starts > 0)


class Coordinators:
    """All of a job's, on this host."""

    def __init__(
        self,
        folder: JobFolder,
        ids: Sequence[CoordinatorId],
        spawner: Spawner,
        program: Program,
        environment: Mapping[str, str],
        changed: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._replicas = [_Replica(which) for which in ids]
        self._spawner = spawner
        self._program = program
        self._environment = environment
        self._changed = changed
        self._ending = False

    @property
    def alive(self) -> bool:
        return any(r.child is not None and r.child.alive for r in self._replicas)

    def reconcile(self, now: float) -> float | None:
        """Start what should run; when to look again. `now`: monotonic seconds."""
        if self._ending:
            return None
        looks = []
        for replica in self._replicas:
            if replica.child is not None and replica.child.alive:
                continue
            if now >= replica.due_at:
                self._start(replica)
            else:
                looks.append(replica.due_at)
        return min(looks, default=None)

    def failure(self) -> Failure | None:
        """Why there can never be a majority."""
        hopeless = [r for r in self._replicas if r.is_hopeless]
        if not hopeless or len(self._replicas) - len(hopeless) > len(self._replicas) // 2:
            return None
        which = hopeless[0]
        wrong_use = which.exit_code == WRONG_USE
        return Failure(
            worker=WorkerId(which.id),  # it stands where a worker's id would
            kind="configuration" if wrong_use else "exit",
            message=f"coordinator {which.id} {how_it_ended(which.exit_code)} again and again: {self._reason(which)}",
            exit_code=2 if wrong_use else 1,
        )

    def signal(self, number: int) -> None:
        """To all; nobody is started any more."""
        self._ending = True
        for replica in self._replicas:
            if replica.child is not None:
                replica.child.signal(number)

    def _start(self, replica: _Replica) -> None:
        output = self._open_log(replica)
        try:
            child = self._spawner.spawn(
                f"coordinator {replica.id}",
                self._program(self._folder.description_path, replica.id),
                self._environment,
                output,
            )
        except ConfigurationError:
            self._failed(replica, None)
            return
        finally:
            os.close(output)
        replica.child = child
        child.watch(lambda _: self._ended(replica, child))

    def _open_log(self, replica: _Replica) -> int:
        """Its output goes straight to the file: no pipe of ours can hold it up."""
        folder = self._folder.coordinator(replica.id)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            return os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def _ended(self, replica: _Replica, child: Child) -> None:
        self._spawner.forget(child)
        logger.info("event=coordinator-ended coordinator=%s exit_code=%s", replica.id, child.exit_code)
        if time.monotonic() - child.started_at >= STEADY_S:
            replica.failed_starts = 0
            replica.due_at = float("-inf")
            replica.exit_code = child.exit_code
        else:
            self._failed(replica, child.exit_code)
        self._changed()

    def _failed(self, replica: _Replica, exit_code: int | None) -> None:
        """The first restart is immediate: a coordinator that was just killed is no failed start yet."""
        replica.exit_code = exit_code
        replica.failed_starts += 1
        if replica.failed_starts > 1:
            delay = min(FIRST_DELAY_S * 2.0 ** (replica.failed_starts - 2), LONGEST_DELAY_S)
            replica.due_at = time.monotonic() + delay

    def _reason(self, replica: _Replica) -> str:
        path = self._folder.coordinator(replica.id) / "log"
        try:
            space = os.statvfs(self._folder.path)
            if space.f_bavail * space.f_frsize < LEAST_FREE:
                return f"the disk that holds {self._folder.path} is full"
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LOG_TAIL))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            lines = []
        said = clean(lines[-1]).removeprefix("orch coordinator: ") if lines else "it said nothing"
        return f"{said} (its log is {path})"
