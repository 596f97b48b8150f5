"""Real jobs whose number of workers changes while they train: leaving and joining are no failures."""

import subprocess
import sys
from pathlib import Path

import pytest

from orch_core.testing.live import Ended, LiveJob, run_plain

SMALL = Path(__file__).parents[1] / "scripts" / "small.py"
EPOCHS = "60"  # ends long after the last of what is done to it

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    ended = run_plain(tmp_path_factory.mktemp("plain"), SMALL, env={"EPOCHS": EPOCHS})
    assert ended.summary is not None
    return str(ended.summary["weights_sha256"])


def orch(job: LiveJob, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orch_core.cli.main", *argv, "--job", job.name]
    return subprocess.run(command, env=job.env, capture_output=True, text=True, timeout=60, check=False)


def order(job: LiveJob, *argv: str) -> None:
    done = orch(job, *argv)
    assert done.returncode == 0, done.stderr


def unharmed(ended: Ended, expected: str) -> None:
    assert ended.code == 0, ended.output[-3000:]
    assert not ended.leftovers
    assert ended.summary is not None
    assert ended.summary["lost_steps"] == 0
    assert ended.summary["recoveries"] == []
    assert ended.summary["restarts"] == 0
    assert ended.summary["weights_sha256"] == expected


def test_scaled_up_and_down_while_it_trains(tmp_path: Path, undisturbed: str) -> None:
    with LiveJob(tmp_path, SMALL, workers=1, env={"PAUSE": "0.01", "EPOCHS": EPOCHS}) as job:
        job.wait_step(2)
        for count in (4, 2, 3):
            order(job, "scale", str(count))
            job.wait_settled(count)
        order(job, "scale", "3")
        too_many = orch(job, "scale", "13")
        assert too_many.returncode == 2
        assert "--max-workers 12" in too_many.stderr
        unharmed(job.finish(), undisturbed)


def test_scaled_five_times_in_a_row_it_ends_with_the_wanted_number_each_time(tmp_path: Path, undisturbed: str) -> None:
    gate = tmp_path / "gate"
    env = {"PAUSE": "0.02", "EPOCHS": EPOCHS, "GATE": str(gate), "CRAWL_AT": "250"}
    with LiveJob(tmp_path, SMALL, workers=1, env=env) as job:
        job.wait_step(2)
        for count in (1, 4, 2, 3) * 5:
            order(job, "scale", str(count))
            assert len(job.wait_settled(count)) == count
        gate.touch()
        unharmed(job.finish(), undisturbed)


def test_a_worker_is_drained_and_another_replaced(tmp_path: Path, undisturbed: str) -> None:
    with LiveJob(tmp_path, SMALL, workers=3, env={"PAUSE": "0.01", "EPOCHS": EPOCHS}) as job:
        job.wait_step(2)
        order(job, "drain", "w1")
        assert job.wait_settled(2) == {"w0.1", "w2.1"}
        order(job, "drain", "w0.1", "--replace")
        job.wait_out("w0.1")
        assert job.wait_settled(2) == {"w0.2", "w2.1"}
        nobody = orch(job, "drain", "w7")
        assert nobody.returncode == 2
        assert "'w7'" in nobody.stderr
        unharmed(job.finish(), undisturbed)


def test_sigterm_to_a_worker_is_leaving_and_a_new_life_follows(tmp_path: Path, undisturbed: str) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env={"PAUSE": "0.01", "EPOCHS": EPOCHS}) as job:
        job.wait_step(2)
        job.kill_worker("w1.1", sig=15)
        job.wait_out("w1.1")
        assert job.wait_settled(2) == {"w0.1", "w1.2"}
        unharmed(job.finish(), undisturbed)
