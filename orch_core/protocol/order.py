"""Which samples a shard reads: a pure function of (seed, step, shard), so there is no reader state to lose.

Epoch e's order is the stable argsort of N raw 64-bit words of the Philox bit generator keyed (seed, e). numpy
guarantees the streams of its bit generators, not those of ``Generator``'s methods. Step s reads positions
[s*B, (s+1)*B) of the concatenated epochs, shard v the v-th slice of B/V of them.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import Shard, Step

Indices = npt.NDArray[np.int64]
EpochOrder = Callable[[int], Indices]

_WORD = 2**64


def epoch_order(seed: int, epoch: int, samples: int, *, shuffle: bool = True) -> Indices:
    """The order of epoch `epoch`: int64 of shape (samples,)."""
    if not shuffle:
        return np.arange(samples, dtype=np.int64)
    key = np.array([seed % _WORD, epoch], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(samples)
    return np.argsort(words, kind="stable").astype(np.int64)


def shard_samples(
    order: EpochOrder, step: Step, shard: Shard, *, samples: int, batch_size: int, shards: int
) -> Indices:
    """Sample indices of one shard of one step: int64 of shape (batch_size / shards,). A batch may straddle epochs."""
    size = batch_size // shards
    position = step * batch_size + shard * size
    parts = []
    while size:
        epoch, offset = divmod(position, samples)
        part = order(epoch)[offset : offset + size]
        parts.append(part)
        size -= len(part)
        position += len(part)
    return np.concatenate(parts)


def epoch_of(step: Step, *, samples: int, batch_size: int) -> int:
    """The epoch in which a step begins, and so the one whose loop yields it."""
    return step * batch_size // samples


def first_step(epoch: int, *, samples: int, batch_size: int) -> Step:
    """The first step that begins in `epoch` or later."""
    return Step(-(-epoch * samples // batch_size))


def check_batch(samples: int, batch_size: int, shards: int) -> None:
    """Raise ConfigurationError for sizes that cannot be cut into equal shards."""
    if samples < 1:
        raise ConfigurationError("the data set is empty: give batches() one with at least one sample")
    if batch_size < 1:
        raise ConfigurationError(
            f"batch_size is {batch_size}: it is the size of the global batch and must be at least 1"
        )
    if batch_size % shards:
        near = max(shards, round(batch_size / shards) * shards)
        raise ConfigurationError(
            f"batch_size {batch_size} cannot be cut into {shards} equal shards: "
            f"use a multiple of {shards}, {near} say, or another --shards"
        )
