"""Loads what a shard reads. Map-style data sets only: which samples a shard reads must not depend on who reads it.

With ``num_workers=0`` the script's process loads; otherwise processes of :mod:`orch_core.worker.pool` do, ahead of
time, for the shards that are dealt to this worker. Every sample is loaded under its own seed, and loading leaves the
script's generators as they were.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from orch_core.contracts.errors import ConfigurationError, LoopError
from orch_core.contracts.ids import Shard, Step
from orch_core.protocol.order import check_batch, epoch_order, shard_samples
from orch_core.worker.pool import Pool
from orch_core.worker.samples import Samples, Task
from orch_core.worker.seeds import Generators

AHEAD = 2  # tasks per loader process that are under way or done and not yet used
ORDERS_KEPT = 3
STEPS_KEPT = 8


class Loader:
    """The data set of a job, its order and who loads it."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int,
        shards: int,
        device: torch.device,
        shuffle: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.length = samples_in(dataset)
        check_batch(self.length, batch_size, shards)
        if type(num_workers) is not int or num_workers < 0:
            raise ConfigurationError(f"num_workers is {num_workers!r}: it is a number of processes, 0 for none")
        self.dataset = dataset
        self.batch_size = batch_size
        self._seed = seed
        self._shards = shards
        self._device = device
        self._shuffle = shuffle
        self._pin = pin_memory and torch.cuda.is_available()
        self._samples = Samples(dataset, collate_fn or default_collate, seed, num_workers)
        self._quiet = draws_nothing(dataset) and collate_fn is None
        self._fast = type(dataset) is TensorDataset and collate_fn is None and _is_plain(dataset)
        self._pool = Pool(self._samples, num_workers) if num_workers else None
        self._orders: dict[int, Any] = {}
        self._steps: dict[Step, tuple[list[int], list[int]]] = {}

    def same_as(self, dataset: Any, batch_size: int, shuffle: bool) -> bool:
        """Whether a later ``batches()`` call means the same samples."""
        same = dataset is self.dataset or samples_in(dataset) == self.length
        return same and batch_size == self.batch_size and shuffle == self._shuffle

    def task(self, step: Step, shard: Shard) -> Task:
        size = self.batch_size // self._shards
        indices, epochs = self._read_by(step)
        mine = slice(shard * size, (shard + 1) * size)
        return Task(step, shard, indices[mine], epochs[mine])

    def _read_by(self, step: Step) -> tuple[list[int], list[int]]:
        """What a whole step reads, shard after shard, and the epoch of each sample."""
        if step not in self._steps:
            while len(self._steps) >= STEPS_KEPT:
                del self._steps[min(self._steps)]
            size = {"samples": self.length, "batch_size": self.batch_size}
            indices = shard_samples(self._order, step, Shard(0), shards=1, **size).tolist()
            first = step * self.batch_size
            epochs = [(first + i) // self.length for i in range(self.batch_size)]
            self._steps[step] = (indices, epochs)
        return self._steps[step]

    def load(self, task: Task) -> Any:
        """What the collate function makes of a shard's samples, on the device."""
        if self._pool is not None:
            loaded = self._pool.take(task)
        elif self._fast:
            index = torch.tensor(task.indices)
            loaded = [tensor[index] for tensor in self.dataset.tensors]
        elif self._quiet:
            loaded = self._samples.load(task, seeded=False)
        else:
            generators = Generators.now()
            try:
                loaded = self._samples.load(task)
            finally:
                generators.put_back()
        return self._moved(loaded)

    def expect(self, wanted: Sequence[tuple[Step, Shard]]) -> None:
        """Load these ahead, in this order; whatever else was loaded or is waiting is dropped."""
        if self._pool is not None:
            self._pool.expect(wanted, self.task)

    @property
    def ahead(self) -> int:
        """How many shards to load ahead."""
        return 0 if self._pool is None else AHEAD * self._pool.size

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _order(self, epoch: int) -> Any:
        if epoch not in self._orders:
            while len(self._orders) >= ORDERS_KEPT:
                del self._orders[min(self._orders)]
            self._orders[epoch] = epoch_order(self._seed, epoch, self.length, shuffle=self._shuffle)
        return self._orders[epoch]

    def _moved(self, loaded: Any) -> Any:
        if self._pin:
            loaded = _map(loaded, lambda tensor: tensor.pin_memory())
        if self._device.type == "cpu":
            return loaded
        return _map(loaded, lambda tensor: tensor.to(self._device, non_blocking=self._pin))


def samples_in(dataset: Any) -> int:
    """The data set's length. Raises LoopError for what is not map-style."""
    if isinstance(dataset, IterableDataset):
        raise LoopError(
            f"{type(dataset).__name__} is an IterableDataset, which has no samples to number: batches() takes "
            f"map-style data sets only; give it __len__ and __getitem__, or read the stream into a list or files first"
        )
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise LoopError(
            "batches() takes the data set itself, not a DataLoader: pass loader.dataset, batch_size and so on"
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise LoopError(
            f"a {type(dataset).__name__} is no map-style data set: batches() needs one with __len__ and __getitem__"
        )
    return len(dataset)


def draws_nothing(dataset: Any) -> bool:
    """Whether reading a sample is known not to touch any generator, so that none need be seeded for it."""
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    return type(dataset) is TensorDataset


def _is_plain(dataset: TensorDataset) -> bool:
    return all(type(tensor) is torch.Tensor and tensor.layout == torch.strided for tensor in dataset.tensors)


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Tensors in what a collate function has returned."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = {key: _map(item, change) for key, item in value.items()}
        return changed if type(value) is dict else type(value)(changed)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_map(item, change) for item in value)
    return value
