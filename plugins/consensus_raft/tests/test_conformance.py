"""Real replicas on loopback, through the suite that every consensus backend must pass."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from orch_consensus_raft.replica import RaftReplica
from orch_core.contracts.consensus import Consensus, ReplicaSpec
from orch_core.contracts.ids import CoordinatorId
from orch_core.testing.consensus import ConsensusConformance, Replicas


class RaftReplicas(Replicas):
    """Ports are reserved by bound sockets that never listen, as the agent does it."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__()
        self.ids = tuple(CoordinatorId(f"c{number}") for number in range(count))
        self._folder = folder
        self._reserved = {me: reserve() for me in self.ids}
        self._peers = {me: f"127.0.0.1:{one.getsockname()[1]}" for me, one in self._reserved.items()}
        self._made: dict[CoordinatorId, RaftReplica] = {}

    def make(self, replica: CoordinatorId) -> Consensus:
        spec = ReplicaSpec(replica, self._peers, self._folder / replica, token="the job's secret")
        self._made[replica] = RaftReplica(spec)
        return self._made[replica]

    async def kill(self, replica: CoordinatorId) -> None:
        self._made[replica].abort()
        await self._made[replica].close()

    async def close(self) -> None:
        await super().close()
        for one in self._reserved.values():
            one.close()


def reserve() -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", 0))
    return one


class TestRaft(ConsensusConformance):
    @pytest.fixture
    def make_replicas(self, tmp_path: Path) -> Callable[[int], Replicas]:
        return lambda count: RaftReplicas(tmp_path, count)
