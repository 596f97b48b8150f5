from dataclasses import replace
from itertools import pairwise

import pytest

from orch_core.contracts.document import Cause, Failure, Finished, LifeState, Training
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import AgentId, Shard, Step, Term, ViewNumber, WorkerId
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import AgentStatus, Note, Phase, ProcessReport, ProcessState, WorkerStatus
from orch_core.protocol.cluster import Observed, command, decide, first_document, hear, progress, took_over
from orch_core.protocol.evidence import GREET_S, SILENCE_S
from orch_core.protocol.views import BLAMELESS_MAX_S, BLAMELESS_S, START_PATIENCE_S

A, B, C = WorkerId("w0.1"), WorkerId("w1.1"), WorkerId("w2.1")
A2, B2, C2 = WorkerId("w0.2"), WorkerId("w1.2"), WorkerId("w2.2")
AGENT = AgentId("agent")
TRAINING = Training(1, 10, 1)


class Job:
    """A document, and everything that its leader has heard."""

    def __init__(self, workers=2, **spec):
        self.document = first_document(JobSpec("job", workers=workers, **spec), 1000.0)
        self.statuses, self.agents, self.now, self.sequence = {}, {}, 0.0, 0
        self.processes = {}

    def says(self, worker, phase=Phase.TRAINING, **more):
        self.sequence += 1
        status = WorkerStatus(worker, self.sequence, 1, "host", f"{worker}:1", phase, **more)
        self.statuses[worker] = hear(self.statuses.get(worker), status, self.now)
        return self

    def ready(self, *workers):
        for worker in workers:
            self.says(worker, Phase.READY)
            self.runs(worker)
        return self

    def runs(self, worker):
        return self.reports(worker, ProcessState.RUNNING)

    def dies(self, worker, code=-9, **more):
        return self.reports(worker, ProcessState.EXITED, exit_code=code, **more)

    def reports(self, worker, state, **more):
        self.processes[worker] = ProcessReport(worker, 1, state, **more)
        return self.agent()

    def agent(self, **more):
        self.sequence += 1
        status = AgentStatus(AGENT, self.sequence, "host", tuple(self.processes.values()), **more)
        self.agents[AGENT] = hear(self.agents.get(AGENT), status, self.now)
        return self

    @property
    def observed(self):
        return Observed(self.statuses, self.agents, 0.0)

    def decides(self, after=0.0):
        self.now += after
        self.again = None
        for _ in range(10):  # as the leader's loop: until there is nothing more to write
            decision = decide(self.document, self.observed, self.now, 1000.0 + self.now)
            self.again = decision.look_again_at
            if decision.document is None:
                return self
            assert decision.document.revision == self.document.revision + 1
            self.document = decision.document
        raise AssertionError("decide does not come to rest")

    def goes_on(self, *workers, applied=3, **more):
        """They say that they hold the state in the present view."""
        for worker in workers:
            number = self.view.number
            self.says(worker, applied=Step(applied), view=number, opened=number, opened_step=Step(applied + 1), **more)
        return self.decides()

    @property
    def view(self):
        return self.document.view

    @property
    def members(self):
        return self.document.view.workers if self.document.view else ()

    def places(self):
        return {p.worker: p.state for p in self.document.places}


def running(*workers, applied=3, **spec):
    """A formed view 1 in which all have applied some steps."""
    job = Job(len(workers), **spec).ready(*workers).decides()
    for worker in workers:
        job.says(worker, applied=Step(applied), view=ViewNumber(1), opened=ViewNumber(1))
    return job.decides()


def done(steps=10, digest="d"):
    return Finished(steps, digest, "w", {}, TRAINING)


def test_the_first_view_waits_for_all_wanted_workers():
    job = Job(2).ready(A).decides()
    assert job.view is None
    job.ready(B).decides()
    assert job.members == (A, B)
    assert (job.view.number, job.view.cause, job.document.formed) == (1, Cause.START, 1)


def test_the_first_view_goes_on_without_the_rest_after_a_while():
    job = Job(3, min_workers=2).ready(A, B).decides()
    assert job.again == pytest.approx(START_PATIENCE_S)
    assert job.decides(after=START_PATIENCE_S).members == (A, B)


def test_the_first_view_needs_the_least_number_of_workers():
    assert Job(3, min_workers=2).ready(A).decides(after=100.0).view is None


