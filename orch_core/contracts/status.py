"""What a process knows about itself and its neighbours. Sent whole; the newest one wins.

A worker sends :class:`WorkerStatus`, an agent :class:`AgentStatus`, up the same kind of stream on which the document
comes down. :class:`Progress` comes down beside the document: what is worth showing and not worth a commit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orch_core.contracts.document import Failure, Finished, Recovery, Training
from orch_core.contracts.ids import AgentId, Shard, Step, ViewNumber, WorkerId


class Phase(StrEnum):
    """How far a worker's script has come."""

    STARTING = "starting"  # before its first batches()
    FOLLOWING = "following"  # takes the state and results of a view beside it, and is not level with it yet
    READY = "ready"  # waits to be taken into a view
    TRAINING = "training"
    DONE = "done"  # left its last step; serves the state until the end is committed


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    worker: WorkerId
    sequence: int  # grows with each status of this life
    pid: int
    host: str
    address: str  # where its peers dial it, host:port
    phase: Phase
    doing: str = ""  # for people: "building the model"
    view: ViewNumber | None = None  # the newest view it has adopted
    opened: ViewNumber | None = None  # the newest view for which it says: I hold the state
    opened_step: Step | None = None  # the step with which `opened` began
    applied: Step | None = None  # None: holds no state
    entered: Step | None = None  # the step whose inner loop it is in
    computing: Shard | None = None
    shards: tuple[Shard, ...] = ()
    epoch: int = 0
    broken: ViewNumber | None = None  # the view that it has left because a link of it broke
    broken_peers: tuple[WorkerId, ...] = ()
    unreachable: tuple[WorkerId, ...] = ()  # members of `view` that it cannot greet
    leaving: bool = False
    left: Step | None = None  # the outer loop was left by `break` after this step
    done: Finished | None = None
    failure: Failure | None = None
    training: Training | None = None
    means: Mapping[str, float | None] = field(default_factory=dict)
    samples_per_s: float = 0.0
    steps_per_s: float = 0.0
    first_step_at: float | None = None  # Unix time at which it had applied its first step
    recovery: Recovery | None = None
    pass_ms: float = 0.0  # what one of its passes costs; 0: not known
    reset_shard_state: bool = False  # a lossy strategy's shard state was lost: not bit-exact any more
    version: int = 1


class ProcessState(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"  # SIGSTOP, a debugger, a frozen cgroup
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Note:
    """What a worker wrote down before a pass, where its agent can read it after a kill."""

    step: Step
    shard: Shard
    samples: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """An agent's word about one worker process."""

    worker: WorkerId
    pid: int
    state: ProcessState
    exit_code: int | None = None  # as in subprocess: negative means a signal
    note: Note | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class AgentStatus:
    agent: AgentId
    sequence: int
    host: str
    processes: tuple[ProcessReport, ...] = ()  # exited ones stay until the document says gone
    failure: Failure | None = None  # restarts used up: the job cannot go on
    stop: str = ""  # "" | "stopped" | "interrupted": what the agent was asked for
    version: int = 1


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    """A worker as `orch status` shows it."""

    id: WorkerId
    pid: int | None
    host: str
    state: str
    shards: tuple[Shard, ...]
    step: Step | None
    doing: str = ""
    pass_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What the leader knows from statuses. Never committed."""

    step: Step = Step(0)  # steps that have been applied somewhere
    epoch: int = 0
    means: Mapping[str, float | None] = field(default_factory=dict)
    samples_per_s: float = 0.0
    steps_per_s: float = 0.0
    first_step_at: float | None = None
    workers: tuple[WorkerProgress, ...] = ()
    training: Training | None = None
    version: int = 1
