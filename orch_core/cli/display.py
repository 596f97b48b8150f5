"""What `orch run` shows: workers' lines as they come, a live line below them, and one screen at the end.

A thread of its own does all the writing, so that a terminal that is stopped (Ctrl-S, a slow link, a pager) never holds
up the supervision of the job. What waits for it is bounded: then the oldest output is left out, and said to be.
Workers' output goes to stdout, everything that orch says itself to stderr. Where stderr is no terminal there are plain
lines: at events, and every few seconds.
"""

import io
import os
import select
import shutil
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, auto
from pathlib import Path
from typing import TextIO

from orch_core.agent.audience import Snapshot
from orch_core.agent.logs import clean
from orch_core.agent.process import lower_priority
from orch_core.contracts.document import Failure, Recovery
from orch_core.contracts.ids import place_and_life
from orch_core.contracts.job import JobStatus
from orch_core.contracts.summary import Summary

OUTPUT_LIMIT = 64 * 1024 * 1024  # characters of workers' output that wait for the terminal
ENTRY_SIZE = 256  # what a piece of it costs besides its text
REFRESH_S = 0.25
PLAIN_S = 5.0
STILL_S = 3.0  # without a step: from then on the last speed says nothing any more
BLOCKED_S = 10.0  # at the end: a terminal that takes nothing for so long is given up
WRITE_SIZE = 64 * 1024
WIDEST = 110
SAMPLES_SHOWN = 20
MEANS_SHOWN = 3
LOG_TAIL, LAST_LINES = 8192, 10
QUIET_EVENTS = frozenset(
    {"formed", "ended", "exited", "failed", "finished"}
)  # the summary says it, or nobody wants to know