def test_a_certain_death_evicts_at_once():
    job = running(A, B).dies(A).decides()
    assert job.members == (B,)
    assert job.view.cause is Cause.DEATH
    assert "killed by signal 9" in job.view.reason
    assert job.places()[A] is LifeState.GONE


def test_a_death_is_known_under_a_new_leader_before_anybody_else_has_spoken():
    job = running(A, B)
    job.statuses.clear()
    job.document = took_over(job.document, Term(2), 1001.0)
    assert job.dies(B).decides().members == (A,)


def test_a_new_leader_counts_itself_and_says_so():
    document = took_over(took_over(first_document(JobSpec("job"), 0.0), Term(1), 0.0), Term(2), 1.0)
    assert (document.term, document.leader_changes, document.events[-1].kind) == (2, 1, "leader")


def test_the_next_life_joins_when_the_view_is_formed():
    job = running(A, B).dies(B).decides().goes_on(A)
    job.ready(B2).decides()
    assert job.members == (A, B2)
    assert job.view.cause is Cause.JOIN
    assert job.document.formed == 2
    job.says(B2, applied=Step(3), view=ViewNumber(3), opened=ViewNumber(3)).decides()
    assert job.document.formed == 3


def test_nobody_joins_a_view_that_is_not_formed():
    job = running(A, B).dies(B).decides()
    assert job.ready(B2).decides().members == (A,)
    job.goes_on(A)
    job.document = replace(job.document, wanted=3)
    job.ready(C).decides()
    assert job.members == (A, B2)


def test_a_later_life_proves_the_earlier_one_dead():
    job = running(A, B).ready(B2).decides()
    assert B in job.document.dead
    assert B not in job.members


def test_an_earlier_life_that_speaks_late_changes_nothing():
    job = running(A, B).ready(B2).decides()
    before = job.document
    assert job.says(B, view=ViewNumber(1)).decides().document == before


def test_restarts_are_counted_unless_evicted():
    job = running(A, B).dies(B).decides().ready(B2).decides()
    assert job.document.restarts == 1
    job = running(A, B).dies(B, code=75).decides().ready(B2).decides()
    assert job.document.restarts == 0


def test_a_life_that_gave_way_is_no_counted_restart_although_its_agent_forgets_it():
    job = running(A).says(B, Phase.FOLLOWING).dies(B, code=75).decides()
    assert job.places()[B] is LifeState.GONE
    del job.processes[B]  # written down, so it is reported no more
    job.ready(B2).decides()
    assert (job.places()[B2], job.document.restarts) == (LifeState.READY, 0)


def test_a_silent_member_is_evicted_after_a_while():
    job = running(A, B)
    job.reports(B, ProcessState.STOPPED).decides()
    job.now += SILENCE_S
    job.says(A, applied=Step(3), view=ViewNumber(1), opened=ViewNumber(1)).agent().decides()
    assert job.members == (A,)
    assert job.view.cause is Cause.SILENCE
    assert job.document.dead == ()
    assert job.places()[B] is LifeState.GONE


def test_a_busy_member_that_its_agent_sees_running_stays():
    job = running(A, B)
    job.now += SILENCE_S
    job.says(A, applied=Step(3), view=ViewNumber(1)).agent().decides()
    assert job.members == (A, B)


def test_if_only_silent_formed_members_are_left_nobody_goes():
    assert running(A, B).decides(after=100.0).members == (A, B)


def test_decide_says_when_to_look_again():
    job = running(A, B)
    job.reports(B, ProcessState.STOPPED).decides()
    assert job.again == pytest.approx(SILENCE_S)


def test_a_follower_joins_when_it_is_level():
    job = running(A, B).runs(C)
    job.document = replace(job.document, wanted=3, places=job.document.places)
    job.says(C, Phase.FOLLOWING, applied=Step(1)).decides()
    assert job.members == (A, B)
    assert job.says(C, Phase.READY, applied=Step(3)).decides().members == (A, B, C)
    assert job.view.joined == 1


def test_where_nobody_goes_on_a_follower_joins_as_it_is():
    job = running(A, B, min_workers=2).dies(B).decides().goes_on(A)
    job.says(B2, Phase.FOLLOWING).runs(B2).decides()
    assert job.members == (A, B2)


