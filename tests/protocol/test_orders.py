"""What a person may ask of a running job, and what is refused."""

from dataclasses import replace

import pytest

from orch_core.contracts.document import Cause, Document, Finished, LifeState, Place, Training, View, ViewMember
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import Step, ViewNumber, WorkerId, place_and_life
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.protocol.cluster import Observed, command, progress


def job(*workers, low=1, high=5):
    spec = JobSpec("job", workers=len(workers), min_workers=low, max_workers=high)
    places = tuple(Place(place_and_life(w)[0], WorkerId(w), LifeState.MEMBER) for w in workers)
    view = View(ViewNumber(1), tuple(ViewMember(w, "") for w in workers), Cause.START, "start", Step(0), 0.0)
    return Document(spec, 0.0, JobStatus.RUNNING, None, len(workers), (), (), places, (view,), 1, workers)


def asked(document, name, **args):
    return command(document, name, args, 0.0)


def scaled(document, *numbers):
    for number in numbers:
        document = asked(document, "scale", workers=str(number))
    return document


def refused(document, name, **args):
    with pytest.raises(ConfigurationError) as caught:
        asked(document, name, **args)
    return str(caught.value)


def test_scaled_down_the_highest_places_leave():
    document = scaled(job("w0.1", "w1.2", "w2.1"), 1)
    assert document.seats == ("w0",)
    assert document.draining == ("w1.2", "w2.1")
    assert document.events[-1].text == "scaled from 3 to 1"


def test_scaled_up_the_lowest_empty_places_are_wanted():
    assert scaled(job("w0.1"), 4).seats == ("w0", "w1", "w2", "w3")


def test_who_was_told_to_leave_leaves_even_if_its_place_is_wanted_again():
    document = scaled(job("w0.1", "w1.1"), 1, 2)
    assert document.seats == ("w0", "w1")
    assert document.sends_away("w1.1")
    assert not document.sends_away("w1.2")


def test_a_drained_place_stays_empty_until_more_workers_are_wanted():
    document = asked(job("w0.1", "w1.1", "w2.1"), "drain", worker="w1.1")
    assert (document.wanted, document.seats, document.draining) == (2, ("w0", "w2"), ("w1.1",))
    assert scaled(document, 1).seats == ("w0",)
    assert scaled(document, 3).seats == ("w0", "w1", "w2")
    assert scaled(document, 1, 2).seats == ("w0", "w1")


def test_who_has_left_for_good_is_not_shown_and_who_is_replaced_has_no_pid():
    document = asked(job("w0.1", "w1.1", "w2.1"), "drain", worker="w1.1")
    gone = tuple(replace(p, state=LifeState.GONE, pid=7, why="has left") for p in document.places)
    shown = progress(replace(document, places=gone), Observed()).workers
    assert [(w.id, w.pid, w.doing) for w in shown] == [("w0.1", None, "has left"), ("w2.1", None, "has left")]


def test_a_worker_that_is_replaced_leaves_its_place_wanted():
    document = asked(job("w0.1", "w1.1"), "drain", worker="w1.1", replace="yes")
    assert (document.wanted, document.seats, document.draining) == (2, ("w0", "w1"), ("w1.1",))


@pytest.mark.parametrize(
    ("name", "args"),
    [("scale", {"workers": "2"}), ("drain", {"worker": "w1.1"}), ("evict", {"worker": "w1.1"})],
)
def test_an_order_that_arrives_twice_is_carried_out_once(name, args):
    once = asked(job("w0.1", "w1.1", "w2.1"), name, **args)
    assert asked(once, name, **args) == once


def test_an_order_about_an_earlier_life_is_carried_out_already():
    document = job("w0.1", "w1.3")
    assert asked(document, "drain", worker="w1.2", replace="yes") == document
    assert asked(document, "evict", worker="w1.2") == document


def test_who_is_evicted_is_certainly_dead():
    document = asked(job("w0.1", "w1.1"), "evict", worker="w1")
    assert document.dead == ("w1.1",)
    assert document.wanted == 2


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("6", ("6 is more than", "--max-workers 5")),
        ("1", ("1 is less than", "--min-workers 2")),
        ("two", ("'two'",)),
        ("", ("''",)),
    ],
)
def test_a_number_out_of_bounds_is_refused(number, words):
    said = refused(job("w0.1", "w1.1", low=2), "scale", workers=number)
    assert all(word in said for word in words)


@pytest.mark.parametrize("name", ["drain", "evict"])
@pytest.mark.parametrize("worker", ["w7", "w1.9", "c0", "", "w1.1\x1b"])
def test_a_worker_that_never_was_is_refused_and_the_others_are_named(name, worker):
    assert "w0.1, w1.1" in refused(job("w0.1", "w1.1"), name, worker=worker)


def test_nobody_is_drained_below_the_least_number_of_workers():
    document = job("w0.1", "w1.1", low=2)
    said = refused(document, "drain", worker="w1.1")
    assert "--min-workers is 2" in said
    assert "--replace" in said
    assert asked(document, "drain", worker="w1.1", replace="yes").wanted == 2


@pytest.mark.parametrize("replaced", ["yes", "no"])
def test_the_last_member_with_the_state_cannot_leave(replaced):
    one_left = replace(job("w0.1", "w1.1"), dead=("w0.1",))
    assert "the state" in refused(one_left, "drain", worker="w1.1", replace=replaced)
    one_leaves = asked(job("w0.1", "w1.1"), "drain", worker="w0.1", replace="yes")
    assert "the state" in refused(one_leaves, "drain", worker="w1.1", replace=replaced)


@pytest.mark.parametrize("name", ["scale", "drain", "evict"])
def test_after_the_end_it_is_too_late(name):
    document = job("w0.1", "w1.1")
    finished = Finished(3, "d", "w", {}, Training(1, 3, 1))
    for over in (replace(document, finished=finished), replace(document, status=JobStatus.STOPPED)):
        assert f"too late to {name}" in refused(over, name, workers="1", worker="w1.1")


def test_while_the_job_ends_only_the_dead_are_buried():
    ending = replace(job("w0.1", "w1.1"), stop="stopped")
    assert "too late" in refused(ending, "scale", workers="1")
    assert "too late" in refused(ending, "drain", worker="w1.1")
    assert asked(ending, "evict", worker="w1.1").dead == ("w1.1",)
