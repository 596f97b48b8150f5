"""What a job is: the values that are fixed when it starts and stored with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orch_core.contracts.ids import CoordinatorId, JobName

DEFAULT_SHARDS = 12  # divides well among 1, 2, 3, 4, 6 and 12 workers
DEFAULT_BUCKET_BYTES = 25 * 1024 * 1024
DEFAULT_CHECK_EVERY = 100


class JobStatus(StrEnum):
    """Where a job stands. The last four are final and stand in the summary, too."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def final(self) -> bool:
        return self in (JobStatus.FINISHED, JobStatus.STOPPED, JobStatus.FAILED, JobStatus.INTERRUPTED)


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the user asked for. Everything that the bits of the weights depend on is in here."""

    name: JobName
    seed: int = 0
    shards: int = DEFAULT_SHARDS
    workers: int = 1
    min_workers: int = 1
    max_workers: int = 1
    max_restarts: int = 3
    check_every: int = DEFAULT_CHECK_EVERY
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    threads: int = 1  # torch's intra-op threads: some kernels' bits depend on them
    deal: str = "fluid"  # who is slow carries fewer shards; or "equal". The weights are the same
    sync: str = "allreduce"
    sync_options: Mapping[str, str] = field(default_factory=dict)
    consensus: str = "raft"
    script: str = ""
    module: bool = False  # `-m MODULE`
    args: tuple[str, ...] = ()
    version: int = 1


@dataclass(frozen=True, slots=True)
class CoordinatorAddress:
    """Where one replica is reached. Both are host:port."""

    id: CoordinatorId
    address: str  # gRPC: workers, agents, the command line
    peer_address: str = ""  # the replicas' own traffic


@dataclass(frozen=True, slots=True)
class JobFile:
    """``job.json`` in the job's folder, mode 0600: how the processes of a job find each other."""

    job: JobName
    agent_pid: int
    coordinators: tuple[CoordinatorAddress, ...]
    token: str
    spec: JobSpec
    started_at: float  # Unix time, seconds
    insecure: bool = False  # the user knows that others can hear what is said off loopback
    version: int = 1
