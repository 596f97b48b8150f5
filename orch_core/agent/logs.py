"""Workers' output: every byte to the worker's log file, readable lines to whoever shows them.

One thread reads all pipes, so a worker never waits for a terminal: the file is the whole truth, and the audience gets
lines that it may drop. Output with carriage returns, without line ends, of megabytes a second, or that is no text at
all is normal.
"""

import errno
import fcntl
import logging
import os
import re
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orch_core.agent.process import lower_priority

READ_SIZE = 256 * 1024
PIPE_SIZE = 1024 * 1024
LINE_LIMIT = 4096  # bytes that are shown of one line; the file has all of it
IDLE_S = 1.0  # a line without an end is shown after so long a silence
REFRESH_S = 5.0  # ... and a progress bar this often
TICK_S = 0.25
DRAIN_S = 1.0  # after a worker's end its pipe is read for so long, even if somebody holds the other end

ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

Show = Callable[[str, str], None]  # (worker's id, text of whole lines)

logger = logging.getLogger(__name__)


def clean(text: str) -> str:
    """Text that cannot move a cursor, ring, or turn the screen red."""
    if "\x1b" in text:
        text = ESCAPES.sub("", text)
    return CONTROLS.sub("", text)


@dataclass(slots=True)
class Lines:
    """Cuts bytes into lines for people. Pure, apart from being told the time."""

    tail: bytes = b""  # of a line that has not ended
    skipped: int = 0  # bytes of that line beyond the limit
    fed_at: float = 0.0
    shown_at: float = 0.0  # when something of it was shown, or when it began

    def feed(self, data: bytes, now: float) -> str:
        """The lines that `data` completes, each with its end."""
        self.fed_at = now
        if not self.tail:
            self.shown_at = now
        head, newline, rest = data.rpartition(b"\n")
        text = ""
        if newline:
            first, *more = head.split(b"\n")
            self._extend(first)
            text = self._take(now) + _block(more)
        self._extend(rest)
        return text

    def overdue(self, now: float) -> str:
        """What should be shown although its line has not ended."""
        idle = now - self.fed_at >= IDLE_S
        if self.tail.strip() and (idle or now - self.shown_at >= REFRESH_S) and not self.skipped:
            return self._take(now)
        return ""

    def end(self) -> str:
        """The rest, when there will be no more."""
        return self._take(self.fed_at) if self.tail else ""

    def _extend(self, data: bytes) -> None:
        """Bytes of the present line. What a carriage return goes back over is gone, but one at the end is kept: the
        line's end may follow."""
        body, returned, new = data.rpartition(b"\r")
        if returned and new:
            self.tail, self.skipped = new[:LINE_LIMIT], max(0, len(new) - LINE_LIMIT)
            return
        if returned:
            self._extend(body)
            if not self.tail.endswith(b"\r"):
                self.tail += b"\r"
            return
        if data and self.tail.endswith(b"\r"):
            self.tail, self.skipped = b"", 0
        room = max(0, LINE_LIMIT - len(self.tail))
        self.skipped += max(0, len(data) - room)
        self.tail += data[:room]

    def _take(self, now: float) -> str:
        tail, skipped = self.tail, self.skipped
        self.tail, self.skipped, self.shown_at = b"", 0, now
        return _line(tail, skipped)


def _block(lines: list[bytes]) -> str:
    """Whole lines. Floods are mostly plain text, which is cleaned in one go."""
    joined = b"\n".join(lines)
    if not lines or b"\r" in joined or b"\x1b" in joined or max(map(len, lines)) > LINE_LIMIT:
        return "".join([_line(line) for line in lines])
    return clean(joined.decode("utf-8", "replace")) + "\n"


def _line(line: bytes, skipped: int = 0) -> str:
    line = line.rstrip(b"\r")
    if b"\r" in line:
        line = line.rpartition(b"\r")[2]
    skipped += max(0, len(line) - LINE_LIMIT)
    text = clean(line[:LINE_LIMIT].decode("utf-8", "replace"))
    return f"{text} [... {skipped} more bytes, see the log]\n" if skipped else f"{text}\n"


