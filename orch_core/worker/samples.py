"""Reading and collating one shard's samples, each under a seed of its own. Runs in whatever process loads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orch_core.contracts.ids import Shard, Step
from orch_core.worker.seeds import sample_seed, seed_of, seed_sample


@dataclass(frozen=True, slots=True)
class Task:
    """What one shard of one step reads: sample indices, and the epoch that each belongs to."""

    step: Step
    shard: Shard
    indices: list[int]
    epochs: list[int]


class Samples:
    """A data set and how its samples become a batch."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], seed: int, num_workers: int) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self.seed = seed
        self._collate = collate

    def load(self, task: Task, *, seeded: bool = True) -> Any:
        """Exceptions of the data set carry a note that names the sample."""
        items = []
        for index, epoch in zip(task.indices, task.epochs, strict=True):
            if seeded:
                seed_sample(sample_seed(self.seed, epoch, index))
            try:
                items.append(self.dataset[index])
            except Exception as error:
                error.add_note(f"(sample {index} of the data set, read for step {task.step}, shard {task.shard})")
                raise
        if seeded:
            seed_sample(seed_of("collate", self.seed, task.step, task.shard))
        return self._collate(items)
