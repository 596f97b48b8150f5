"""A worker that is slow carries fewer shards, and no bit of the weights knows it."""

from pathlib import Path

import pytest

from orch_core.testing.live import LiveJob, run_plain

SMALL = Path(__file__).parents[1] / "scripts" / "small.py"
ENV = {"EPOCHS": "12", "PAUSE": "0.004"}
SLOW = {**ENV, "SLOW_PLACE": "w1"}

pytestmark = pytest.mark.live


def shards_of(status, place):
    return next((len(w["shards"]) for w in status["workers"] if w["id"].startswith(f"{place}.")), None)


def test_a_slow_worker_carries_fewer_shards_and_changes_no_bit(tmp_path: Path) -> None:
    plain = run_plain(tmp_path / "plain", SMALL, env=ENV)
    assert plain.summary is not None
    with LiveJob(tmp_path / "job", SMALL, workers=3, env=SLOW) as job:
        job.wait("a lighter deal for w1", lambda s: (n := shards_of(s, "w1")) is not None and 0 < n < 4)
        ended = job.finish()
    assert ended.code == 0, ended.output[-3000:]
    assert ended.summary is not None
    assert ended.summary["weights_sha256"] == plain.summary["weights_sha256"]
    assert ended.summary["views"][-1]["number"] == 1


def test_an_equal_deal_stays_equal(tmp_path: Path) -> None:
    with LiveJob(tmp_path, SMALL, workers=3, env=SLOW, options=["--deal", "equal"]) as job:
        job.wait_step(30)
        assert shards_of(job.status(), "w1") == 4
        assert job.finish().code == 0
