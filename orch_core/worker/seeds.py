"""Where random numbers come from.

Before each pass and each outer body all generators that a script reaches for without thinking (torch's, numpy's,
Python's) start from a number that depends on the job's seed and on what is computed, never on who computes it. So
dropout follows the shard, not the worker.

``seed_of`` is the first 8 bytes of a SHA-256, big-endian. torch takes it whole, Python's ``random`` too, and numpy's
legacy generator, which takes 32 bits, its higher half.
"""

import hashlib
import random
import sys
from typing import Any, NamedTuple

import numpy as np
import torch

from orch_core.contracts.ids import Shard, Step

VERSION = 1


def seed_of(*parts: object) -> int:
    """``seed_of("pass", 7, 3, 4)``: 0 .. 2**64 - 1, from ``orch/1/pass/7/3/4``."""
    text = "/".join(map(str, ("orch", VERSION, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def pass_seed(seed: int, step: Step, shard: Shard) -> int:
    return seed_of("pass", seed, step, shard)


def step_seed(seed: int, step: Step) -> int:
    """Of the outer body of a step."""
    return seed_of("step", seed, step)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Of the augmentation of one sample."""
    return seed_of("sample", seed, epoch, index)


def seed_all(value: int, own: torch.Generator | None = None) -> None:
    """torch (CPU and devices), numpy, random and, if given, ``run.generator``.

    Not ``torch.manual_seed``: it takes 100 us, because it looks for every backend that torch knows.
    """
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
    np.random.seed(value >> 32)
    random.seed(value)
    if own is not None:
        own.manual_seed(value)


def seed_sample(value: int) -> None:
    """As :func:`seed_all`, on the CPU alone: loading a sample touches no device."""
    torch.default_generator.manual_seed(value)
    np.random.seed(value >> 32)
    random.seed(value)


class Generators(NamedTuple):
    """The state of this process's global generators on the CPU."""

    torch: torch.Tensor
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> "Generators":
        return cls(torch.default_generator.get_state(), np.random.get_state(), random.getstate())

    def put_back(self) -> None:
        torch.default_generator.set_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def fingerprint(device: torch.device) -> str:
    """What the bits of this process's kernels depend on. Members of one job must agree in it."""
    parts = [
        f"torch {torch.__version__}",
        f"numpy {np.__version__}",
        f"python {sys.version_info[0]}.{sys.version_info[1]}",
    ]
    parts.append(f"cpu {torch.backends.cpu.get_cpu_capability()}")
    if device.type == "cuda":
        parts.append(f"{torch.cuda.get_device_name(device)} cuda {torch.version.cuda}")
    return ", ".join(parts)
