import json
import os

import pytest

from orch_core.agent.report import (
    EventLog,
    Reporter,
    first_failure,
    read_failure,
    unburied,
    write_summary,
)
from orch_core.contracts import codec
from orch_core.contracts.document import Document, Event, Failure, LifeState, Place
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import place_and_life
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import Note, ProcessState
from orch_core.protocol.children import Process
from orch_core.protocol.outcome import summarize

SPEC = JobSpec(name="job", workers=2, seed=7, shards=6)


def document(*places, **more):
    rows = tuple(Place(place_and_life(worker)[0], worker, state) for worker, state in places)
    return Document(job=SPEC, started_at=100.0, places=rows, **more)


def dead(worker):
    return Process(worker, 10, 0.0, exited_at=1.0, exit_code=-9)


def test_a_death_is_repeated_until_the_document_shows_it():
    lives = (dead("w0.1"), Process("w0.2", 11, 2.0))
    assert unburied(lives, None) == lives
    assert unburied(lives, document(("w0.1", LifeState.MEMBER))) == lives
    assert unburied(lives, document(("w0.1", LifeState.GONE))) == lives[1:]
    assert unburied(lives, document(("w0.2", LifeState.STARTING))) == lives[1:]


def test_the_newest_life_of_a_place_is_always_told():
    """The leader reads the end of the job off it."""
    assert unburied((dead("w0.1"),), document(("w0.1", LifeState.GONE))) == (dead("w0.1"),)


def test_a_status_says_what_the_dead_have_left_behind():
    reporter = Reporter()
    note, failure = Note(3, 1, (5, 6)), Failure("w0.1", "script", "it broke")
    reporter.heard("w0.1", note, failure)
    frozen = Process("w1.1", 12, 0.0, stopped=True)
    first = reporter.status((dead("w0.1"), frozen), None, None, "")
    second = reporter.status((frozen,), None, failure, "interrupted")
    assert second.sequence > first.sequence
    assert second.stop == "interrupted"
    assert second.failure == failure
    died, stopped = first.processes
    assert (died.state, died.exit_code, died.note, died.failure) == (ProcessState.EXITED, -9, note, failure)
    assert stopped.state is ProcessState.STOPPED


def test_a_damaged_failure_record_is_none(tmp_path):
    (tmp_path / "failures").mkdir()
    assert read_failure(tmp_path, "w0.1") is None
    (tmp_path / "failures" / "w0.1.json").write_text("{")
    assert read_failure(tmp_path, "w0.1") is None
    failure = Failure("w0.1", "script", "it broke", at=3.0)
    (tmp_path / "failures" / "w0.1.json").write_bytes(codec.encode(failure))
    assert read_failure(tmp_path, "w0.1") == failure


def events(first, last):
    return tuple(Event(float(n), "view", f"event {n} ü") for n in range(first, last))


def test_each_event_is_written_once_and_a_gap_is_said(tmp_path):
    path, warned = tmp_path / "events.jsonl", []
    log = EventLog(path, warned.append)
    log.append(document(events=events(0, 3), events_total=3))
    log.append(document(events=events(0, 3), events_total=3))
    log.append(document(events=events(1, 5), events_total=5))
    log.append(document(events=events(8, 10), events_total=10))
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert texts == [*(f"event {n} ü" for n in range(5)), "3 events were not seen here", "event 8 ü", "event 9 ü"]
    assert warned == []


def test_a_full_disk_is_said_once(tmp_path):
    warned = []
    log = EventLog(tmp_path / "missing" / "events.jsonl", warned.append)
    log.append(document(events=events(0, 1), events_total=1))
    log.append(document(events=events(0, 2), events_total=2))
    assert len(warned) == 1
    assert "training goes on" in warned[0]


def test_an_unwritable_summary_is_one_sentence_with_the_path(tmp_path):
    told = summarize(SPEC, None, None, JobStatus.FINISHED, 100.0, 101.0)
    with pytest.raises(ConfigurationError, match=str(tmp_path / "nowhere")):
        write_summary(told, tmp_path / "nowhere" / "summary.json")
    write_summary(told, tmp_path / "summary.json")
    assert os.listdir(tmp_path) == ["summary.json"]


def test_the_first_failure_is_the_one_that_counts():
    early, late = Failure("w1.1", "script", "first", at=1.0), Failure("w0.1", "script", "second", at=2.0)
    assert first_failure(None, [late, early]) == early
    assert first_failure(document(failure=late), [early]) == late
    assert first_failure(document(), []) is None
