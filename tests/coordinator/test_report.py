"""What `orch status --json` prints."""

import json
from dataclasses import replace

from orch_core.contracts import codec
from orch_core.contracts.consensus import ConsensusStatus
from orch_core.contracts.document import Cause, Document, Event, LifeState, Place, View, ViewMember
from orch_core.contracts.ids import CoordinatorId, JobName, PlaceId, Shard, Step, Term, ViewNumber, WorkerId
from orch_core.contracts.job import CoordinatorAddress, JobFile, JobSpec, JobStatus
from orch_core.contracts.status import Progress, WorkerProgress
from orch_core.coordinator.report import EVENTS_SHOWN, status_json

W0 = WorkerId("w0.1")
SPEC = JobSpec(JobName("digits"))
ROWS = tuple(CoordinatorAddress(CoordinatorId(f"c{i}"), f"127.0.0.1:{i}") for i in range(3))
JOB = JobFile(JobName("digits"), 1, ROWS, "secret", SPEC, 0.0)
LEADER = ConsensusStatus(CoordinatorId("c0"), "leader", Term(3), CoordinatorId("c0"), quorum=True)
VIEW = View(ViewNumber(2), (ViewMember(W0, "127.0.0.1:9"),), Cause.DEATH, "w1.1 died", Step(40), 1.5)
DOCUMENT = Document(
    SPEC,
    0.0,
    JobStatus.RUNNING,
    places=(Place(PlaceId("w0"), W0, LifeState.MEMBER, "here", 42),),
    views=(VIEW,),
    views_total=2,
    events=tuple(Event(float(i), "view", "text") for i in range(40)),
)
PROGRESS = Progress(
    step=Step(57),
    means={"loss": 0.25, "bad": float("nan")},
    workers=(WorkerProgress(W0, 42, "here", "member", (Shard(0), Shard(1)), Step(57)),),
)


def test_the_leaders_answer_has_every_name_of_the_design() -> None:
    status = json.loads(codec.encode(status_json(JOB, 7, LEADER, DOCUMENT, PROGRESS)))
    assert (status["version"], status["job"], status["status"], status["step"]) == (1, "digits", "running", 57)
    assert (status["leader"], status["term"], status["quorum"], status["stale"]) == ("c0", 3, True, False)
    assert status["view"]["number"] == 2
    assert status["coordinators"][0] == {"id": "c0", "pid": 7, "address": "127.0.0.1:0", "role": "leader"}
    worker = {"id": "w0.1", "pid": 42, "host": "here", "state": "member", "shards": [0, 1], "step": 57}
    assert worker.items() <= status["workers"][0].items()
    assert status["checkpoints"] == []
    assert status["means"] == {"loss": 0.25, "bad": None}
    assert len(status["events"]) == EVENTS_SHOWN
    assert "secret" not in json.dumps(status)


def test_a_follower_answers_from_what_it_has_and_says_that_it_may_be_old() -> None:
    follower = replace(LEADER, id=CoordinatorId("c1"), role="follower")
    status = status_json(JOB, 7, follower, DOCUMENT, None)
    assert (status["stale"], status["step"], status["by"]) == (True, 40, "c1")
    assert [row["role"] for row in status["coordinators"]] == ["leader", "follower", "unknown"]
    assert [row["pid"] for row in status["coordinators"]] == [None, 7, None]
    assert status["workers"][0]["id"] == W0


def test_a_leader_without_a_quorum_is_stale() -> None:
    assert status_json(JOB, 7, replace(LEADER, quorum=False), DOCUMENT, PROGRESS)["stale"] is True


def test_before_the_first_document_the_job_is_starting() -> None:
    nobody = ConsensusStatus(CoordinatorId("c2"), "candidate", Term(1), None, quorum=False)
    status = status_json(JOB, 7, nobody, None, None)
    assert (status["status"], status["view"], status["workers"], status["leader"]) == ("starting", None, [], None)
