"""The second example learns, on sources that are on every machine, and whoever computes it gets the same weights."""

import re
from pathlib import Path

import pytest
import torch

from orch_core.testing.live import Ended, LiveJob, run_job, run_plain

SCRIPT = Path(__file__).parents[2] / "examples" / "bytegpt" / "train.py"
SHORT = ("--size", "nano", "--megabytes", "0.12", "--sample", "40")
STEPS = 30


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("plain")
    return folder, run_plain(folder, SCRIPT, *SHORT)


def sha(ended: Ended) -> str:
    assert ended.code == 0, ended.output[-3000:]
    assert not ended.leftovers
    assert ended.summary is not None
    assert ended.summary["lost_steps"] == 0
    assert ended.summary["steps"] == STEPS
    return str(ended.summary["weights_sha256"])


def test_it_guesses_unseen_sources_far_better_than_chance(plain: tuple[Path, Ended]) -> None:
    folder, ended = plain
    sha(ended)
    found = re.search(r"never seen: (\d+\.\d+) bits per byte, (\d+\.\d+)%", ended.output)
    assert found is not None, ended.output
    assert float(found[1]) < 5.5  # 8 is what a coin with 256 sides needs
    assert float(found[2]) > 15
    assert re.search(rf"after {STEPS} steps it writes:\ndef ", ended.output)
    model = torch.load(folder / "bytegpt.pt", weights_only=True)
    assert model["head.weight"].equal(model["embed.weight"])


@pytest.mark.live
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_change_it(workers: int, tmp_path: Path, plain: tuple[Path, Ended]) -> None:
    assert sha(run_job(tmp_path, SCRIPT, *SHORT, workers=workers)) == sha(plain[1])


@pytest.mark.live
def test_a_killed_worker_does_not_change_it(tmp_path: Path, plain: tuple[Path, Ended]) -> None:
    with LiveJob(tmp_path, SCRIPT, *SHORT, env={"ORCH_FAILPOINTS": "contributed:9:kill@w1.1"}) as job:
        ended = job.finish()
    assert sha(ended) == sha(plain[1])
    assert ended.summary is not None
    assert ended.summary["recoveries"]
