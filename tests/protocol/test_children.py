import signal
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from orch_core.contracts.document import (
    HAS_LEFT,
    Cause,
    Document,
    Finished,
    LifeState,
    Place,
    Training,
    View,
    ViewMember,
)
from orch_core.contracts.ids import Step, ViewNumber, WorkerId, place_and_life
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.protocol import children
from orch_core.protocol.children import Kill, Order, Process, Signal, Start, observe, plan, prune
from orch_core.protocol.member import EVICTED

SPEC = JobSpec(name="job", workers=2, max_restarts=2)
DOCUMENT = Document(job=SPEC, started_at=0.0, wanted=2)
FINISHED = Finished(3, "d", "w", {}, Training(1, 3, 1))
LONG = 1000.0  # a life that was long enough to be no failed start


def process(worker, pid=100, started_at=0.0, **more):
    return Process(WorkerId(worker), pid, started_at, **more)


def dead(worker, code, at=LONG, started_at=0.0, **more):
    return process(worker, started_at=started_at, exited_at=at, exit_code=code, **more)


def alive(worker, pid=100):
    return process(worker, pid)


def with_place(worker, state, document=DOCUMENT, why=""):
    return replace(document, places=(Place(place_and_life(worker)[0], worker, state, why=why),))


def with_view(*workers, document=DOCUMENT):
    view = View(ViewNumber(1), tuple(ViewMember(w, "") for w in workers), Cause.START, "start", Step(0), 0.0)
    return replace(document, views=(view,), status=JobStatus.RUNNING)


OTHER = alive("w1.1", 101)  # fills the second place


def test_a_new_job_starts_the_first_life_of_each_place():
    assert plan(None, SPEC, (), 0.0).actions == (Start("w0.1"), Start("w1.1"))


def test_nothing_is_done_while_all_places_are_filled():
    assert plan(DOCUMENT, SPEC, (alive("w0.1"), OTHER), 5.0) == children.Verdict()


def test_the_first_restart_is_immediate_and_has_the_next_life():
    assert plan(DOCUMENT, SPEC, (dead("w0.1", -9, at=3.0), OTHER), 3.0).actions == (Start("w0.2"),)


def test_a_life_that_the_document_knows_is_never_used_again():
    document = with_place("w0.7", LifeState.GONE)
    assert plan(document, SPEC, (dead("w0.1", -9), OTHER), LONG).actions == (Start("w0.8"),)


def test_fast_deaths_in_a_row_wait_longer_and_longer_but_not_for_ever():
    spec = replace(SPEC, max_restarts=100)
    lives, now, waits = [], 0.0, []
    for life in range(1, 15):
        lives.append(dead(f"w0.{life}", -9, at=now + 0.1, started_at=now))
        now += 0.1
        verdict = plan(DOCUMENT, spec, (*lives, OTHER), now)
        waits.append(0.0 if verdict.actions else verdict.next_look - now)
        now += waits[-1]
        assert plan(DOCUMENT, spec, (*lives, OTHER), now).actions == (Start(f"w0.{life + 1}"),)
    assert waits[:4] == [0.0, 0.5, 1.0, 2.0] or [round(w, 6) for w in waits[:4]] == [0.0, 0.5, 1.0, 2.0]
    assert max(waits) <= children.LONGEST_DELAY_S + 1e-9


def test_short_lives_that_were_sent_away_make_nobody_wait():
    spec = replace(SPEC, max_restarts=0)
    left = [dead(f"w0.{life}", 0, at=life + 0.9, started_at=float(life), left=True) for life in range(1, 6)]
    asked = [
        dead(f"w0.{life}", -15, at=life + 0.9, started_at=float(life), asked_at=life + 0.5) for life in range(6, 9)
    ]
    assert plan(DOCUMENT, spec, (*left, *asked, OTHER), 8.9).actions == (Start("w0.9"),)


def test_one_restart_too_many_is_a_failure_that_names_worker_and_code():
    lives = [dead(f"w0.{life}", 17, at=life * 10.0, started_at=life * 10.0 - 9) for life in (1, 2, 3)]
    assert plan(DOCUMENT, SPEC, (*lives[:2], OTHER), 21.0).actions == (Start("w0.3"),)
    failure = plan(DOCUMENT, SPEC, (*lives, OTHER), 31.0).failure
    assert failure.worker == "w0.3"
    assert failure.exit_code == 1
    assert "w0.3 ended with exit code 17" in failure.message
    assert "2 restarts" in failure.message


