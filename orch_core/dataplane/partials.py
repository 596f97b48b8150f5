"""What this member holds of one round: sums at the maximal places of the canonical tree.

Siblings are added as soon as both are there, so L contributions take the memory of O(log V), and always left + right:
the bits do not depend on the order in which shards were computed.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from orch_core.contracts.errors import StrategyError
from orch_core.contracts.ids import Shard
from orch_core.dataplane.memory import empty
from orch_core.protocol.tree import Place, leaf, parent


class Partials:
    """Sums by place. Tensors are flat, contiguous, on the CPU, and all of one size and dtype."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._sums: dict[Place, Tensor] = {}
        self._own: set[Place] = set()  # sums in memory that nobody else looks at: may be added into

    @property
    def sums(self) -> dict[Place, Tensor]:
        return self._sums

    def add(self, shard: Shard, value: Tensor, *, reused: bool = False, given: bool = False) -> None:
        """Take a shard's contribution.

        It is kept by reference and never written to. `reused`: its memory will be overwritten, so copy what must be
        kept. `given`: nobody else uses it, so it may be added into.
        """
        place, mine = leaf(shard), given and not reused
        while (addition := parent(place, self._shards)) is not None:
            sibling = addition.right if place == addition.left else addition.left
            if sibling not in self._sums:
                break
            other = self._sums.pop(sibling)
            out = other if sibling in self._own else value if mine else empty(value.numel(), value.dtype)
            left, right = (value, other) if place == addition.left else (other, value)
            value = torch.add(left, right, out=out)
            self._own.discard(sibling)
            place, mine, reused = addition.place, True, False
        if reused:
            value, mine = empty(value.numel(), value.dtype).copy_(value), True
        self._sums[place] = value
        if mine:
            self._own.add(place)

    def keep(self, shards: Collection[Shard]) -> None:
        """Forget the places of other shards. Partials are indivisible: raises StrategyError for half a place."""
        for place in list(self._sums):
            wanted = sum(shard in shards for shard in range(place.lo, place.hi))
            if wanted == 0:
                del self._sums[place]
                self._own.discard(place)
            elif wanted < place.hi - place.lo:
                raise StrategyError(f"the partial of shards {place.lo} to {place.hi - 1} was dealt to two members")
