"""Processes of a job: spawn them so that they cannot outlive it, watch them, end them.

Everything here runs in the agent's main thread: ``PR_SET_PDEATHSIG`` fires when the *thread* that spawned ends. Each
child leads a session of its own, so that Ctrl-C in the terminal reaches the agent alone and one signal reaches the
whole of a child's group.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orch_core.agent import guardian, launch
from orch_core.contracts.errors import ConfigurationError

GUARDIAN_S = 5.0  # how long the end of the guardian is waited for

logger = logging.getLogger(__name__)


def lower_priority() -> None:
    """For a thread that does not supervise: behind the loop, but not behind everything else.

    Whoever holds the interpreter's lock holds up the loop, too, so an ordinary priority would be the loop's own.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO)))
    except OSError:
        pass  # not permitted: then the loop has an ordinary priority, too


class Child:
    """One running program. `done` is called once, in the loop, when it has ended."""

    def __init__(self, name: str, pid: int, wait: Callable[[], int]) -> None:
        """`wait` reaps it and returns its exit code, as :mod:`subprocess` has it."""
        self.name = name
        self.pid = pid
        self.started_at = time.monotonic()
        self.exit_code: int | None = None
        self._wait = wait
        self._pidfd = os.pidfd_open(pid)

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def watch(self, done: Callable[["Child"], None]) -> None:
        """Readiness of a pidfd is the fastest word about a death: the kernel's own, some milliseconds after it."""
        loop = asyncio.get_running_loop()

        def reap() -> None:
            loop.remove_reader(self._pidfd)
            self._end_group()
            self.exit_code = self._wait()
            os.close(self._pidfd)
            done(self)

        loop.add_reader(self._pidfd, reap)

    def signal(self, number: int) -> None:
        """To the process itself; what it has started is its own business as long as it lives."""
        if self.alive:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except OSError:
                pass

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self.alive:
            self._end_group()
            self.signal(signal.SIGKILL)

    @property
    def stopped(self) -> bool:
        """Whether it is frozen: a process that cannot run cannot say so itself."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])

    def _end_group(self) -> None:
        """While the leader is not reaped, its number cannot be given to anybody else."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except OSError:
            pass


class Spawner:
    """Starts children and keeps a guardian that ends them, and theirs, if this process is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guardian: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._pid = os.getpid()

    def start(self) -> None:
        """Before the first child."""
        environment = {k: v for k, v in os.environ.items() if k != guardian.MARKER}
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__, str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        for group in self._groups:
            self._tell(f"+{group}")

    def spawn(
        self,
        name: str,
        program: Sequence[str],
        environment: Mapping[str, str],
        output: int,
        inherited: Sequence[int] = (),
    ) -> Child:
        """Run `program` (an absolute path first) with `output` as its stdout and stderr. `inherited`: descriptors.

        Raises ConfigurationError when the system gives no process.
        """
        if self._guardian is None or self._guardian.poll() is not None:
            self.start()
        command = [sys.executable, "-I", "-S", launch.__file__, str(self._pid), str(self._nice), *program]
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.marked(environment),
                start_new_session=True,
                pass_fds=inherited,
            )
        except OSError as error:
            raise ConfigurationError(
                f"{name} cannot be started: {error.strerror or error}; look at the limits of processes and memory"
            ) from error
        return self._keep(Child(name, popen.pid, popen.wait))

    def marked(self, environment: Mapping[str, str]) -> dict[str, str]:
        """By this the guardian knows whose a process is."""
        return {**environment, guardian.MARKER: str(self._folder)}

    def adopt(self, name: str, pid: int) -> Child:
        """A child that this process has got without starting it. Raises OSError if it is none."""
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return self._keep(Child(name, pid, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))

    def forget(self, child: Child) -> None:
        """After its end: the number of its group may be given to somebody else."""
        self._groups.discard(child.pid)
        self._tell(f"-{child.pid}")

    def _keep(self, child: Child) -> Child:
        self._groups.add(child.pid)
        self._tell(f"+{child.pid}")
        return child

    def close(self) -> None:
        """Let the guardian look for the last time. Idempotent."""
        keeper, self._guardian = self._guardian, None
        if keeper is None or keeper.stdin is None:
            return
        try:
            keeper.stdin.close()
        except OSError:
            pass
        try:
            keeper.wait(GUARDIAN_S)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def _tell(self, line: str) -> None:
        if self._guardian is None or self._guardian.stdin is None:
            return
        try:
            self._guardian.stdin.write(f"{line}\n".encode())
            self._guardian.stdin.flush()
        except OSError:
            logger.warning("event=guardian-gone pid=%d", self._guardian.pid)  # the next spawn starts another one
