"""What the agent says: its status to the leader, the events to disk, the summary to the user."""

import json
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from orch_core.agent.folder import write_atomically
from orch_core.contracts import codec
from orch_core.contracts.document import Document, Failure, LifeState
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import AgentId, PlaceId, WorkerId, place_and_life
from orch_core.contracts.status import AgentStatus, Note, ProcessReport, ProcessState
from orch_core.contracts.summary import Summary
from orch_core.protocol.children import Process
from orch_core.protocol.outcome import summary_json

logger = logging.getLogger(__name__)


class Reporter:
    """Makes each status: whole, with everything that the leader may still need to hear."""

    def __init__(self, name: str = "") -> None:
        self._host = name or socket.gethostname()
        self._agent = AgentId(f"agent-{self._host}")
        self._sequence = 0
        self._last_words: dict[WorkerId, tuple[Note | None, Failure | None]] = {}

    def heard(self, worker: WorkerId, note: Note | None, failure: Failure | None) -> None:
        """What a worker has left behind."""
        self._last_words[worker] = (note, failure)

    def status(
        self, processes: Iterable[Process], document: Document | None, failure: Failure | None, stop: str
    ) -> AgentStatus:
        self._sequence += 1
        told = unburied(tuple(processes), document)
        self._last_words = {p.worker: self._last_words[p.worker] for p in told if p.worker in self._last_words}
        return AgentStatus(
            agent=self._agent,
            sequence=self._sequence,
            host=self._host,
            processes=tuple(self._report(p) for p in told),
            failure=failure,
            stop=stop,
        )

    def _report(self, process: Process) -> ProcessReport:
        note, failure = self._last_words.get(process.worker, (None, None))
        state = ProcessState.STOPPED if process.stopped else ProcessState.RUNNING
        return ProcessReport(
            worker=process.worker,
            pid=process.pid,
            state=state if process.alive else ProcessState.EXITED,
            exit_code=process.exit_code,
            note=note,
            failure=failure,
        )


def unburied(processes: tuple[Process, ...], document: Document | None) -> tuple[Process, ...]:
    """The living, the newest life of each place, and every dead one that the document does not show as gone.

    A death is repeated until it is written down, under a new leader, too. A place's newest life stays, so that the end
    of the whole job can be read off one report.
    """
    newest: dict[PlaceId, int] = {}
    for process in processes:
        place, life = place_and_life(process.worker)
        newest[place] = max(newest.get(place, 0), life)
    gone = _gone(document)

    def is_needed(process: Process) -> bool:
        place, life = place_and_life(process.worker)
        return process.alive or life == newest[place] or not gone(process.worker)

    return tuple(p for p in processes if is_needed(p))


def _gone(document: Document | None) -> Callable[[WorkerId], bool]:
    if document is None:
        return lambda _: False
    lives = {p.id: (place_and_life(p.worker)[1], p.state) for p in document.places}

    def is_gone(worker: WorkerId) -> bool:
        place, life = place_and_life(worker)
        known, state = lives.get(place, (0, LifeState.STARTING))
        return known > life or (known == life and state is LifeState.GONE)

    return is_gone


def read_failure(folder: Path, worker: WorkerId) -> Failure | None:
    """The record that a worker leaves when its script has failed."""
    path = folder / "failures" / f"{worker}.json"
    try:
        return codec.decode(Failure, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, MalformedMessage) as error:
        logger.warning("event=failure-record-unreadable worker=%s why=%r", worker, str(error))
        return None


class EventLog:
    """``events.jsonl``: each event of the document once. A full disk costs events, never training."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._written = 0
        self._warned = False

    def append(self, document: Document) -> None:
        """Blocking. Call it for each document, in order, from one thread at a time."""
        new = document.events_total - self._written
        if new <= 0:
            return
        self._written = document.events_total
        events = document.events[-new:]
        lines = [json.dumps(codec.to_json(event), ensure_ascii=False) for event in events]
        if new > len(events):
            lines.insert(0, json.dumps({"kind": "gap", "text": f"{new - len(events)} events were not seen here"}))
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"events cannot be written to {self._path} ({error.strerror}); training goes on without")


def write_summary(summary: Summary, path: Path) -> None:
    """Raises ConfigurationError."""
    try:
        write_atomically(path, summary_json(summary))
    except OSError as error:
        raise ConfigurationError(f"the summary cannot be written to {path}: {error.strerror}") from error


def first_failure(document: Document | None, found: Iterable[Failure]) -> Failure | None:
    """The document's, or the earliest that this agent has seen: what fails afterwards fails because of it."""
    if document is not None and document.failure is not None:
        return document.failure
    return min(found, key=lambda f: f.at or float("inf"), default=None)


def stamped(failure: Failure, wall: float) -> Failure:
    """A failure that this agent has found itself."""
    return replace(failure, at=wall) if not failure.at else failure