class Display:
    """An :class:`orch_core.agent.audience.Audience` that writes to the standard streams."""

    def __init__(self, folder: Path, out: TextIO | None = None, own: TextIO | None = None) -> None:
        self._folder = folder
        self._out = _Stream(sys.stdout if out is None else out)
        self._own = _Stream(sys.stderr if own is None else own)
        self._work = threading.Condition()
        self._output: deque[tuple[str, str]] = deque()
        self._waiting = 0  # characters in `_output`
        self._left_out: Counter[str] = Counter()  # worker -> lines
        self._sayings: deque[str] = deque(maxlen=10_000)
        self._snapshot: Snapshot | None = None
        self._story = Story()
        self._plain_at = time.monotonic() + PLAIN_S / 2
        self._plain_text = ""
        self._live = False  # whether the live line is on the screen
        self._closing = False
        self._last_words = ""
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    # ---------------------------------------------------------------------------------- called by the agent

    def output(self, worker: str, text: str) -> None:
        with self._work:
            self._output.append((worker, text))
            self._waiting += len(text) + ENTRY_SIZE
            while self._waiting > OUTPUT_LIMIT and len(self._output) > 1:
                oldest, lost = self._output.popleft()
                self._waiting -= len(lost) + ENTRY_SIZE
                self._left_out[oldest] += lost.count("\n")
            self._work.notify()

    def show(self, snapshot: Snapshot) -> None:
        with self._work:
            changed = self._snapshot is None or self._snapshot.document is not snapshot.document
            self._snapshot = snapshot
            if changed:
                self._work.notify()

    def say(self, sentence: str) -> None:
        with self._work:
            self._sayings.append(_one_line(sentence))
            self._work.notify()

    # ---------------------------------------------------------------------------------- called by `orch run`

    def start(self) -> None:
        self._thread.start()

    def close(self, last_words: str = "") -> None:
        """Write what waits, then `last_words`, and stop; but do not wait for ever for a terminal that takes nothing."""
        with self._work:
            self._closing = True
            self._last_words = last_words
            self._work.notify()
        written = -1
        while self._thread.is_alive() and written != (written := self._out.written + self._own.written):
            self._thread.join(BLOCKED_S)

    @property
    def width(self) -> int:
        return max(20, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))

    # ---------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        lower_priority()
        while True:
            with self._work:
                if not (self._output or self._sayings or self._closing):
                    self._work.wait(REFRESH_S)
                output, self._output = self._output, deque()
                self._waiting = 0
                left_out, self._left_out = self._left_out, Counter()
                sayings = [self._sayings.popleft() for _ in range(len(self._sayings))]
                snapshot, closing = self._snapshot, self._closing
            told = self._story.tell(snapshot) if snapshot is not None else []
            self._write(output, left_out, [*told, *sayings])
            if closing and not (self._output or self._sayings):
                self._erase()
                self._own.write(self._last_words)
                return
            if snapshot is not None:
                self._draw(snapshot)

    def _write(self, output: Iterable[tuple[str, str]], left_out: Mapping[str, int], sayings: Sequence[str]) -> None:
        lines = [f"orch: {text}\n" for text in sayings]
        lines += [
            f"orch: {n} lines of {worker} are left out here; all are in {self._log(worker)}\n"
            for worker, n in left_out.items()
        ]
        if not (lines or output):
            return
        self._erase()
        self._own.write("".join(lines))
        for worker, text in output:
            prefix = f"{short_id(worker)} | "
            self._out.write(prefix + text[:-1].replace("\n", f"\n{prefix}") + text[-1:])

    def _log(self, worker: str) -> Path:
        return self._folder / "logs" / f"{worker}.out"

    def _draw(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        text = self._story.line(snapshot, now, self.width - 1 if self._own.is_terminal else None)
        if self._own.is_terminal:
            self._own.write(f"\r\x1b[2K\x1b[2m{text}\x1b[0m")
            self._live = True
        elif now >= self._plain_at:
            self._plain_at = now + PLAIN_S
            if text != self._plain_text:
                self._plain_text = text
                self._own.write(f"orch: {text}\n")

    def _erase(self) -> None:
        if self._live:
            self._own.write("\r\x1b[2K")
            self._live = False


class Weight(IntEnum):
    """What goes first where the live line is too narrow: the highest."""

    STEP = auto()
    MEAN = auto()
    WAIT = auto()
    SPEED = auto()
    WORKERS = auto()
    VIEW = auto()
    LEADER = auto()


Part = tuple[Weight, str]


class Story:
    """What has been told of a job already, and how what is new is put."""

    def __init__(self) -> None:
        self._events = 0
        self._recoveries = 0
        self._doing: dict[str, tuple[str, float]] = {}  # worker -> what it does, since when
        self._step: tuple[int, float] | None = None  # the newest one, and since when

    def tell(self, snapshot: Snapshot) -> list[str]:
        """Sentences about what has happened since the last time."""
        document = snapshot.document
        if document is None:
            return []
        new = document.events_total - self._events
        self._events = max(self._events, document.events_total)
        events = document.events[-new:] if new > 0 else ()
        told = [_one_line(e.text) for e in events if e.kind not in QUIET_EVENTS]
        told += [recovery_text(r) for r in document.recoveries[self._recoveries :]]
        self._recoveries = max(self._recoveries, len(document.recoveries))
        return told

    def line(self, snapshot: Snapshot, now: float, width: int | None = None) -> str:
        """One line, without control characters, in ASCII as far as it is ours. `width`: characters; None: any."""
        parts = _numbers(snapshot, self._still_s(snapshot, now))
        parts += [(Weight.WAIT, wait) for wait in self._waits(snapshot, now)]
        if snapshot.stopping or (snapshot.document is not None and snapshot.document.stop):
            parts.insert(0, (Weight.STEP, "ending"))
        return _fitting(parts or [(Weight.STEP, "starting")], width)

    def _still_s(self, snapshot: Snapshot, now: float) -> float:
        """For how long no step has been done."""
        step = int(snapshot.progress.step) if snapshot.progress is not None else 0
        if self._step is None or self._step[0] != step:
            self._step = (step, now)
        return now - self._step[1]

    def _waits(self, snapshot: Snapshot, now: float) -> list[str]:
        doing = {p.worker: "starting" for p in snapshot.processes if p.alive}
        if snapshot.progress is not None:
            for worker in snapshot.progress.workers:
                if worker.id in doing:
                    idle = worker.state in ("starting", "ready")
                    doing[worker.id] = _one_line(worker.doing) or (worker.state if idle else "")
        known = self._doing
        self._doing = {w: known[w] if w in known and known[w][0] == what else (what, now) for w, what in doing.items()}
        stopped = [f"{short_id(p.worker)}: frozen" for p in snapshot.processes if p.alive and p.stopped]
        waits = [
            f"{short_id(worker)}: {what}, {now - since:.0f} s"
            for worker, (what, since) in self._doing.items()
            if what and now - since >= 1.0
        ]
        return [*stopped, *waits]


def _numbers(snapshot: Snapshot, still_s: float) -> list[Part]:
    document, progress = snapshot.document, snapshot.progress
    parts: list[Part] = []
    if progress is not None and (progress.step or progress.training):
        total = f"/{progress.training.steps}" if progress.training else ""
        parts.append((Weight.STEP, f"step {progress.step}{total}"))
        parts += [(Weight.MEAN, text) for text in means_text(progress.means)]
        if still_s >= STILL_S:
            parts.append((Weight.WAIT, f"no step for {still_s:.0f} s"))
        elif progress.samples_per_s:
            parts.append((Weight.SPEED, f"{progress.samples_per_s:,.0f} samples/s"))
    if document is not None and document.view is not None:
        parts.append((Weight.WORKERS, _count(len(document.view.members), "worker")))
        parts.append((Weight.VIEW, f"view {document.view.number}"))
    elif snapshot.importing:
        parts.append((Weight.WAIT, "workers wait for the import of torch"))
    if document is not None and document.status is JobStatus.WAITING:
        parts.append((Weight.WAIT, f"waiting for {_count(document.job.min_workers, 'worker')}"))
    if snapshot.leader:
        parts.append((Weight.LEADER, f"leader {snapshot.leader}"))
    elif document is not None:
        parts.append((Weight.WAIT, "no leader"))
    return parts


def _fitting(parts: Sequence[Part], width: int | None) -> str:
    """As many parts as there is room for, in their order."""
    kept = list(parts)
    while width is not None and len(kept) > 1 and len(_joined(kept)) > width:
        heaviest = max(weight for weight, _ in kept)
        last = max(i for i, (weight, _) in enumerate(kept) if weight == heaviest)
        del kept[last]
    return _joined(kept)[:width]


def _joined(parts: Iterable[Part]) -> str:
    return "  ".join(text for _, text in parts)


def means_text(means: Mapping[str, float | None]) -> list[str]:
    return [f"{clean(name)} {_number(value)}" for name, value in list(means.items())[:MEANS_SHOWN]]


def recovery_text(recovery: Recovery) -> str:
    detail = (
        f"detect {recovery.detect_ms:.0f}, agree {recovery.agree_ms:.0f}, reform {recovery.reform_ms:.0f}, "
        f"redo {recovery.redo_ms:.0f}"
    )
    return f"recovered in {recovery.total_ms:.0f} ms at step {recovery.step}, view {recovery.view} ({detail} ms)"


def summary_text(summary: Summary, folder: Path, width: int) -> str:
    """One screen, at the end."""
    how = {
        JobStatus.FINISHED: "finished",
        JobStatus.STOPPED: "was stopped",
        JobStatus.INTERRUPTED: "was interrupted",
        JobStatus.FAILED: "failed",
    }[summary.status]
    first = f", the first after {summary.first_step_s:.1f} s" if summary.first_step_s is not None else ""
    rows = [("job", f"{summary.job} {how} after {summary.wall_s:.1f} s")]
    rows.append(("steps", f"{summary.steps}{first}, {summary.steps_per_s:.1f} steps/s"))
    fill = f", {summary.fill} of them to fill the last step" if summary.fill else ""
    rows.append(("samples", f"{summary.samples} in {_count(summary.epochs, 'epoch')}{fill}"))
    if summary.final:
        rows.append(("last step", ", ".join(f"{clean(k)} {_number(v)}" for k, v in summary.final.items())))
    rows.append(("views", _views(summary)))
    rows.append(("recoveries", _recoveries(summary)))
    if summary.lost_steps:
        rows.append(("LOST STEPS", f"{summary.lost_steps} were computed a second time: nobody with the state was left"))
    if summary.weights_sha256:
        exact = "" if summary.bit_exact else " (not bit-exact: a lossy strategy lost state)"
        rows.append(("weights", f"sha256 {summary.weights_sha256}{exact}"))
    rows.append(("folder", str(folder)))
    return render(rows, width)


def _views(summary: Summary) -> str:
    last = f", the last with {_count(len(summary.views[-1].members), 'worker')}" if summary.views else ""
    restarts = f", {_count(summary.restarts, 'restart')}" if summary.restarts else ""
    leaders = f", {_count(summary.leader_changes, 'change')} of the leader" if summary.leader_changes else ""
    return f"{summary.views[-1].number if summary.views else 0}{last}{restarts}{leaders}"


def _recoveries(summary: Summary) -> str:
    times = [r.total_ms for r in summary.recoveries]
    if not times:
        return "none"
    return f"{len(times)}, in {statistics.median(times):.0f} ms (median), at most {max(times):.0f} ms"


def failure_text(failure: Failure, log: Path) -> str:
    """The first failure: what a person must see last, because what scrolled by before are its consequences."""
    lines = []
    traceback = _clean_lines(failure.traceback).strip("\n")
    if traceback and failure.kind != "configuration":
        lines += ["", traceback, ""]
    elif failure.kind == "exit" and (said := _last_lines(log)):
        lines += ["", *said, ""]
    facts = [str(failure.worker)]
    if failure.step is not None:
        facts.append(f"step {failure.step}")
    if failure.shard is not None:
        facts.append(f"shard {failure.shard}")
    if failure.samples:
        shown = ", ".join(map(str, failure.samples[:SAMPLES_SHOWN]))
        more = len(failure.samples) - SAMPLES_SHOWN
        facts.append(f"samples {shown}" + (f" and {more} more" if more > 0 else ""))
    message = _one_line(failure.message)
    where = facts if len(facts) > 1 or failure.worker not in message else []
    lines.append(f"orch: {', '.join(where)}: {message}" if where else f"orch: {message}")
    if log.exists():
        lines.append(f"orch: the output of {failure.worker} is in {log}")
    return "\n".join(lines) + "\n"


def _last_lines(log: Path) -> list[str]:
    """What a worker said last: all that is known of one that ended without an exception."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [clean(line) for line in lines if line.strip()][-LAST_LINES:]


def render(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Two columns, without lines around them, so that every locale can show it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(clean(value)))
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def short_id(worker: str) -> str:
    """``w2`` for a first life, ``w2.3`` for a later one."""
    try:
        place, life = place_and_life(worker)  # type: ignore[arg-type]
    except ValueError:
        return worker
    return str(place) if life == 1 else worker


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _clean_lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.splitlines())


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


class _Stream:
    """Bytes to a descriptor, whatever is at its other end: a full pipe, a closed one, one that does not block."""

    def __init__(self, stream: TextIO | None) -> None:
        self.written = 0
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._fd = -1
        try:
            if stream is not None:
                stream.flush()
                self._fd = stream.fileno()
        except (OSError, ValueError):
            pass
        self._dead = self._fd < 0  # closed, or a notebook's
        self.is_terminal = not self._dead and os.isatty(self._fd) and os.environ.get("TERM", "dumb") != "dumb"

    def write(self, text: str) -> None:
        if self._dead or not text:
            return
        data = memoryview(text.encode(self._encoding, "backslashreplace"))
        while data:
            try:
                done = os.write(self._fd, data[:WRITE_SIZE])
            except BlockingIOError:
                select.select([], [self._fd], [], 1.0)
                continue
            except OSError:
                self._dead = True  # nobody reads any more; training goes on
                return
            self.written += done
            data = data[done:]
