"""The document: all replicated state of a job, one small versioned value with one writer, the leader.

The same JSON is stored by the consensus backend, streamed to agents and workers and shown by ``orch status --json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from orch_core.contracts.ids import PlaceId, Shard, Step, Term, ViewNumber, WorkerId, place_and_life
from orch_core.contracts.job import JobSpec, JobStatus

VIEWS_KEPT = 64
EVENTS_KEPT = 256
RECOVERIES_KEPT = 256
HAS_LEFT = "has left"  # `Place.why` of a life that went on purpose


class LifeState(StrEnum):
    """starting -> ready -> member -> (leaving ->) gone. Nothing comes back from gone."""

    STARTING = "starting"
    READY = "ready"
    MEMBER = "member"
    LEAVING = "leaving"
    GONE = "gone"


class Cause(StrEnum):
    """Why a view was installed."""

    START = "start"
    DEATH = "death"
    SILENCE = "silence"
    UNREACHABLE = "unreachable"
    JOIN = "join"
    LEAVE = "leave"
    BROKEN = "broken"  # links broke and nobody is to blame: the same members again
    RESTART = "restart"  # every holder of the state is dead

    @property
    def is_failure(self) -> bool:
        return self in (Cause.DEATH, Cause.SILENCE, Cause.UNREACHABLE, Cause.BROKEN, Cause.RESTART)


@dataclass(frozen=True, slots=True)
class Place:
    """A seat of the job and the newest life that fills it."""

    id: PlaceId
    worker: WorkerId
    state: LifeState
    host: str = ""
    pid: int | None = None
    address: str = ""  # where its peers dial it, host:port
    why: str = ""  # what ended this life


@dataclass(frozen=True, slots=True)
class ViewMember:
    worker: WorkerId
    address: str


@dataclass(frozen=True, slots=True)
class View:
    """A numbered list of members, oldest membership first. "Lowest member" means: first in this list."""

    number: ViewNumber
    members: tuple[ViewMember, ...]
    cause: Cause
    reason: str
    at_step: Step
    at_s: float  # seconds since the job started, on the leader's clock
    fresh: bool = False  # nobody is known to hold a state: start from State(0)
    origin: tuple[WorkerId, ...] = ()  # members of the last fresh view: they hold State(0) if they hold nothing newer
    joined: int = 0  # so many of the last members are new

    @property
    def workers(self) -> tuple[WorkerId, ...]:
        return tuple(member.worker for member in self.members)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ends with exit code 1 or 2. The first one is the one that is kept."""

    worker: WorkerId
    kind: str  # "script" | "configuration" | "strategy" | "exit" | "poison" | "drift"
    message: str  # one sentence
    traceback: str = ""
    step: Step | None = None
    shard: Shard | None = None
    samples: tuple[int, ...] = ()
    exit_code: int = 1  # of `orch run`
    at: float = 0.0  # time.time() when it was raised


@dataclass(frozen=True, slots=True)
class Training:
    """What the loops of the script are, known once a worker has called ``batches``."""

    epochs: int
    samples: int  # N, the data set's length
    batch_size: int  # B, the global one

    @property
    def steps(self) -> int:
        """ceil(E * N / B); the last step is filled from the order of epoch E."""
        return -(-self.epochs * self.samples // self.batch_size)


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of training, equal on all members."""

    steps: int
    digest: str  # of State(steps)
    weights_sha256: str
    final: Mapping[str, float | None]  # the last step's logged means; None where not finite
    training: Training
    bit_exact: bool = True
    stopped: bool = False  # by run.stop(), a `break` or `orch stop`, before the last step


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one failure cost, measured by the lowest member that saw it. Milliseconds."""

    view: ViewNumber
    step: Step
    cause: Cause
    detect_ms: float
    agree_ms: float
    reform_ms: float
    redo_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Event:
    """One line of events.jsonl."""

    at: float  # Unix time, seconds
    kind: str
    text: str
    worker: WorkerId | None = None
    view: ViewNumber | None = None
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class Death:
    """A life that a signal ended while it computed a shard: three in turn on one shard are poison."""

    worker: WorkerId
    step: Step
    shard: Shard


@dataclass(frozen=True, slots=True)
class Document:
    job: JobSpec
    started_at: float  # Unix time, seconds
    status: JobStatus = JobStatus.STARTING
    first_step_at: float | None = None  # Unix time, seconds: when step 0 was applied first
    wanted: int = 1  # workers
    drained: tuple[PlaceId, ...] = ()  # places that stay empty although a higher one is filled
    draining: tuple[WorkerId, ...] = ()  # lives that were told to leave, until they are gone
    places: tuple[Place, ...] = ()
    views: tuple[View, ...] = ()
    formed: ViewNumber | None = None
    formed_members: tuple[WorkerId, ...] = ()  # kept although the view itself may have left `views`
    dead: tuple[WorkerId, ...] = ()  # certainly dead: an agent's or an operator's word
    deaths: tuple[Death, ...] = ()
    stop: str = ""  # "" | "stopped" | "interrupted": members end at one step
    finished: Finished | None = None
    ended: tuple[WorkerId, ...] = ()  # exited 0 after the end: nobody is admitted any more
    end_at: int | None = None  # every holder died behind the end: train again, exactly this many steps
    failure: Failure | None = None
    lost_steps: int = 0
    reached: Step = Step(0)  # the open step, as far as it was known at `reached_at` or the last view change
    reached_at: float = 0.0  # Unix time, seconds
    restarts: int = 0
    leader_changes: int = 0
    term: Term = Term(0)  # of the last writer
    recoveries: tuple[Recovery, ...] = ()
    events: tuple[Event, ...] = ()
    events_total: int = 0  # how many there ever were: the agent writes each to events.jsonl once
    views_total: int = 0
    checkpoints: tuple[str, ...] = ()
    revision: int = 0  # grows by one with each commit
    version: int = 1

    @property
    def view(self) -> View | None:
        """The present view."""
        return self.views[-1] if self.views else None

    def told(
        self,
        at: float,
        kind: str,
        text: str,
        worker: WorkerId | None = None,
        view: ViewNumber | None = None,
        step: Step | None = None,
    ) -> "Document":
        """With one event more. `at`: Unix time, seconds."""
        events = (*self.events, Event(at, kind, text, worker, view, step))[-EVENTS_KEPT:]
        return replace(self, events=events, events_total=self.events_total + 1)

    @property
    def begins_anew(self) -> bool:
        """The present view starts from State(0), a restart, and is not formed yet."""
        view = self.view
        return view is not None and view.fresh and view.number > 1 and self.formed != view.number

    @property
    def filled(self) -> tuple[Place, ...]:
        """Places that have a life or will get one: not those that somebody has left for good."""
        seats = self.seats
        return tuple(place for place in self.places if place.state is not LifeState.GONE or place.id in seats)

    @property
    def seats(self) -> tuple[PlaceId, ...]:
        """The places that should be filled: the lowest `wanted` ones that are not drained."""
        candidates = (PlaceId(f"w{i}") for i in range(self.wanted + len(self.drained)))
        return tuple([place for place in candidates if place not in self.drained][: self.wanted])

    def sends_away(self, worker: WorkerId) -> bool:
        """Whether this life is told to leave: by name, or because its place is not wanted."""
        return worker in self.draining or place_and_life(worker)[0] not in self.seats