def test_a_follower_with_a_state_begins_anew_when_all_members_are_dead():
    job = running(A, B).dies(B).decides().goes_on(A)
    job.says(B2, Phase.FOLLOWING, applied=Step(2)).runs(B2).dies(A).decides()
    job.ready(A2).decides()
    assert job.members == (A2, B2)
    assert job.view.fresh


def complaint(job, worker, *peers):
    view = job.view.number
    return job.says(worker, applied=Step(3), view=view, unreachable=peers)


def test_of_a_pair_the_stopped_one_goes():
    job = running(A, B).reports(A, ProcessState.STOPPED)
    assert complaint(job, B, A).decides().members == (B,)


def test_of_a_pair_the_one_in_most_broken_pairs_goes():
    job = running(A, B, C)
    assert complaint(complaint(job, B, A), C, A).decides().members == (B, C)


def test_of_an_equal_pair_the_shorter_membership_goes():
    assert complaint(running(A, B), B, A).decides().members == (A,)


def joined(*joiners):
    """A was left alone, and these have joined it in a view that is not formed yet."""
    job = running(A, B, C).dies(B).dies(C).decides().goes_on(A).ready(*joiners).decides()
    assert job.members == (A, *joiners)
    return job


def test_one_whose_loss_leaves_no_formed_member_stays():
    job = joined(B2, C2)
    assert complaint(complaint(job, B2, A), C2, A).decides().members == (A,)


def test_who_has_just_missed_a_heartbeat_gets_the_time_to_speak():
    job = running(A, B)
    job.now += 0.8
    complaint(job, B, A).decides()
    assert job.members == (A, B)
    assert job.again == pytest.approx(1.0, abs=0.01)
    job.decides(after=0.21)
    assert job.members == (A, B)  # the accuser itself was away until just now
    assert job.again == pytest.approx(0.8 + GREET_S, abs=0.01)
    job.decides(after=GREET_S - 0.2)
    assert job.members == (B,)


def test_who_was_away_and_is_back_gets_the_time_to_be_greeted():
    job = joined(B2)
    number = job.view.number
    job.now += 1.5
    job.says(B2, view=number, unreachable=(A,))
    job.now += 0.1
    job.says(A, applied=Step(3), view=number, opened=ViewNumber(1)).decides()
    assert job.members == (A, B2)
    job.now += 0.2
    job.says(B2, view=number).decides(after=GREET_S)
    assert job.members == (A, B2)


def test_a_stale_one_that_must_stay_sends_nobody_away():
    job = joined(B2)
    job.now += 1.2
    job.says(B2, view=job.view.number, unreachable=(A,)).decides()
    assert job.members == (A, B2)


def broken(job, *workers, applied=3):
    number = job.view.number
    for worker in workers:
        job.says(worker, applied=Step(applied), view=number, opened=number, broken=number)
    return job.decides()


def test_a_broken_view_with_nobody_to_blame_is_followed_by_the_same_members():
    job = broken(running(A, B), A, B)
    assert job.view.number == 1
    assert job.decides(after=BLAMELESS_S).view.number == 2
    assert (job.members, job.view.cause) == ((A, B), Cause.BROKEN)


def test_views_that_break_in_a_row_are_replaced_ever_more_slowly():
    job, waited = running(A, B), []
    for _ in range(9):
        broken(job, A, B)
        waited.append(job.again - job.now)
        job.decides(after=waited[-1])
    assert waited[1] == pytest.approx(2 * waited[0])
    assert waited[-1] == pytest.approx(BLAMELESS_MAX_S)


def test_a_view_that_breaks_does_not_wait_longer_for_those_that_broke_long_before():
    job, waited = running(A, B), []
    for applied in range(3, 900, 100):
        broken(job, A, B, applied=applied)
        waited.append(job.again - job.now)
        job.decides(after=waited[-1])
        assert job.view.cause is Cause.BROKEN
        job.goes_on(A, B, applied=applied)
    assert max(waited) <= 2 * BLAMELESS_S + 1e-6


def test_a_death_explains_a_broken_view():
    job = broken(running(A, B), A).dies(B).decides()
    assert job.view.cause is Cause.DEATH


