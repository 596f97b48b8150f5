"""Who shows a job to people, as far as the agent knows it."""

from dataclasses import dataclass
from typing import Protocol

from orch_core.contracts.document import Document
from orch_core.contracts.ids import Term
from orch_core.contracts.job import JobSpec
from orch_core.contracts.status import Progress
from orch_core.protocol.children import Process


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is worth showing at one moment."""

    spec: JobSpec
    started_at: float  # Unix time, seconds
    document: Document | None
    progress: Progress | None
    term: Term
    leader: str | None  # a coordinator's id
    processes: tuple[Process, ...]
    stopping: bool
    importing: bool = False  # workers wait for the process that they are forked from


class Audience(Protocol):
    """Who shows a job. No method may block; `output` is called in another thread."""

    def output(self, worker: str, text: str) -> None: ...

    def show(self, snapshot: Snapshot) -> None: ...

    def say(self, sentence: str) -> None: ...