@dataclass(slots=True)
class _Source:
    worker: str
    pipe: int
    file: int
    shown: bool = True  # to people
    lines: Lines = field(default_factory=Lines)
    ended_at: float | None = None  # its worker has


class LogPump:
    """The thread. `show` is called in it and must not block; `warn` hears at most once that the disk is full."""

    def __init__(self, show: Show, warn: Callable[[str], None]) -> None:
        self._show = show
        self._warn = warn
        self._warned = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._coming: list[_Source] = []
        self._ended: set[str] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-pump", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def open(self, worker: str, path: Path, *, shown: bool = True) -> int:
        """A pipe's write end for a new worker; the caller closes it after the spawn. Raises OSError."""
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            read, write = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(file)
            raise
        os.set_blocking(read, False)
        try:
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass  # the user's limit on pipe memory: the default size does
        with self._lock:
            self._coming.append(_Source(worker, read, file, shown))
        self._poke()
        return write

    def ended(self, worker: str) -> None:
        """Its process has ended: what is in the pipe is read, and more is not waited for."""
        with self._lock:
            self._ended.add(worker)
        self._poke()

    def close(self, timeout_s: float = 5.0) -> None:
        """Read what is there, and stop. Idempotent."""
        with self._lock:
            self._closing = True
        self._poke()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if not self._thread.is_alive() and self._wake_write >= 0:
            os.close(self._wake_write)
            self._wake_write = -1

    def _poke(self) -> None:
        if self._wake_write >= 0:
            try:
                os.write(self._wake_write, b"x")
            except BlockingIOError:
                pass

    def _run(self) -> None:
        lower_priority()
        sources: dict[int, _Source] = {}
        while not self._closing or sources or self._coming:
            self._admit(sources)
            busy = self._turn(sources)
            now = time.monotonic()
            for source in list(sources.values()):
                self._tell(source, source.lines.overdue(now))
                drained = source.ended_at is not None and (source.pipe not in busy or now - source.ended_at > DRAIN_S)
                if drained or (self._closing and source.pipe not in busy):
                    self._finish(source, sources)
        self._selector.close()
        os.close(self._wake_read)

    def _turn(self, sources: dict[int, _Source]) -> set[int]:
        """Read each pipe once that has something."""
        busy = set()
        for key, _ in self._selector.select(TICK_S):
            if key.fd == self._wake_read:
                _empty(self._wake_read)
                continue
            source = sources[key.fd]
            try:
                data = os.read(source.pipe, READ_SIZE)
            except BlockingIOError:
                continue
            if data:
                busy.add(source.pipe)
                self._write(source, data)
                self._tell(source, source.lines.feed(data, time.monotonic()))
            else:
                self._finish(source, sources)
        return busy

    def _admit(self, sources: dict[int, _Source]) -> None:
        with self._lock:
            coming, self._coming = self._coming, []
            ended, self._ended = self._ended, set()
        for source in coming:
            sources[source.pipe] = source
            self._selector.register(source.pipe, selectors.EVENT_READ)
        for source in sources.values():
            if source.worker in ended and source.ended_at is None:
                source.ended_at = time.monotonic()

    def _finish(self, source: _Source, sources: dict[int, _Source]) -> None:
        if sources.pop(source.pipe, None) is None:
            return
        self._selector.unregister(source.pipe)
        self._tell(source, source.lines.end())
        os.close(source.pipe)
        os.close(source.file)

    def _tell(self, source: _Source, text: str) -> None:
        if text and source.shown:
            self._show(source.worker, text)

    def _write(self, source: _Source, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(source.file, view) :]
        except OSError as error:
            if not self._warned:
                self._warned = True
                why = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
                self._warn(f"the log of {source.worker} cannot be written ({why}); training goes on without it")


def _empty(pipe: int) -> None:
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        pass
