"""What a step came to: enough for a member that is behind to finish it exactly as if its own rounds had ended.

Results of a step are kept until the next one is applied, so at most two steps' results exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Shard, Step
from orch_core.dataplane import barrier
from orch_core.dataplane.barrier import BarrierPart, Difference
from orch_core.dataplane.group import Blob


@dataclass(frozen=True, slots=True)
class Results:
    """One step's outcome, equal on all members. Tensors must not be changed."""

    step: Step
    shards: int  # V
    gradients: tuple[Tensor, ...]  # per bucket, flat: what the strategy returned
    rounds: Mapping[tuple[int, int], Tensor]  # (bucket, round) -> its result; buffers are buckets behind the last one
    parts: tuple[BarrierPart, ...]

    @property
    def means(self) -> dict[str, float]:
        """Canonical means of what the shards logged."""
        return barrier.means(self.parts, self.shards)

    @property
    def presence(self) -> int:
        """Bit i: parameter i of the layout had a gradient in some shard."""
        return barrier.presence(self.parts)

    @property
    def stop(self) -> bool:
        return barrier.stop(self.parts)

    @property
    def reset(self) -> tuple[Shard, ...]:
        """Shards whose strategy state was lost: the run is not bit-exact any more."""
        return barrier.reset(self.parts)

    @property
    def difference(self) -> Difference | None:
        """Where the members' State(step) differ, if this step was checked."""
        return barrier.difference(self.parts)

    @property
    def costs(self) -> tuple[int, ...]:
        """Per member what a pass costs it, in microseconds; 0: not known."""
        return tuple(part.cost for part in self.parts)

    @property
    def asked(self) -> tuple[tuple[str, int], ...]:
        """Followers, with the number of their attempt, for whom every member captures State(step + 1)."""
        return barrier.asked(self.parts)

    def encode(self) -> Blob:
        """The same on all members, byte for byte. A gradient that is a round's result is not sent twice."""
        tensors: list[Tensor] = []
        where: dict[int, int] = {}

        def place(tensor: Tensor) -> int:
            if id(tensor) not in where:
                where[id(tensor)] = len(tensors)
                tensors.append(tensor)
            return where[id(tensor)]

        header = {
            "version": 1,
            "step": self.step,
            "shards": self.shards,
            "rounds": [[bucket, index, place(tensor)] for (bucket, index), tensor in sorted(self.rounds.items())],
            "gradients": [place(tensor) for tensor in self.gradients],
            "parts": [barrier.encode(part) for part in self.parts],
        }
        return Blob(header, tensors)

    @classmethod
    def decode(cls, blob: Blob) -> "Results":
        """Raises MalformedMessage."""
        raw: Any = blob.header
        try:
            if raw["version"] != 1:
                raise MalformedMessage(f"results have version {raw['version']}; this program speaks version 1")
            return cls(
                step=Step(int(raw["step"])),
                shards=int(raw["shards"]),
                gradients=tuple(blob.tensors[int(index)] for index in raw["gradients"]),
                rounds={(int(bucket), int(index)): blob.tensors[int(at)] for bucket, index, at in raw["rounds"]},
                parts=tuple(barrier.decode(part) for part in raw["parts"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise MalformedMessage(f"a step's results cannot be read: {error!r}") from error