def test_who_asks_to_leave_is_left_out_if_another_holds_the_state():
    job = running(A, B)
    job.says(A, applied=Step(3), view=ViewNumber(1), leaving=True).decides()
    assert job.members == (B,)
    assert (job.view.cause, job.places()[A]) == (Cause.LEAVE, LifeState.LEAVING)
    job.says(B, applied=Step(3), view=ViewNumber(2), opened=ViewNumber(2)).decides()
    assert (job.document.formed, job.places()[A]) == (2, LifeState.GONE)
    job.says(B, applied=Step(3), view=ViewNumber(2), leaving=True).decides()
    assert job.members == (B,)
    assert job.places()[B] is LifeState.LEAVING


def test_leaving_is_no_failure_and_no_restart():
    job = running(A, B).says(A, applied=Step(3), view=ViewNumber(1), leaving=True).decides().goes_on(B)
    job.dies(A, code=0).decides().ready(A2).decides()
    assert job.members == (B, A2)
    assert [v.cause for v in job.document.views] == [Cause.START, Cause.LEAVE, Cause.JOIN]
    assert job.document.restarts == 0


def test_who_leaves_comes_back_if_the_others_die_before_they_have_said_that_they_hold_the_state():
    job = running(A, B)
    job.says(A, applied=Step(3), view=ViewNumber(1), leaving=True).decides()
    assert job.members == (B,)
    job.dies(B).decides()
    assert (job.members, job.view.fresh, job.view.cause) == ((A,), True, Cause.RESTART)
    job.goes_on(A, leaving=True)
    assert (job.document.formed, job.document.lost_steps) == (3, 0)
    assert job.places()[A] is LifeState.LEAVING


def test_who_has_not_spoken_in_a_view_with_one_that_came_back_is_not_sent_away():
    job = running(A, B, C)
    job.says(A, applied=Step(3), view=ViewNumber(1), leaving=True).dies(C).decides().ready(C2).decides()
    job.goes_on(B).decides()
    assert job.members == (B, C2)
    job = running(A, B).ready(C)
    job.document = replace(job.document, wanted=3)
    job.says(A, applied=Step(3), view=ViewNumber(1), leaving=True).decides()
    assert job.members == (B, C)
    job.dies(B).decides()
    assert job.members == (A, C)
    job.goes_on(A, leaving=True).reports(C, ProcessState.STOPPED)
    assert job.decides(after=SILENCE_S + 1).members == (A, C)
    job.says(C, applied=Step(9), view=job.view.number).agent().decides(after=0.1)
    assert job.dies(A, code=0).decides().members == (C,)
    assert not job.view.fresh


def test_if_all_leave_the_one_goes_first_whose_next_life_the_others_wait_for():
    job = running(A, B)
    job.document = command(job.document, "drain", {"worker": A, "replace": "yes"}, 0.0)
    job.document = command(job.document, "scale", {"workers": "1"}, 0.0)
    job.says(B, applied=Step(3), view=ViewNumber(1), leaving=True).decides()
    assert job.members == (A, B)
    job.says(A, applied=Step(3), view=ViewNumber(1), leaving=True).decides()
    assert job.members == (B,)
    job.goes_on(B, leaving=True).dies(A, code=0).ready(A2).decides()
    assert job.members == (B, A2)
    job.goes_on(A2, B, leaving=False).goes_on(B, leaving=True)
    assert job.members == (A2,)


def test_a_leaving_member_takes_no_seat_from_who_waits():
    job = running(A, B).dies(A).decides().goes_on(B)
    job.document = command(job.document, "scale", {"workers": "1"}, 0.0)
    job.decides()
    assert (job.members, job.places()[B]) == ((B,), LifeState.LEAVING)
    job.goes_on(B, leaving=True).ready(A2).decides()
    assert job.members == (B, A2)
    job.goes_on(A2, B, leaving=False).goes_on(B, leaving=True)
    assert job.members == (A2,)


def test_who_is_sent_away_before_it_is_a_member_has_not_failed():
    job = running(A).ready(B)
    job.document = replace(job.document, wanted=2, draining=(B,))
    assert job.decides().members == (A,)
    job.dies(B, code=-15).decides()
    assert job.places()[B] is LifeState.GONE
    assert job.document.draining == ()
    job.ready(B2).decides()
    assert (job.members, job.document.restarts) == ((A, B2), 0)
    assert "died" not in {e.kind for e in job.document.events}


