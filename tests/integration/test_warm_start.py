"""A job whose workers are forked trains the weights of one whose workers start as programs."""

import os
import signal
from pathlib import Path

import pytest

from orch_core.testing.live import LiveJob, members, run_job, run_plain

SMALL = Path(__file__).parents[1] / "scripts" / "small.py"

pytestmark = pytest.mark.live


def log(folder: Path) -> str:
    return (folder / "home" / "live" / "agent.log").read_text()


def nursery_of(job: LiveJob) -> int:
    def command(pid: int) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""

    return next(pid for pid in job.processes() if b"orch_core.worker.nursery" in command(pid))


def test_warm_and_cold_starts_and_plain_python_give_the_same_weights(tmp_path: Path) -> None:
    warm = run_job(tmp_path / "warm", SMALL, workers=2)
    cold = run_job(tmp_path / "cold", SMALL, workers=2, env={"ORCH_COLD_START": "1"})
    plain = run_plain(tmp_path / "plain", SMALL)
    assert warm.code == cold.code == plain.code == 0, warm.output + cold.output
    assert warm.summary and cold.summary and plain.summary
    assert len({run.summary["weights_sha256"] for run in (warm, cold, plain) if run.summary}) == 1
    assert "event=nursery-ready" in log(tmp_path / "warm")
    assert "event=cold-start" not in log(tmp_path / "warm")
    assert "nursery" not in log(tmp_path / "cold")


def test_a_killed_nursery_and_a_killed_worker_cost_no_step_and_no_bit(tmp_path: Path) -> None:
    env = {"PAUSE": "0.02", "EPOCHS": "4"}
    with LiveJob(tmp_path / "live", SMALL, workers=2, env=env) as job:
        status = job.wait_step(2)
        victim = members(status)[0]
        os.kill(nursery_of(job), signal.SIGKILL)
        job.kill(victim["pid"])
        ended = job.finish()
    assert ended.code == 0, ended.output
    assert not ended.leftovers
    plain = run_plain(tmp_path / "plain", SMALL, env=env)
    assert ended.summary and plain.summary
    assert ended.summary["lost_steps"] == 0
    assert ended.summary["weights_sha256"] == plain.summary["weights_sha256"]
