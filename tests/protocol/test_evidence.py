from dataclasses import replace

from orch_core.contracts.document import Cause, View, ViewMember
from orch_core.contracts.ids import AgentId, Step, ViewNumber, WorkerId
from orch_core.contracts.status import AgentStatus, Phase, ProcessReport, ProcessState, WorkerStatus
from orch_core.protocol.evidence import (
    SILENCE_S,
    STALL_S,
    Observed,
    broken_pairs,
    doubtful_until,
    hear,
    holds_state,
    is_stale,
    silent_at,
)

A, B, C = WorkerId("w0.1"), WorkerId("w1.1"), WorkerId("w2.1")
AGENT = AgentId("agent")
VIEW = View(ViewNumber(2), tuple(ViewMember(w, "") for w in (A, B, C)), Cause.START, "start", Step(0), 0.0)


def status(worker=A, sequence=1, **more):
    return WorkerStatus(worker, sequence, 1, "host", "address", more.pop("phase", Phase.TRAINING), **more)


def agent(*reports, sequence=1):
    return AgentStatus(AGENT, sequence, "host", tuple(ProcessReport(w, 1, s) for w, s in reports))


def observed(*statuses, at=0.0, agent_at=0.0, since=0.0, reports=()):
    agents = {AGENT: hear(None, agent(*reports), agent_at)} if reports else {}
    return Observed({s.worker: hear(None, s, at) for s in statuses}, agents, since)


def test_an_older_status_is_not_heard():
    first = hear(None, status(sequence=2), 1.0)
    assert hear(first, status(sequence=2), 2.0) is None
    assert hear(first, status(sequence=1), 2.0) is None
    assert hear(first, status(sequence=3), 2.0).at == 2.0


def test_it_is_known_since_when_a_view_is_broken():
    first = hear(None, status(), 1.0)
    broken = hear(first, status(sequence=2, broken=ViewNumber(2)), 2.0)
    again = hear(broken, status(sequence=3, broken=ViewNumber(2)), 3.0)
    whole = hear(again, status(sequence=4), 4.0)
    assert (first.broken_since, broken.broken_since, again.broken_since, whole.broken_since) == (None, 2.0, 2.0, None)


def test_it_is_known_since_when_a_phase_lasts():
    first = hear(None, status(phase=Phase.STARTING), 1.0)
    ready = hear(first, status(sequence=2, phase=Phase.READY), 2.0)
    assert hear(ready, status(sequence=3, phase=Phase.READY), 3.0).phase_since == 2.0


def test_who_says_nothing_is_silent_after_a_while():
    assert silent_at(A, observed(status(), at=5.0)) == 5.0 + SILENCE_S


def test_a_new_leader_waits_a_full_period_for_everybody():
    assert silent_at(A, observed(since=7.0)) == 7.0 + SILENCE_S


def test_a_process_that_its_agent_sees_running_may_be_busy():
    busy = observed(status(), at=5.0, agent_at=6.0, reports=[(A, ProcessState.RUNNING)])
    assert silent_at(A, busy) == 6.0 + SILENCE_S  # the agent's own word ages, too
    vouched = observed(status(), at=5.0, agent_at=1000.0, reports=[(A, ProcessState.RUNNING)])
    assert silent_at(A, vouched) == 5.0 + STALL_S


def test_a_stopped_process_is_silent_as_soon_as_others():
    stopped = observed(status(), at=5.0, agent_at=1000.0, reports=[(A, ProcessState.STOPPED)])
    assert silent_at(A, stopped) == 5.0 + SILENCE_S


def test_two_missed_heartbeats_make_stale():
    assert not is_stale(A, observed(status(), at=5.0), 6.0)
    assert is_stale(A, observed(status(), at=5.0), 6.1)


def test_a_stopped_process_is_stale_at_once():
    assert is_stale(A, observed(status(), at=5.0, reports=[(A, ProcessState.STOPPED)]), 5.0)


def test_a_new_leader_takes_nobody_for_stale_before_it_could_be_heard():
    assert not is_stale(A, observed(since=5.0), 5.5)


def test_who_has_missed_one_heartbeat_is_doubtful_until_it_is_stale():
    late = observed(status(), at=5.0)
    assert doubtful_until(A, late, 5.4) is None
    due = doubtful_until(A, late, 5.8)
    assert is_stale(A, late, due)
    assert doubtful_until(A, late, due) is None


def test_one_complaint_makes_a_broken_pair():
    complaint = status(A, view=ViewNumber(2), unreachable=(B,))
    assert broken_pairs(VIEW, observed(complaint), ()) == {frozenset((A, B))}


def test_a_complaint_counts_in_its_view_only():
    assert not broken_pairs(VIEW, observed(status(A, view=ViewNumber(1), unreachable=(B,))), ())


def test_the_dead_are_in_no_pair():
    complaint = status(A, view=ViewNumber(2), unreachable=(B, C))
    assert broken_pairs(VIEW, observed(complaint), (B,)) == {frozenset((A, C))}


def test_a_state_is_held_by_who_says_so():
    assert holds_state(A, observed(status(applied=Step(-1))))
    assert not holds_state(A, observed(status()))
    assert not holds_state(A, observed(replace(status(applied=Step(3)), phase=Phase.READY)))
    assert not holds_state(B, observed(status(applied=Step(3))))