def test_if_all_formed_members_are_dead_a_reported_holder_stays():
    job = running(A, B).dies(B).decides().goes_on(A).ready(B2).decides()
    job.says(B2, applied=Step(3), view=job.view.number).dies(A).decides()
    assert job.members == (B2,)
    assert not job.view.fresh


def test_if_nobody_reports_a_state_every_living_member_stays_in_a_fresh_view():
    job = running(A, B).dies(B).decides().goes_on(A).ready(B2).decides()
    job.says(B2, view=job.view.number).dies(A).decides()
    assert (job.members, job.view.fresh, job.view.cause) == ((B2,), True, Cause.RESTART)


def test_if_all_are_dead_the_next_lives_begin_anew_and_the_loss_is_counted():
    job = running(A, B, applied=7).dies(A).dies(B).decides()
    job.ready(A2, B2).decides()
    assert (job.members, job.view.fresh, job.view.at_step) == ((A2, B2), True, 8)
    assert job.document.formed == 1
    for worker in (A2, B2):
        job.says(worker, applied=Step(-1), view=job.view.number, opened=job.view.number, opened_step=Step(0))
    job.decides()
    assert (job.document.formed, job.document.lost_steps) == (job.view.number, 8)


def test_a_loss_is_not_counted_again_at_the_next_death():
    job = running(A, B, applied=7).dies(A).dies(B).decides().ready(A2, B2).decides()
    for worker in (A2, B2):
        number = job.view.number
        job.says(worker, applied=Step(0), view=number, opened=number, opened_step=Step(0))
    job.decides().dies(A2).decides()
    assert job.document.lost_steps == 8
    assert job.view.at_step == 1


def test_the_loss_is_counted_from_where_the_view_began():
    job = running(A, applied=7).dies(A).decides().ready(A2).decides()
    number = job.view.number
    job.says(A2, applied=Step(2), view=number, opened=number, opened_step=Step(0)).decides()
    assert job.document.lost_steps == 8


def test_fewer_than_the_least_number_of_workers_is_said():
    job = running(A, B, min_workers=2)
    assert job.document.status is JobStatus.RUNNING
    assert job.dies(B).decides().document.status is JobStatus.WAITING


# ---------------------------------------------------------------- the end


def finished(job, *workers, steps=10):
    for worker in workers:
        job.says(worker, Phase.DONE, applied=Step(steps - 1), view=job.view.number, done=done(steps))
    return job.decides()


def test_the_end_is_committed_when_all_members_are_done():
    job = finished(running(A, B), A)
    assert job.document.finished is None
    assert finished(job, B).document.finished == done()


def test_members_that_end_at_different_steps_have_not_ended():
    job = finished(running(A, B), A, steps=9)
    assert finished(job, B, steps=10).document.finished is None


def test_different_digests_at_the_end_are_a_failure():
    job = running(A, B)
    job.says(A, Phase.DONE, done=done(digest="one")).says(B, Phase.DONE, done=done(digest="other")).decides()
    assert job.document.status is JobStatus.FAILED
    assert "different states" in job.document.failure.message


def test_the_job_is_finished_when_every_process_has_ended():
    job = finished(running(A, B), A, B).dies(A, code=0).decides()
    assert job.document.ended == (A,)
    assert job.document.status is JobStatus.RUNNING
    assert job.dies(B, code=0).decides().document.status is JobStatus.FINISHED


def test_nobody_is_admitted_after_the_end():
    job = finished(running(A, B), A, B).dies(A, code=0).dies(B).decides()
    document = finished(running(A, B), A, B).dies(A, code=0).ready(B2).decides().document
    assert document.view.number == 1
    assert job.document.status is JobStatus.FINISHED


def test_if_all_die_behind_the_end_the_job_trains_again_exactly_that_far():
    job = finished(running(A, B), A, B).dies(A).dies(B).decides()
    assert (job.document.finished, job.document.end_at) == (None, 10)
    assert job.ready(A2, B2).decides().members == (A2, B2)


def test_who_started_too_late_for_the_end_does_not_keep_it():
    job = finished(running(A, B), A, B).ready(A2).dies(A).dies(B).decides()
    assert job.document.finished is None
    assert job.ready(B2).decides().members == (A2, B2)


