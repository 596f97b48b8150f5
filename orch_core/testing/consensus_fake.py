"""Consensus without a network: replicas that share one committed document, and a test that says who leads.

A commit can be held, so that a test can look at what is visible before it is in.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from orch_core.contracts.consensus import Committed, Consensus, ConsensusStatus, Leadership
from orch_core.contracts.errors import LeadershipLost
from orch_core.contracts.ids import CoordinatorId, Term


class FakeCluster:
    """The replicas of one job, in one event loop."""

    def __init__(self, ids: Sequence[CoordinatorId]) -> None:
        self.committed: Committed | None = None
        self.history: list[Committed] = []
        self.term = Term(0)
        self.leader: CoordinatorId | None = None
        self.quorum = True
        self.commits_pass = asyncio.Event()  # cleared: commits wait
        self.commits_pass.set()
        self.waiting = 0  # commits that wait
        self.changed = asyncio.Condition()
        self.replicas = {name: FakeConsensus(self, name) for name in ids}

    async def elect(self, leader: CoordinatorId | None) -> None:
        """End the present leadership and begin the next; None: nobody leads."""
        async with self.changed:
            self.leader = leader
            if leader is not None:
                self.term = Term(self.term + 1)
            self.changed.notify_all()

    async def commit(self, term: Term, document: bytes) -> None:
        self.waiting += 1
        try:
            await self.commits_pass.wait()
        finally:
            self.waiting -= 1
        if term != self.term or self.leader is None:
            raise LeadershipLost(f"the leadership of term {term} is over")
        async with self.changed:
            self.committed = Committed(document, term, len(self.history) + 1)
            self.history.append(self.committed)
            self.changed.notify_all()


class FakeConsensus(Consensus):
    def __init__(self, cluster: FakeCluster, me: CoordinatorId) -> None:
        self._cluster = cluster
        self._me = me

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def lead(self) -> Leadership:
        cluster = self._cluster
        async with cluster.changed:
            await cluster.changed.wait_for(lambda: cluster.leader == self._me)
            return FakeLeadership(cluster, cluster.term)

    async def watch(self) -> AsyncIterator[Committed]:
        cluster, seen = self._cluster, 0
        while True:
            async with cluster.changed:
                while len(cluster.history) == seen:
                    await cluster.changed.wait()
                newest = cluster.history[-1]
            seen = newest.index
            yield newest

    def status(self) -> ConsensusStatus:
        cluster = self._cluster
        role = "leader" if cluster.leader == self._me else "follower"
        return ConsensusStatus(self._me, role, cluster.term, cluster.leader, cluster.quorum, len(cluster.history))


class FakeLeadership(Leadership):
    def __init__(self, cluster: FakeCluster, term: Term) -> None:
        self._cluster = cluster
        self.term = term
        self.document = cluster.committed.document if cluster.committed else None

    async def commit(self, document: bytes) -> None:
        await self._cluster.commit(self.term, document)

    async def lost(self) -> None:
        cluster = self._cluster
        async with cluster.changed:
            await cluster.changed.wait_for(lambda: cluster.leader is None or cluster.term != self.term)