def test_a_signal_is_named():
    spec = replace(SPEC, max_restarts=0)
    assert "SIGSEGV" in plan(DOCUMENT, spec, (dead("w0.1", -signal.SIGSEGV), OTHER), LONG).failure.message


def test_evictions_are_not_counted():
    lives = [dead(f"w0.{life}", 75, at=life * 10.0, started_at=life * 10.0 - 9) for life in range(1, 20)]
    verdict = plan(DOCUMENT, SPEC, (*lives, OTHER), 200.0)
    assert verdict.failure is None
    assert verdict.actions == (Start("w0.20"),)


def test_deaths_of_more_than_ten_minutes_ago_are_forgotten():
    lives = [dead(f"w0.{i + 1}", 1, at=i * 400.0 + 100, started_at=i * 400.0) for i in range(6)]
    assert plan(DOCUMENT, SPEC, (*lives, OTHER), 2101.0).failure is None


def test_a_hundred_steps_as_a_member_forgive_earlier_deaths():
    lives = [dead(f"w0.{i}", 1, at=i * 10.0, started_at=i * 10.0 - 9) for i in (1, 2)]
    good = dead("w0.3", 1, at=40.0, started_at=21.0, steps=100)
    assert plan(DOCUMENT, SPEC, (*lives, replace(good, steps=99), OTHER), 41.0).failure is not None
    assert plan(DOCUMENT, SPEC, (*lives, good, OTHER), 41.0).actions == (Start("w0.4"),)


def test_the_progress_of_others_forgives_nothing():
    """A place that dies while importing would loop for ever while the others train."""
    document = with_place("w0.1", LifeState.STARTING)
    seen = observe((alive("w0.1"),), document, Step(5000), 1.0)
    assert seen[0].steps == 0


def test_steps_count_from_where_a_life_became_a_member():
    document = with_place("w0.1", LifeState.MEMBER)
    (one,) = observe((alive("w0.1"),), document, Step(40), 1.0)
    (one,) = observe((one,), document, Step(141), 2.0)
    assert one.steps == 101


def test_a_failure_record_is_never_restarted_and_left_to_the_leader():
    verdict = plan(DOCUMENT, SPEC, (dead("w0.1", 1, failed=True), OTHER), LONG)
    assert verdict == children.Verdict()


def test_exit_zero_before_the_end_is_an_error_that_names_the_worker_unless_it_is_explained_in_time():
    lives = (dead("w0.1", 0, at=10.0), OTHER)
    early = plan(DOCUMENT, SPEC, lives, 10.0, heard_at=10.0)
    assert early.failure is None
    assert early.actions == ()
    failure = plan(DOCUMENT, SPEC, lives, early.next_look, heard_at=early.next_look).failure
    assert "w0.1 ended with exit code 0 before training was finished" in failure.message
    document = replace(with_view("w0.1", "w1.1"), finished=FINISHED)
    assert plan(document, SPEC, lives, 99.0) == children.Verdict()


def test_an_exit_zero_is_not_judged_while_no_leader_is_heard():
    lives = (dead("w0.1", 0, at=10.0), OTHER)
    for heard_at in (None, 9.0, 14.9):
        assert plan(DOCUMENT, SPEC, lives, 99.0, heard_at=heard_at) == children.Verdict()
    assert plan(DOCUMENT, SPEC, lives, 99.0, heard_at=98.0).failure is not None


def test_who_is_on_its_way_out_is_not_killed_while_the_others_may_need_its_state():
    (leaver,) = observe((alive("w0.1"),), with_place("w0.1", LifeState.LEAVING), Step(3), 1.0)
    assert leaver.left
    assert leaver.doomed_at is None
    (leaver,) = observe((leaver,), with_place("w0.1", LifeState.GONE, why=HAS_LEFT), Step(3), 2.0)
    assert leaver.doomed_at == 2.0


def test_a_life_that_has_left_is_followed_by_another_while_its_place_is_wanted():
    document = with_place("w0.1", LifeState.GONE, why=HAS_LEFT)
    (leaver,) = observe((dead("w0.1", 0),), document, Step(3), 1.0)
    spec = replace(SPEC, max_restarts=0)
    assert plan(document, spec, (leaver, OTHER), LONG).actions == (Start("w0.2"),)
    drained = replace(document, wanted=1, drained=("w0",))
    assert plan(drained, spec, (leaver, OTHER), LONG) == children.Verdict()


