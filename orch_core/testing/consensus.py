"""What every consensus backend must do. Its test is one subclass with one fixture::

    from orch_core.testing.consensus import ConsensusConformance, Replicas

    class TestRaft(ConsensusConformance):
        @pytest.fixture
        def make_replicas(self, tmp_path):
            return lambda count: RaftReplicas(tmp_path, count)

`Replicas` is how the suite makes, kills and restarts replicas of the backend. A backend that does not elect among its
replicas (a client of a cluster, say) gives each of them the same cluster. The tests run real time, but wait for events;
`PATIENCE_S` only bounds a hang.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

import pytest

from orch_core.contracts.consensus import Committed, Consensus, Leadership
from orch_core.contracts.errors import LeadershipLost
from orch_core.contracts.ids import CoordinatorId

PATIENCE_S = 30.0


class Replicas(ABC):
    """Replicas of one job's document. All methods are called from one loop."""

    ids: tuple[CoordinatorId, ...]

    def __init__(self) -> None:
        self.alive: dict[CoordinatorId, Consensus] = {}

    @abstractmethod
    def make(self, replica: CoordinatorId) -> Consensus:
        """A new life of `replica`, with the memory of the last one. Not started."""

    @abstractmethod
    async def kill(self, replica: CoordinatorId) -> None:
        """End `replica` as SIGKILL would, as its peers see it, and free its ports and files. Not its memory."""

    async def start(self, *replicas: CoordinatorId) -> None:
        """Start these, or all."""
        for replica in replicas or self.ids:
            self.alive[replica] = self.make(replica)
        await asyncio.gather(*(self.alive[replica].start() for replica in replicas or self.ids))

    async def end(self, replica: CoordinatorId) -> None:
        """Kill `replica` and forget it."""
        await self.kill(replica)
        del self.alive[replica]

    async def close(self) -> None:
        await asyncio.gather(*(consensus.close() for consensus in self.alive.values()))

    async def leader(self, among: Iterable[CoordinatorId] | None = None) -> tuple[CoordinatorId, Leadership]:
        """Whoever of these leads next."""
        tasks = {asyncio.create_task(self.alive[one].lead()): one for one in among or list(self.alive)}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        first = next(iter(done))
        return tasks[first], first.result()


