"""The example learns to read: real digits, no download, more than 95 % right on images that it has not seen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HANGS_S = 280  # a bound on hangs, not on speed
SCRIPT = Path(__file__).parents[2] / "examples" / "digits" / "train.py"


def train(folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        cwd=folder,
        env=os.environ | {"ORCH_SEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_epoch_ends_with_a_model_that_can_be_loaded(tmp_path: Path) -> None:
    said = train(tmp_path, "--epochs", "1", "--out", "small.pt")
    assert re.search(r"test accuracy \d+\.\d\d% after 12 steps; model in small\.pt", said)
    model = torch.load(tmp_path / "small.pt", weights_only=True)
    assert sum(tensor.numel() for tensor in model.values()) == 93_962


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_reads_more_than_95_percent_of_the_digits(tmp_path: Path) -> None:
    found = re.search(r"test accuracy (\d+\.\d+)%", train(tmp_path, "--epochs", "25"))
    assert found is not None
    assert float(found[1]) > 95