def test_nobody_is_started_after_the_end():
    document = replace(with_view("w0.1", "w1.1"), finished=FINISHED)
    assert plan(document, SPEC, (dead("w0.1", -9), OTHER), LONG).actions == ()


def test_when_all_holders_died_behind_the_end_training_starts_again():
    document = with_view("w0.1", "w1.1")  # the leader has taken "finished" back
    assert plan(document, SPEC, (dead("w0.1", -9), dead("w1.1", -9)), LONG).actions == (Start("w0.2"), Start("w1.2"))


def test_who_came_after_the_end_is_followed_by_another_life_if_all_holders_die_behind_it():
    document = replace(with_view("w0.1"), end_at=3)
    lives = (dead("w0.1", -9), dead("w1.2", EVICTED))
    verdict = plan(document, SPEC, lives, LONG + children.EXPLAIN_S, heard_at=LONG + children.EXPLAIN_S)
    assert (verdict.actions, verdict.failure) == ((Start("w0.2"), Start("w1.3")), None)


def test_who_is_gone_in_the_document_is_killed_a_second_later():
    document = with_place("w0.1", LifeState.GONE, why="evicted from the view")
    seen = observe((alive("w0.1"), OTHER), document, Step(3), 10.0)
    seen = observe(seen, document, Step(3), 10.5)
    early = plan(document, SPEC, seen, 10.5)
    assert early.actions == ()
    assert early.next_look == 11.0
    assert plan(document, SPEC, seen, 11.0).actions == (Kill(100),)


def test_a_frozen_process_has_time_to_thaw():
    document = with_place("w0.2", LifeState.STARTING)
    seen = observe((process("w0.1", stopped=True), OTHER), document, Step(3), 10.0)
    assert plan(document, SPEC, seen, 15.0).actions == ()
    assert plan(document, SPEC, seen, 10.0 + children.FROZEN_S).actions == (Kill(100),)


def test_the_death_of_who_was_evicted_is_not_counted():
    spec = replace(SPEC, max_restarts=0)
    assert plan(DOCUMENT, spec, (dead("w0.1", -9, doomed_at=5.0), OTHER), LONG).actions == (Start("w0.2"),)


def test_the_end_of_the_job_asks_everybody_and_kills_after_three_seconds():
    for status in (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.INTERRUPTED):
        document = replace(DOCUMENT, status=status)
        verdict = plan(document, SPEC, (alive("w0.1"),), 10.0)
        assert verdict.actions == (Signal(100, signal.SIGTERM),)
        asked = (process("w0.1", asked_at=10.0),)
        assert plan(document, SPEC, asked, 12.9).actions == ()
        assert plan(document, SPEC, asked, 13.0).actions == (Kill(100),)


def test_a_stop_before_training_just_ends_everybody():
    for document in (None, DOCUMENT, replace(with_view("w0.1"), status=JobStatus.WAITING)):
        assert plan(document, SPEC, (alive("w0.1"),), 1.0, Order.DRAIN).actions == (Signal(100, signal.SIGTERM),)
    asked = replace(DOCUMENT, stop="stopped")
    assert plan(asked, SPEC, (alive("w0.1"),), 1.0).actions == (Signal(100, signal.SIGTERM),)


def test_a_stop_while_training_lets_the_step_end_and_starts_nobody():
    document = with_view("w0.1", "w1.1")
    assert plan(document, SPEC, (alive("w0.1"), dead("w1.1", -9)), LONG, Order.DRAIN).actions == ()


def test_an_order_to_kill_needs_no_document():
    assert plan(None, SPEC, (alive("w0.1"), dead("w1.1", 1)), 1.0, Order.KILL).actions == (Kill(100),)


def test_a_life_too_many_that_is_no_member_yet_is_asked_to_leave_once_and_killed_if_it_does_not():
    document = replace(DOCUMENT, wanted=1)
    assert plan(document, SPEC, (alive("w0.1"), OTHER), 1.0).actions == (Signal(101, signal.SIGTERM),)
    asked = (alive("w0.1"), process("w1.1", 101, asked_at=1.0))
    assert plan(document, SPEC, asked, 2.0).actions == ()
    assert plan(document, SPEC, asked, 1.0 + children.TERM_S).actions == (Kill(101),)


def test_a_member_too_many_learns_it_from_the_document():
    document = replace(with_place("w1.1", LifeState.MEMBER), wanted=1)
    assert plan(document, SPEC, (alive("w0.1"), OTHER), 1.0).actions == ()


