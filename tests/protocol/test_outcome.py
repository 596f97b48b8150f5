"""One rule for what a job came to, under orch run and under plain Python."""

import json

import pytest

from orch_core.contracts.document import Document, Event, Finished, Training
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import Progress
from orch_core.protocol.outcome import summarize, summary_json

SPEC = JobSpec(name="job", workers=2, seed=7, shards=6)


def test_the_summary_of_a_finished_job_counts_what_filled_the_last_step():
    finished = Finished(26, "d", "abc", {"loss": float("nan")}, Training(3, 101, 12))
    ended = (Event(120.0, "finished", ""),)
    done = Document(SPEC, 100.0, finished=finished, restarts=2, leader_changes=1, events=ended, first_step_at=105.0)
    told = summarize(SPEC, done, Progress(), JobStatus.FINISHED, 100.0, 130.0)
    assert (told.steps, told.epochs, told.samples, told.fill) == (26, 3, 312, 9)
    assert (told.wall_s, told.first_step_s, told.steps_per_s) == (30.0, 5.0, round(25 / 15, 3))
    assert (told.restarts, told.leader_changes, told.seed, told.shards) == (2, 1, 7, 6)
    raw = json.loads(summary_json(told), parse_constant=pytest.fail)
    assert raw["final"] == {"loss": None}
    assert raw["version"] == 1


def test_a_job_that_never_had_a_document_has_a_summary():
    told = summarize(SPEC, None, None, JobStatus.INTERRUPTED, 100.0, 101.0)
    assert (told.status, told.steps, told.weights_sha256, told.views) == ("interrupted", 0, None, ())
    json.loads(summary_json(told))


def test_a_stopped_job_counts_whole_epochs():
    progress = Progress(step=10, training=Training(5, 24, 12))
    told = summarize(SPEC, Document(SPEC, 100.0), progress, JobStatus.STOPPED, 100.0, 101.0)
    assert (told.steps, told.epochs, told.samples, told.fill) == (10, 5, 120, 0)
