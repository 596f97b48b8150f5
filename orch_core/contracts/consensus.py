"""The consensus contract: one small document, one fenced writer.

This is the shape that Raft, etcd, Consul and the Kubernetes API can all give. The document is bytes here: a backend
never looks inside.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket

from orch_core.contracts.ids import CoordinatorId, Term


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What one replica is told when it is made. `peers` holds every replica, itself included."""

    id: CoordinatorId
    peers: Mapping[CoordinatorId, str]  # host:port of the replicas' own traffic
    folder: Path  # private to this replica, survives its restarts
    token: str  # the job's secret: both ends of every stream between replicas must know it
    listener: socket | None = None  # bound, not listening; None: bind the address in `peers`
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    """A document that a majority holds."""

    document: bytes
    term: Term
    index: int


@dataclass(frozen=True, slots=True)
class ConsensusStatus:
    """What this replica believes. `quorum`: it is in touch with a majority, itself included, right now."""

    id: CoordinatorId
    role: str  # "leader" | "follower" | "candidate"
    term: Term
    leader: CoordinatorId | None
    quorum: bool
    commit_index: int = 0
    last_commit_s: float | None = None  # duration of the last commit, seconds


class Leadership(ABC):
    """The right to write. Ends by itself; never renewed."""

    term: Term
    document: bytes | None  # the newest committed one when leadership began; None: there has never been one

    @abstractmethod
    async def commit(self, document: bytes) -> None:
        """Return when `document` is durable on a majority. One commit is in flight at a time.

        Raises LeadershipLost when it is not, or when this replica cannot know.
        """

    @abstractmethod
    async def lost(self) -> None:
        """Return as soon as this leadership is over."""


class Consensus(ABC):
    """One replica of a consensus backend. All methods are called from one asyncio loop."""

    @abstractmethod
    async def start(self) -> None:
        """Open the log, listen and connect. Raises ConfigurationError for an unusable folder or port."""

    @abstractmethod
    async def close(self) -> None:
        """Stop. Idempotent."""

    @abstractmethod
    async def lead(self) -> Leadership:
        """Wait until this replica leads and has applied the first entry of its own term."""

    @abstractmethod
    def watch(self) -> AsyncIterator[Committed]:
        """Yield the newest committed document now, if there is one, and each newer one; older ones may be skipped."""

    @abstractmethod
    def status(self) -> ConsensusStatus:
        """What this replica believes at this moment."""


class ReplicaMembership(ABC):
    """Optional, for backends that are embedded: change who the replicas are."""

    @abstractmethod
    async def add_learner(self, replica: CoordinatorId, address: str) -> None: ...

    @abstractmethod
    async def promote(self, replica: CoordinatorId) -> None: ...

    @abstractmethod
    async def remove(self, replica: CoordinatorId) -> None: ...

    @abstractmethod
    async def transfer(self, replica: CoordinatorId) -> None: ...
