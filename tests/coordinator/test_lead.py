"""Hear, decide, commit, publish: in that order, whatever happens between."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orch_core.contracts import codec
from orch_core.contracts.document import Document
from orch_core.contracts.errors import ConfigurationError, LeadershipLost
from orch_core.contracts.ids import AgentId, CoordinatorId, JobName, WorkerId
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import AgentStatus, Phase, ProcessReport, ProcessState, Progress
from orch_core.coordinator import lead
from orch_core.coordinator.elections import Elections
from orch_core.coordinator.lead import JudgeClock, Leader
from orch_core.coordinator.publish import Board
from orch_core.protocol import cluster
from orch_core.protocol.cluster import Decision, Observed
from orch_core.testing.consensus_fake import FakeCluster
from orch_core.testing.control import until, worker_status

C0, C1 = CoordinatorId("c0"), CoordinatorId("c1")
SPEC = JobSpec(JobName("test"), workers=1, max_workers=1)


@dataclass(slots=True)
class Stage:
    """One leader on fake consensus, and a clock that the test moves."""

    consensus: FakeCluster = field(default_factory=lambda: FakeCluster([C0, C1]))
    board: Board = field(default_factory=Board)
    seen: list[Observed] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    rule: Any = cluster.decide
    now: float = 100.0
    leader: Leader = field(init=False)

    def __post_init__(self) -> None:
        replica = self.consensus.replicas[C0]
        self.leader = Leader(
            replica,
            SPEC,
            self.board,
            Elections(replica),
            started_at=1000.0,
            wall=lambda: 1000.0 + self.now,
            clock=lambda: self.now,
            decide=self._decide,
        )

    def _decide(self, document: Document, observed: Observed, now: float, wall: float) -> Decision:
        self.seen.append(replace(observed, workers=dict(observed.workers), agents=dict(observed.agents)))
        self.judged.append(now)
        decision: Decision = self.rule(document, observed, now, wall)
        return decision

    @property
    def document(self) -> Document:
        assert self.board.document is not None
        return self.board.document

    def committed(self) -> list[Document]:
        return [codec.decode(Document, c.document) for c in self.consensus.history]


@contextlib.asynccontextmanager
async def on(stage: Stage) -> AsyncIterator[Stage]:
    task = asyncio.create_task(stage.leader.run())
    try:
        yield stage
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def elected(stage: Stage) -> None:
    await stage.consensus.elect(C0)
    await until(lambda: stage.board.term == stage.consensus.term)


def test_the_first_leader_creates_the_document() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            (document,) = stage.committed()
            assert (document.job, document.started_at, document.revision) == (SPEC, 1000.0, 1)
            assert stage.document == document

    asyncio.run(scenario())


def test_the_next_leader_goes_on_with_it_and_is_counted() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            await stage.consensus.elect(C1)
            await until(lambda: stage.board.term is None)
            await elected(stage)
            assert stage.document.leader_changes == 1
            assert stage.document.term == stage.consensus.term
            assert [d.revision for d in stage.committed()] == [1, 2]

    asyncio.run(scenario())


def test_nothing_is_published_before_its_commit() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            stage.consensus.commits_pass.clear()
            await stage.consensus.elect(C0)
            await until(lambda: stage.consensus.waiting == 1)
            assert stage.board.term is None  # not even the first document
            stage.consensus.commits_pass.set()
            await until(lambda: stage.board.term is not None)

            stage.consensus.commits_pass.clear()
            stage.leader.post(worker_status("w0.1", phase=Phase.READY))
            await until(lambda: stage.consensus.waiting == 1)
            shown = [update async for update in _some(stage.board, 1)]
            assert codec.decode(Document, shown[0].document or b"").view is None
            assert stage.document.view is None
            stage.consensus.commits_pass.set()
            await until(lambda: stage.document.view is not None)
            assert stage.document == stage.committed()[-1]

    asyncio.run(scenario())


def test_one_commit_is_in_flight_and_what_comes_meanwhile_is_heard_after_it() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            stage.consensus.commits_pass.clear()
            stage.leader.post(worker_status("w0.1", 1, Phase.READY))
            await until(lambda: stage.consensus.waiting == 1)
            decided = len(stage.seen)
            for sequence in range(2, 50):
                stage.leader.post(worker_status("w0.1", sequence, Phase.TRAINING, doing=f"step {sequence}"))
                await asyncio.sleep(0)
            assert stage.consensus.waiting == 1
            assert len(stage.seen) == decided
            stage.consensus.commits_pass.set()
            await until(lambda: len(stage.seen) > decided)
            assert stage.seen[decided].workers[WorkerId("w0.1")].status.sequence == 49  # the newest, no other

    asyncio.run(scenario())


def test_what_was_heard_is_dropped_with_the_leadership() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            stage.leader.post(worker_status("w0.1", 5))
            await until(lambda: bool(stage.seen and stage.seen[-1].workers))
            await stage.consensus.elect(C1)
            await until(lambda: stage.board.term is None)
            stage.leader.post(worker_status("w0.1", 6))  # to nobody
            stage.seen.clear()
            await elected(stage)
            stage.leader.post(worker_status("w1.1", 1))
            await until(lambda: bool(stage.seen and stage.seen[-1].workers))
            assert set(stage.seen[-1].workers) == {"w1.1"}
            assert stage.seen[-1].leading_since == 0.0

    asyncio.run(scenario())


def test_a_lost_commit_ends_the_leadership_and_publishes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            stage.consensus.commits_pass.clear()
            stage.leader.post(worker_status("w0.1", phase=Phase.READY))
            await until(lambda: stage.consensus.waiting == 1)
            await stage.consensus.elect(None)
            stage.consensus.commits_pass.set()
            await until(lambda: stage.board.term is None)
            assert [d.view for d in stage.committed()] == [None]
            assert stage.document.view is None

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert sum("leadership-lost" in line for line in caplog.messages) == 1


def test_a_stalled_judge_advances_its_clock_by_a_tenth_of_a_second() -> None:
    now = [10.0]
    judge = JudgeClock(lambda: now[0])
    now[0] += 0.03
    assert judge.wake() == pytest.approx(0.03)
    now[0] += 3600.0
    assert judge.wake() == pytest.approx(0.13)
    now[0] -= 1.0  # a clock that goes back does not take the judge with it
    assert judge.wake() == pytest.approx(0.13)


def test_a_resumed_leader_accuses_nobody() -> None:
    """SIGSTOP for an hour: the statuses that wait in the sockets come just after the first wake-up."""

    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            stage.leader.post(worker_status("w0.1", 1, Phase.READY))
            await until(lambda: stage.document.view is not None)
            stage.now += 3600.0
            judged = len(stage.judged)
            await until(lambda: len(stage.judged) > judged)
            stage.leader.post(worker_status("w0.1", 2, Phase.TRAINING))
            await until(lambda: stage.seen[-1].workers[WorkerId("w0.1")].status.sequence == 2)
            assert stage.judged[-1] <= stage.judged[judged - 1] + 2 * lead.JUDGE_LIMIT_S
            assert stage.document.view is not None
            assert stage.document.view.number == 1

    asyncio.run(scenario())


def test_the_leader_looks_again_when_decide_wants_it_even_if_nobody_speaks() -> None:
    looked: list[float] = []

    def rule(document: Document, observed: Observed, now: float, wall: float) -> Decision:
        looked.append(now)
        return Decision(None, look_again_at=now + 5.0)

    async def scenario() -> None:
        async with on(Stage(rule=rule)) as stage:
            await elected(stage)
            for _ in range(5):
                count = len(looked)
                stage.now += lead.PENDING_S
                await until(lambda count=count: len(looked) > count)
            assert looked[-1] >= 4 * lead.PENDING_S  # small steps, so that the judge's clock keeps up

    asyncio.run(scenario())


def test_a_deadline_in_the_past_does_not_make_the_loop_spin() -> None:
    looked: list[float] = []

    def rule(document: Document, observed: Observed, now: float, wall: float) -> Decision:
        looked.append(now)
        return Decision(None, look_again_at=now - 1.0)

    async def scenario() -> None:
        async with on(Stage(rule=rule)) as stage:
            await elected(stage)
            await asyncio.sleep(0.1)

    asyncio.run(scenario())
    assert len(looked) <= 110


def test_a_command_is_committed_before_it_is_answered() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            stage.consensus.commits_pass.clear()
            answer = asyncio.create_task(stage.leader.command("stop", {}))
            await until(lambda: stage.consensus.waiting == 1)
            assert not answer.done()
            stage.consensus.commits_pass.set()
            revision = await answer
            (document,) = [d for d in stage.committed() if d.revision == revision]
            assert document.stop == "stopped"
            await until(lambda: stage.document.status is JobStatus.STOPPED)  # nobody trains yet, so that is all

    asyncio.run(scenario())


def test_a_command_is_refused_by_who_does_not_lead_and_fails_with_the_leadership() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            with pytest.raises(LeadershipLost):
                await stage.leader.command("stop", {})
            await elected(stage)
            stage.consensus.commits_pass.clear()
            answer = asyncio.create_task(stage.leader.command("stop", {}))
            await until(lambda: stage.consensus.waiting == 1)
            await stage.consensus.elect(C1)
            with pytest.raises(LeadershipLost):
                await answer

    asyncio.run(scenario())


def test_a_senseless_command_is_refused_and_the_leader_goes_on() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            with pytest.raises(ConfigurationError, match="dance"):
                await stage.leader.command("dance", {})
            assert await stage.leader.command("stop", {}) >= 2

    asyncio.run(scenario())


def test_commands_that_wait_are_bounded() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            stage.consensus.commits_pass.clear()
            many = [asyncio.create_task(stage.leader.command("stop", {})) for _ in range(lead.COMMANDS_LIMIT)]
            await until(lambda: stage.consensus.waiting == 1)
            with pytest.raises(ConfigurationError, match="too many"):
                await stage.leader.command("stop", {})
            stage.consensus.commits_pass.set()
            assert len({await answer for answer in many}) == 1

    asyncio.run(scenario())


def test_the_word_of_an_agent_reaches_decide_and_a_gone_life_is_forgotten() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            stage.leader.post(worker_status("w0.1", 1, Phase.STARTING))
            await until(lambda: bool(stage.document.places))
            report = ProcessReport(WorkerId("w0.1"), 1, ProcessState.EXITED, exit_code=-9)
            stage.leader.post(AgentStatus(AgentId("a0"), 1, "here", (report,)))
            await until(lambda: "w0.1" in stage.document.dead)
            stage.leader.post(worker_status("w0.2", 1, Phase.STARTING))
            await until(lambda: stage.document.places[0].worker == "w0.2")
            stage.leader.post(worker_status("w0.2", 2, Phase.STARTING))
            await until(lambda: stage.seen[-1].workers[WorkerId("w0.2")].status.sequence == 2)
            assert set(stage.seen[-1].workers) == {"w0.2"}

    asyncio.run(scenario())


def test_progress_is_shown_now_and_then_and_never_committed() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            shown: list[Progress | None] = []
            for sequence in range(1, 200):
                stage.leader.post(worker_status("w0.1", sequence))
                stage.now += 0.001
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if not any(stage.board.progress is known for known in shown):
                    shown.append(stage.board.progress)
            assert 2 <= len(shown) <= 5  # in 200 ms
            assert len(stage.committed()) == 2  # the first document, and the worker's place

    asyncio.run(scenario())


def test_a_leader_of_whom_nobody_wants_anything_still_gives_signs_of_life() -> None:
    async def scenario() -> None:
        async with on(Stage()) as stage:
            await elected(stage)
            for _ in range(3):
                shown = stage.board.progress
                stage.now += lead.SIGN_OF_LIFE_S
                await until(lambda shown=shown: stage.board.progress is not shown)

    asyncio.run(scenario())


async def _some(board: Board, count: int) -> AsyncIterator[Any]:
    async for update in board.read(short=False):
        yield update
        count -= 1
        if not count:
            return
