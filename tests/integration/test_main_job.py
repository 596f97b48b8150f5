"""Real jobs, undisturbed: one set of weights whatever the number of workers, and clean ends."""

import json
from pathlib import Path

import pytest

from orch_core.testing.live import Ended, LiveJob, run_job, run_plain

SMALL = Path(__file__).parents[1] / "scripts" / "small.py"

pytestmark = pytest.mark.live


def sha(ended: Ended) -> str:
    assert ended.code == 0, ended.output[-3000:]
    assert not ended.leftovers
    assert ended.summary is not None
    assert ended.summary["lost_steps"] == 0
    return str(ended.summary["weights_sha256"])


def test_the_number_of_workers_does_not_change_the_weights(tmp_path: Path) -> None:
    hashes = {n: sha(run_job(tmp_path / f"w{n}", SMALL, workers=n)) for n in (1, 2, 3, 5)}
    hashes[0] = sha(run_plain(tmp_path / "plain", SMALL))
    assert len(set(hashes.values())) == 1, hashes


def test_loader_processes_do_not_change_the_weights(tmp_path: Path) -> None:
    with_loaders = sha(run_job(tmp_path / "a", SMALL, workers=2, env={"LOADERS": "2"}))
    assert with_loaders == sha(run_plain(tmp_path / "b", SMALL))


def test_a_seed_and_the_number_of_shards_do_change_the_weights(tmp_path: Path) -> None:
    base = sha(run_plain(tmp_path / "a", SMALL))
    assert base != sha(run_plain(tmp_path / "b", SMALL, seed=8))
    assert base != sha(run_plain(tmp_path / "c", SMALL, shards=6))


def test_the_summary_says_what_happened(tmp_path: Path) -> None:
    ended = run_job(tmp_path, SMALL, workers=2)
    sha(ended)
    summary = ended.summary
    assert summary is not None
    json.dumps(summary, allow_nan=False)
    assert summary["version"] == 1
    assert summary["status"] == "finished"
    assert summary["steps"] == 15
    assert summary["samples"] == 720
    assert summary["epochs"] == 3
    assert summary["shards"] == 12
    assert summary["seed"] == 7
    assert summary["bit_exact"] is True
    assert summary["recoveries"] == []
    assert summary["restarts"] == 0
    assert [v["number"] for v in summary["views"]] == [1]
    assert set(summary["final"]) == {"loss"}
    assert "THE END" in ended.output


def test_status_names_the_leader_the_view_and_every_process(tmp_path: Path) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env={"PAUSE": "0.02", "EPOCHS": "10"}) as job:
        status = job.wait_step(3)
        assert status["version"] == 1
        assert status["status"] == "running"
        assert status["quorum"] is True
        assert status["stale"] is False
        assert status["leader"] in {"c0", "c1", "c2"}
        assert sorted(c["role"] for c in status["coordinators"]) == ["follower", "follower", "leader"]
        assert [w["id"] for w in status["workers"]] == ["w0.1", "w1.1"]
        assert sorted(v for w in status["workers"] for v in w["shards"]) == list(range(12))
        sha(job.finish())


def test_one_coordinator_is_enough(tmp_path: Path) -> None:
    sha(run_job(tmp_path, SMALL, workers=1, options=["--coordinators", "1"]))
