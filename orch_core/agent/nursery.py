"""The agent's side of :mod:`orch_core.worker.nursery`: keeps it running, and has workers born by it.

Nothing depends on it. While it imports, workers wait for it (they would have to import the same, one beside the other);
when it is dead, does not answer, or says that it cannot, they are started like any program.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from orch_core.agent.logs import LogPump
from orch_core.agent.process import Child, Spawner
from orch_core.contracts.errors import ConfigurationError

NAME = "nursery"
WARMING_S = 30.0  # it imports for longer: workers no longer wait for it
STEADY_S = 5.0  # a life shorter than this counts as a failed start
FAILED_STARTS = 3  # in a row; then it is given up
FIRST_DELAY_S = 0.5
SLOW_S = 0.5  # a birth takes 50 ms on a busy machine
UNFIT = 3  # exit code: trying again does not help
MESSAGE_SIZE = 4096

Program = Callable[[int, int], Sequence[str]]  # (pid of this process, number of the control socket)
Born = Callable[[Child | None], None]

logger = logging.getLogger(__name__)


class Nursery:
    """One process, and the births that are under way. All calls in the loop's thread, which is the main one.

    `changed`: hears that workers need wait no longer.
    """

    def __init__(
        self,
        spawner: Spawner,
        pump: LogPump,
        log: Path,
        program: Program,
        environment: Mapping[str, str],
        changed: Callable[[], None],
    ) -> None:
        self._spawner, self._pump, self._log = spawner, pump, log
        self._program, self._environment = program, environment
        self._changed = changed
        self._child: Child | None = None
        self._control: socket.socket | None = None
        self._ready_at: float | None = None
        self._failed_starts = 0
        self._due_at = float("-inf")
        self._given_up = False
        self._told = False  # that workers start cold

    def is_warming(self, now: float) -> bool:
        """Whether a worker had better wait for it. `now`: monotonic seconds."""
        child = self._child
        if child is None or not child.alive or self._ready_at is not None or self._failed_starts > 0:
            return False
        return now - child.started_at < WARMING_S

    def reconcile(self, now: float) -> float | None:
        """Start it if it should run; when to look again."""
        if self._given_up:
            return None
        if self._child is None:
            if now < self._due_at:
                return self._due_at
            self._start()
        if self.is_warming(now):
            assert self._child is not None
            return self._child.started_at + WARMING_S
        return None

    def bear(
        self, worker: str, program: Sequence[str], environment: Mapping[str, str], output: int, born: Born
    ) -> "Birth | None":
        """Ask for a worker; `born` hears of it once, soon. None, here or there: it has to be started in another way."""
        if self._control is None or self._ready_at is None:
            self._tell(f"the nursery {'is given up' if self._given_up else 'is not ready'}")
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs, _order(program, self._spawner.marked(environment)) as order, _here() as folder:
                socket.send_fds(self._control, [b"order"], [order, output, folder, theirs.fileno()])
        except OSError as error:
            ours.close()
            self._tell(f"the nursery cannot be asked: {error.strerror}")
            return None
        return Birth(worker, ours, self._spawner, born, self._tell)

    def close(self) -> None:
        """Kill it. Idempotent."""
        self._given_up = True
        self._let_go()
        if self._child is not None:
            self._child.kill()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            output = self._pump.open(NAME, self._log, shown=False)
        except OSError:
            output = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with theirs:
                program = self._program(os.getpid(), theirs.fileno())
                child = self._spawner.spawn(NAME, program, self._environment, output, [theirs.fileno()])
        except ConfigurationError as error:
            ours.close()
            self._failed(str(error))
            return
        finally:
            os.close(output)
        self._child, self._control, self._ready_at = child, ours, None
        asyncio.get_running_loop().add_reader(ours, self._hear)
        child.watch(self._ended)
        logger.info("event=nursery-started pid=%d", child.pid)

    def _hear(self) -> None:
        assert self._control is not None
        try:
            message = self._control.recv(MESSAGE_SIZE).decode(errors="replace")
        except BlockingIOError:
            return
        except OSError:
            message = ""
        if not message:
            self._let_go()  # its end follows
        elif message == "ready":
            self._ready_at = time.monotonic()
            self._told = False
            assert self._child is not None
            logger.info("event=nursery-ready after_s=%.2f", self._ready_at - self._child.started_at)
            self._changed()
        else:
            logger.warning("event=nursery-says what=%r", message)

    def _ended(self, child: Child) -> None:
        self._spawner.forget(child)
        self._pump.ended(NAME)
        self._let_go()
        self._child = None
        steady = self._ready_at is not None and time.monotonic() - self._ready_at >= STEADY_S
        self._ready_at = None
        if self._given_up:
            return
        logger.warning("event=nursery-ended exit_code=%s", child.exit_code)
        if steady:
            self._failed_starts = 0
        elif child.exit_code == UNFIT:
            self._give_up("workers cannot be forked here")
        else:
            self._failed(f"exit code {child.exit_code}")
        self._changed()

    def _failed(self, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            self._give_up(why)
        self._due_at = time.monotonic() + FIRST_DELAY_S * 2.0**self._failed_starts

    def _give_up(self, why: str) -> None:
        self._given_up = True
        self._tell(f"the nursery is given up: {why}")

    def _let_go(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    def _tell(self, why: str) -> None:
        """Once until it is better: that workers take seconds to start."""
        if not self._told:
            self._told = True
            logger.warning("event=cold-start why=%r", why)


class Birth:
    """One worker under way. Ends with a child that runs, or without; then no process of it is left."""

    def __init__(
        self, worker: str, cradle: socket.socket, spawner: Spawner, born: Born, tell: Callable[[str], None]
    ) -> None:
        self._worker, self._cradle, self._spawner = worker, cradle, spawner
        self._born, self._tell = born, tell
        self._pid: int | None = None
        self._over = False
        loop = asyncio.get_running_loop()
        loop.add_reader(cradle, self._hear)
        self._timer = loop.call_later(SLOW_S, self._fail, "the nursery is slow")

    def cancel(self) -> None:
        """Nobody hears of it any more."""
        self._born = _nobody
        self._fail("")

    def _hear(self) -> None:
        try:
            word, _, rest = self._cradle.recv(MESSAGE_SIZE).decode(errors="replace").partition(" ")
        except BlockingIOError:
            return
        except OSError:
            word, rest = "", ""
        match word:
            case "pid":
                self._pid = int(rest)
            case "ready":
                self._pid = int(rest)
                self._go()
            case "no":
                self._fail(f"the nursery refuses: {rest}")
            case _:
                self._fail("the birth has failed")

    def _go(self) -> None:
        assert self._pid is not None
        try:
            child = self._spawner.adopt(self._worker, self._pid)
        except OSError:
            self._pid = None
            self._fail("a birth without a child")
            return
        try:
            self._cradle.send(b"go")
        except OSError:
            pass  # it has died in the meantime, which its pidfd tells like any death
        self._end()
        self._born(child)

    def _fail(self, why: str) -> None:
        if self._over:
            return
        self._end()
        if why:
            self._tell(why)
        if self._pid is not None:
            self._bury(self._pid)
        self._born(None)

    def _bury(self, pid: int) -> None:
        """It waits for a word that will not come, or is dead already."""
        try:
            child = self._spawner.adopt(self._worker, pid)
        except OSError:
            return
        child.signal(signal.SIGKILL)
        child.watch(self._spawner.forget)

    def _end(self) -> None:
        self._over = True
        self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._cradle)
        self._cradle.close()


def _nobody(_: Child | None) -> None:
    """Who has cancelled a birth."""


@contextlib.contextmanager
def _order(program: Sequence[str], environment: Mapping[str, str]) -> Iterator[int]:
    """A file without a name: an environment may be larger than any message."""
    fd = os.memfd_create("order", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(json.dumps({"program": list(program), "environment": dict(environment)}).encode())
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _here() -> Iterator[int]:
    """The working directory, even if it has no name any more."""
    fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
