"""Real jobs whose number of workers changes while they train: leaving and joining are no failures."""

import subprocess
import sys
from pathlib import Path

import pytest

from orch_core.testing.live import Ended, LiveJob, members, run_plain

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


def settled(job: LiveJob, count: int) -> set[str]:
    """Wait until `count` members train and no other worker's process is left; who they are."""

    def is_settled(status: dict) -> bool:  # type: ignore[type-arg]
        living = [w for w in status["workers"] if w["state"] != "gone"]
        return len(members(status)) == len(living) == count and status["formed"] == status["view"]["number"]

    status = job.wait(f"{count} workers", is_settled)
    gone = {w["pid"] for w in status["workers"] if w["state"] == "gone"}
    job.wait("the others' end", lambda _: not gone & set(job.processes()))
    return {w["id"] for w in members(status)}


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
            settled(job, count)
        order(job, "scale", "3")
        too_many = orch(job, "scale", "13")
        assert too_many.returncode == 2
        assert "--max-workers 12" in too_many.stderr
        unharmed(job.finish(), undisturbed)


def test_a_worker_is_drained_and_another_replaced(tmp_path: Path, undisturbed: str) -> None:
    with LiveJob(tmp_path, SMALL, workers=3, env={"PAUSE": "0.01", "EPOCHS": EPOCHS}) as job:
        job.wait_step(2)
        order(job, "drain", "w1")
        assert settled(job, 2) == {"w0.1", "w2.1"}
        order(job, "drain", "w0.1", "--replace")
        job.wait_out("w0.1")
        assert settled(job, 2) == {"w0.2", "w2.1"}
        nobody = orch(job, "drain", "w7")
        assert nobody.returncode == 2
        assert "'w7'" in nobody.stderr
        unharmed(job.finish(), undisturbed)


def test_sigterm_to_a_worker_is_leaving_and_a_new_life_follows(tmp_path: Path, undisturbed: str) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env={"PAUSE": "0.01", "EPOCHS": EPOCHS}) as job:
        job.wait_step(2)
        job.kill_worker("w1.1", sig=15)
        job.wait_out("w1.1")
        assert settled(job, 2) == {"w0.1", "w1.2"}
        unharmed(job.finish(), undisturbed)