def test_a_drained_place_is_left_empty_and_a_higher_one_filled():
    document = replace(DOCUMENT, drained=("w0",))
    assert plan(document, SPEC, (), 1.0).actions == (Start("w1.1"), Start("w2.1"))


def test_what_no_rule_asks_for_is_forgotten():
    lives = (dead("w0.1", 1, at=0.0), dead("w0.2", 1, at=900.0), alive("w0.3"), dead("w1.1", 0, at=1.0))
    assert [p.worker for p in prune(lives, 1000.0)] == ["w0.2", "w0.3", "w1.1"]


CODES = st.sampled_from([0, 1, 2, 17, 75, -9, -11, -15])


@settings(deadline=None)
@given(
    codes=st.lists(CODES, max_size=30),
    lengths=st.lists(st.floats(0.01, 100), min_size=30, max_size=30),
    allowed=st.integers(0, 4),
)
def test_a_place_is_restarted_as_often_as_allowed_and_never_with_an_old_id(codes, lengths, allowed):
    """Plays the shell: starts what is asked for, lets it die, and looks again when it is told to."""
    spec = replace(SPEC, workers=1, max_restarts=allowed)
    document = replace(DOCUMENT, job=spec, wanted=1)
    now, lives = 0.0, ()
    used, ids = 0, set()
    for code, length in zip(codes, lengths, strict=False):
        verdict = plan(document, spec, lives, now, heard_at=now)
        while not verdict.actions and verdict.failure is None and verdict.next_look is not None:
            assert verdict.next_look > now
            now = verdict.next_look
            verdict = plan(document, spec, lives, now, heard_at=now)
        recent = [p for p in lives if p.counts and now - p.exited_at < children.WINDOW_S]
        if verdict.failure is not None:
            assert lives[-1].exit_code == 0 or len(recent) > allowed
            return
        assert len(recent) <= allowed
        (start,) = verdict.actions
        assert isinstance(start, Start)
        assert start.worker not in ids
        ids.add(start.worker)
        running = process(start.worker, started_at=now)
        assert plan(document, spec, (*lives, running), now).actions == ()
        now += length
        lives = (*lives, replace(running, exited_at=now, exit_code=code))
        used += lives[-1].counts


WORKERS = st.builds(lambda i, life: WorkerId(f"w{i}.{life}"), st.integers(0, 3), st.integers(1, 4))
PROCESSES = st.builds(
    lambda worker, exited, code, stopped, asked, failed: Process(
        worker,
        hash(worker) % 1000 + 1,
        0.0,
        exited_at=exited,
        exit_code=None if exited is None else code,
        stopped=stopped,
        asked_at=asked,
        failed=failed,
    ),
    WORKERS,
    st.none() | st.floats(0, 50),
    CODES,
    st.booleans(),
    st.none() | st.floats(0, 50),
    st.booleans(),
)
DOCUMENTS = st.none() | st.builds(
    lambda status, wanted, stop, places: replace(
        DOCUMENT,
        status=status,
        wanted=wanted,
        stop=stop,
        places=tuple({p.id: p for p in places}.values()),
    ),
    st.sampled_from(list(JobStatus)),
    st.integers(0, 4),
    st.sampled_from(["", "stopped", "interrupted"]),
    st.lists(st.builds(lambda w, s: Place(place_and_life(w)[0], w, s), WORKERS, st.sampled_from(list(LifeState)))),
)


@settings(deadline=None)
@given(
    document=DOCUMENTS,
    processes=st.lists(PROCESSES, unique_by=lambda p: p.worker, max_size=8).map(tuple),
    now=st.floats(50, 200),
    order=st.sampled_from(list(Order)),
)
def test_whatever_it_sees_a_plan_is_sound(document, processes, now, order):
    processes = observe(processes, document, Step(3), now)
    verdict = plan(document, SPEC, processes, now, order)
    living = {p.pid for p in processes if p.alive}
    filled = {place_and_life(p.worker)[0] for p in processes if p.alive}
    ids = {p.worker for p in processes} | {p.worker for p in (document.places if document else ())}
    for action in verdict.actions:
        match action:
            case Start(worker):
                assert order is Order.RUN
                assert document is None or not (document.status.final or document.stop)
                assert place_and_life(worker)[0] not in filled
                assert worker not in ids
            case Signal(pid, _) | Kill(pid):
                assert pid in living
    assert verdict.next_look is None or verdict.next_look > now
    if order is Order.KILL:
        assert {a.pid for a in verdict.actions} == living
