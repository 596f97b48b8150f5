import json

import pytest

from orch_core.agent import folder as folders
from orch_core.cli import main, status
from orch_core.contracts.job import JobSpec
from orch_core.rpc import client

LIVE = {
    "version": 1,
    "job": "job",
    "status": "running",
    "step": 12,
    "leader": "c1",
    "term": 3,
    "quorum": True,
    "stale": False,
    "view": {"number": 2, "reason": "w1.1 was killed\x1b[2J by signal 9"},
    "coordinators": [{"id": "c1", "pid": 5, "address": "127.0.0.1:1", "role": "leader"}],
    "workers": [{"id": "w0.1", "pid": 7, "host": "h", "state": "member", "shards": [0, 1], "step": 12, "doing": ""}],
    "checkpoints": [],
    "means": {"loss": 0.5, "bad": None},
    "training": {"epochs": 2, "samples": 240, "batch_size": 24},
    "events": [{"text": "view 2"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    one = folders.claim(tmp_path, "job")
    one.describe(JobSpec(name="job"), 1)
    yield one
    one.close()


@pytest.fixture
def orch(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main.main(list(args))
        told = capsys.readouterr()
        return caught.value.code, told.out, told.err

    return run


def test_json_is_what_the_coordinators_say(folder, orch, monkeypatch):
    monkeypatch.setattr(client, "inspect", lambda addresses, token: LIVE)
    code, out, _ = orch("status", "--json")
    assert code == 0
    assert json.loads(out) == LIVE


@pytest.mark.parametrize("columns", ["20", "200"])
def test_people_see_a_small_screen_without_control_characters(folder, orch, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(client, "inspect", lambda addresses, token: LIVE)
    code, out, _ = orch("status")
    assert code == 0
    assert "job job: running, step 12 of 20" in out
    assert "\x1b" not in out
    assert out.isascii()


def test_a_job_without_quorum_says_what_that_means(folder, orch, monkeypatch):
    monkeypatch.setattr(client, "inspect", lambda addresses, token: {**LIVE, "quorum": False})
    assert "NO QUORUM: training goes on" in orch("status")[1]


def test_a_job_that_has_only_just_begun_is_starting(folder):
    told = status.read(folder.path)
    assert told["status"] == "starting"
    assert told["leader"] is None
    assert told["quorum"] is False
    assert told["coordinators"][0]["role"] == "unreachable"


def test_a_job_that_is_over_is_read_from_its_summary(folder, orch):
    (folder.path / "summary.json").write_text('{"status": "finished", "steps": 20, "views": [{"number": 3}]}')
    folder.close()
    told = json.loads(orch("status", "--json", "--job", "job")[1])
    assert told["status"] == "finished"
    assert told["step"] == 20
    assert told["view"] == {"number": 3}


def test_a_job_whose_agent_was_killed_says_so(folder, orch):
    folder.close()
    _, out, _ = orch("status", "--job", "job")
    assert "ended without a summary" in " ".join(out.split())


def test_a_job_that_trains_on_without_any_coordinator_is_running(folder):
    (folder.path / "events.jsonl").write_text("{}\n")
    told = status.read(folder.path)
    assert told["status"] == "running"
    assert told["stale"] is True