class ConsensusConformance:
    """Subclass it, and define the fixture `make_replicas`."""

    @pytest.fixture
    def make_replicas(self) -> Callable[[int], Replicas]:
        raise NotImplementedError("a conformance test defines the fixture make_replicas")

    # ---- one replica -------------------------------------------------------------------------------------------------

    def test_one_replica_leads_and_commits(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            _, leadership = await replicas.leader()
            assert leadership.document is None
            await leadership.commit(b"first")
            assert (await _newest(replicas.alive[replicas.ids[0]])).document == b"first"

        _run(make_replicas(1), scenario)

    def test_a_restarted_replica_remembers_the_document_and_leads_a_later_term(
        self, make_replicas: Callable[[int], Replicas]
    ) -> None:
        async def scenario(replicas: Replicas) -> None:
            me, before = await replicas.leader()
            await before.commit(b"kept")
            await replicas.end(me)
            await replicas.start(me)
            _, after = await replicas.leader()
            assert after.document == b"kept"
            assert after.term > before.term

        _run(make_replicas(1), scenario)

    def test_lead_gives_the_leadership_again_while_it_lasts(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            me, first = await replicas.leader()
            assert (await replicas.alive[me].lead()).term == first.term

        _run(make_replicas(1), scenario)

    def test_large_and_empty_documents_survive(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            _, leadership = await replicas.leader()
            for document in (b"", b"\0" * 3, bytes(range(256)) * 4096):
                await leadership.commit(document)
                assert (await _newest(replicas.alive[replicas.ids[0]])).document == document

        _run(make_replicas(1), scenario)

    def test_commits_asked_for_at_once_come_in_that_order(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            me, leadership = await replicas.leader()
            documents = [b"%d" % number for number in range(20)]
            await asyncio.gather(*(leadership.commit(document) for document in documents))
            assert (await _newest(replicas.alive[me])).document == documents[-1]

        _run(make_replicas(1), scenario)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def test_closing_twice_is_closing(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            await replicas.alive[replicas.ids[0]].close()
            await replicas.alive[replicas.ids[0]].close()

        _run(make_replicas(1), scenario)

    def test_closing_a_replica_that_was_never_started_is_allowed(
        self, make_replicas: Callable[[int], Replicas]
    ) -> None:
        async def scenario() -> None:
            replicas = make_replicas(1)
            await replicas.make(replicas.ids[0]).close()
            await replicas.close()

        asyncio.run(scenario())

    def test_a_close_ends_the_leadership_and_every_wait(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            me, leadership = await replicas.leader()
            watching = asyncio.create_task(_collect(replicas.alive[me]))
            await replicas.alive[me].close()
            await leadership.lost()
            with pytest.raises(LeadershipLost):
                await leadership.commit(b"too late")
            with pytest.raises(LeadershipLost):
                await replicas.alive[me].lead()
            await watching

        _run(make_replicas(1), scenario)

    def test_a_cancelled_commit_leaves_a_working_leadership(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            me, leadership = await replicas.leader()
            task = asyncio.create_task(leadership.commit(b"perhaps"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await leadership.commit(b"surely")
            assert (await _newest(replicas.alive[me])).document == b"surely"

        _run(make_replicas(1), scenario)

    # ---- three replicas ----------------------------------------------------------------------------------------------

    def test_every_replica_sees_what_the_leader_commits(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            _, leadership = await replicas.leader()
            for number in range(10):
                await leadership.commit(b"%d" % number)
            for consensus in replicas.alive.values():
                await _until(consensus, b"9")

        _run(make_replicas(3), scenario)

    def test_watch_never_goes_back(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            _, leadership = await replicas.leader()
            watching = [asyncio.create_task(_until(one, b"29")) for one in replicas.alive.values()]
            for number in range(30):
                await leadership.commit(b"%d" % number)
            for seen in await asyncio.gather(*watching):
                assert [one.index for one in seen] == sorted({one.index for one in seen})
                assert [int(one.document) for one in seen] == sorted({int(one.document) for one in seen})
                assert {one.term for one in seen} == {leadership.term}

        _run(make_replicas(3), scenario)

    def test_status_names_the_leader_its_term_and_the_quorum(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            leader, leadership = await replicas.leader()
            await leadership.commit(b"seen by all")
            for me, consensus in replicas.alive.items():
                await _until(consensus, b"seen by all")
                status = consensus.status()
                assert (status.id, status.leader, status.term) == (me, leader, leadership.term)
                assert status.role == ("leader" if me == leader else "follower")
                assert status.quorum

        _run(make_replicas(3), scenario)

    def test_the_death_of_the_leader_brings_another_with_the_same_document(
        self, make_replicas: Callable[[int], Replicas]
    ) -> None:
        async def scenario(replicas: Replicas) -> None:
            dead, before = await replicas.leader()
            await before.commit(b"survives")
            await replicas.end(dead)
            await before.lost()
            _, after = await replicas.leader()
            assert after.document == b"survives"
            assert after.term > before.term
            await after.commit(b"goes on")
            for consensus in replicas.alive.values():
                await _until(consensus, b"goes on")

        _run(make_replicas(3), scenario)

    def test_a_commit_under_way_when_its_leader_dies_raises(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            dead, leadership = await replicas.leader()
            task = asyncio.create_task(_commit_for_ever(leadership))
            await asyncio.sleep(0)
            await replicas.end(dead)
            with pytest.raises(LeadershipLost):
                await task

        _run(make_replicas(3), scenario)

    def test_without_a_majority_nothing_is_committed_and_nobody_claims_a_quorum(
        self, make_replicas: Callable[[int], Replicas]
    ) -> None:
        async def scenario(replicas: Replicas) -> None:
            leader, leadership = await replicas.leader()
            for other in set(replicas.ids) - {leader}:
                await replicas.end(other)
            with pytest.raises(LeadershipLost):
                await leadership.commit(b"alone")
            await leadership.lost()
            assert not replicas.alive[leader].status().quorum

        _run(make_replicas(3), scenario)

    def test_a_majority_that_comes_back_goes_on(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            leader, leadership = await replicas.leader()
            await leadership.commit(b"old")
            others = sorted(set(replicas.ids) - {leader})
            for other in others:
                await replicas.end(other)
            await leadership.lost()
            await replicas.start(others[0])
            _, after = await replicas.leader()
            assert after.document == b"old"
            await after.commit(b"new")

        _run(make_replicas(3), scenario)

    def test_all_killed_and_restarted_know_the_last_commit(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            _, before = await replicas.leader()
            for number in range(5):
                await before.commit(b"%d" % number)
            for me in replicas.ids:
                await replicas.end(me)
            await replicas.start()
            _, after = await replicas.leader()
            assert after.document == b"4"
            assert after.term > before.term

        _run(make_replicas(3), scenario)

    def test_a_replica_that_was_away_catches_up(self, make_replicas: Callable[[int], Replicas]) -> None:
        async def scenario(replicas: Replicas) -> None:
            leader, leadership = await replicas.leader()
            away = next(me for me in replicas.ids if me != leader)
            await replicas.end(away)
            for number in range(50):
                await leadership.commit(b"%d" % number)
            await replicas.start(away)
            await _until(replicas.alive[away], b"49")
            await leadership.commit(b"and on")
            await _until(replicas.alive[away], b"and on")

        _run(make_replicas(3), scenario)

    def test_leaders_die_one_after_another_and_no_commit_is_lost(
        self, make_replicas: Callable[[int], Replicas]
    ) -> None:
        async def scenario(replicas: Replicas) -> None:
            newest: bytes | None = None
            terms = []
            for number in range(6):
                leader, leadership = await replicas.leader()
                assert leadership.document == newest
                newest = b"%d" % number
                await leadership.commit(newest)
                terms.append(leadership.term)
                await replicas.end(leader)
                await replicas.start(leader)
                await leadership.lost()
            assert terms == sorted(set(terms))

        _run(make_replicas(3), scenario)


def _run(replicas: Replicas, scenario: Callable[[Replicas], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(PATIENCE_S), _started(replicas):
            await scenario(replicas)

    asyncio.run(whole())


@contextlib.asynccontextmanager
async def _started(replicas: Replicas) -> AsyncIterator[None]:
    try:
        await replicas.start()
        yield
    finally:
        await replicas.close()


async def _newest(consensus: Consensus) -> Committed:
    async for committed in _closing(consensus.watch()):
        return committed
    raise AssertionError("watch ended")


async def _until(consensus: Consensus, document: bytes) -> list[Committed]:
    """What `watch` yields up to `document`."""
    seen = []
    async for committed in _closing(consensus.watch()):
        seen.append(committed)
        if committed.document == document:
            return seen
    raise AssertionError("watch ended")


async def _collect(consensus: Consensus) -> list[Committed]:
    return [committed async for committed in _closing(consensus.watch())]


async def _closing(watch: AsyncIterator[Committed]) -> AsyncIterator[Committed]:
    try:
        async for committed in watch:
            yield committed
    finally:
        close = getattr(watch, "aclose", None)
        if close is not None:
            await close()


async def _commit_for_ever(leadership: Leadership) -> None:
    number = 0
    while True:
        await leadership.commit(b"%d" % number)
        number += 1