@pytest.mark.parametrize("code", [0, 75])
def test_a_life_that_came_after_the_end_does_not_count_as_one_that_had_it(code):
    job = finished(running(A, B), A, B).dies(B).runs(B2).dies(B2, code=code).decides()
    assert job.document.ended == ()
    assert job.document.finished == done()
    job.dies(A).decides()
    assert (job.document.finished, job.document.end_at) == (None, 10)


def test_a_final_document_stays_as_it_is():
    job = finished(running(A), A).dies(A, code=0).decides()
    before = job.document
    assert job.ready(B).decides().document is before


@pytest.mark.parametrize(("how", "status"), [("stopped", JobStatus.STOPPED), ("interrupted", JobStatus.INTERRUPTED)])
def test_how_a_job_was_stopped_is_its_status(how, status):
    job = running(A).agent(stop=how).decides()
    assert job.document.stop == how
    assert finished(job, A).dies(A, code=0).decides().document.status is status


def test_a_job_that_is_stopped_before_it_began_ends_at_once():
    assert Job(2).ready(A).agent(stop="stopped").decides().document.status is JobStatus.STOPPED


def test_stop_is_a_command_and_is_carried_out_once():
    document = command(running(A).document, "stop", {}, 0.0)
    assert document.stop == "stopped"
    assert command(document, "stop", {"how": "interrupted"}, 0.0) is document


def test_an_unknown_command_is_refused():
    with pytest.raises(ConfigurationError, match="'dance'"):
        command(running(A).document, "dance", {}, 0.0)


# ---------------------------------------------------------------- failures


def test_the_first_failure_ends_the_job_and_is_the_one_that_is_kept():
    job = running(A, B)
    job.says(A, failure=Failure(A, "script", "later", at=2.0)).says(B, failure=Failure(B, "script", "first", at=1.0))
    job.decides()
    assert (job.document.status, job.document.failure.message) == (JobStatus.FAILED, "first")


def test_a_shard_that_kills_three_carriers_ends_the_job():
    job = running(A, B, C)
    note = Note(Step(4), Shard(2))
    job.dies(A, note=note).decides()
    assert job.document.failure is None
    job.dies(B, note=note).dies(C, note=note).decides()
    assert job.document.status is JobStatus.FAILED
    assert "shard 2 of step 4" in job.document.failure.message


def test_carriers_that_die_in_turn_are_told_and_counted_although_the_agent_has_replaced_them_at_once():
    job, note = running(A, B), Note(Step(4), Shard(2))
    lives = [WorkerId(f"w1.{life}") for life in range(1, 5)]
    for life, following in pairwise(lives):
        assert job.document.failure is None
        job.processes[life] = ProcessReport(life, 1, ProcessState.EXITED, exit_code=-9, note=note)
        job.runs(following).decides()  # one word of the agent about both
        job.goes_on(A).ready(following).decides()
        job.goes_on(A, following)
    assert job.document.failure.kind == "poison"
    assert "shard 2 of step 4" in job.document.failure.message
    assert [e.worker for e in job.document.events if e.kind == "died"] == lives[:3]


def test_deaths_on_different_shards_are_no_poison():
    job = running(A, B, C)
    for worker, shard in ((A, 0), (B, 1), (C, 2)):
        job.dies(worker, note=Note(Step(4), Shard(shard))).decides()
    assert job.document.failure is None


def test_members_that_leave_the_loop_after_different_steps_are_told_apart():
    job = running(A, B)
    job.says(A, applied=Step(4), left=Step(4)).says(B, applied=Step(4), entered=Step(5)).decides()
    assert (job.document.failure.kind, job.document.failure.exit_code) == ("configuration", 2)
    assert A in job.document.failure.message
    assert B in job.document.failure.message


def test_who_leaves_the_loop_first_is_not_blamed_while_others_finish_the_step():
    job = running(A, B)
    job.says(A, applied=Step(4), left=Step(4)).says(B, applied=Step(3), entered=Step(4)).decides()
    assert job.document.failure is None


def test_progress_is_that_of_the_most_advanced():
    job = running(A, B, applied=3)
    job.says(A, applied=Step(5), means={"loss": 1.0})
    shown = progress(job.document, job.observed)
    assert (shown.step, shown.means) == (6, {"loss": 1.0})
