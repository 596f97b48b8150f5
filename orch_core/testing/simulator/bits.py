"""Bits compared by where they come from.

A contribution is (step, shard, the state it was computed from); a result is the set of contributions that were added;
State(s+1) is State(s) with the result of s. Equal origin is equal bits, because a step is deterministic.
"""

from dataclasses import dataclass
from typing import NamedTuple

from orch_core.contracts.ids import Shard, Step, WorkerId

Digest = int


class Contribution(NamedTuple):
    step: Step
    shard: Shard
    state: Digest


@dataclass(frozen=True, slots=True)
class Results:
    """What a member keeps of a step until the next one is applied. `stop` is no part of the bits."""

    step: Step
    digest: Digest
    stop: bool
    costs: tuple[int, ...] = ()  # by member
    asked: frozenset[tuple[WorkerId, int]] = frozenset()  # for whom all members capture the state behind it


class Bits:
    """Digests by origin, and what an undisturbed run has."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self._known: dict[tuple[object, ...], Digest] = {}
        self.first = self._digest(("state", 0))
        self._states = [self.first]

    def result(self, contributions: list[Contribution]) -> Digest:
        """Two of one shard are not the same as one: a shard that is added twice gives wrong bits."""
        return self._digest(("result", tuple(sorted(contributions))))

    def next(self, state: Digest, result: Digest) -> Digest:
        return self._digest(("next", state, result))

    def undisturbed_result(self, step: int) -> Digest:
        state = self.undisturbed(step)
        return self.result([Contribution(Step(step), Shard(v), state) for v in range(self.shards)])

    def undisturbed(self, step: int) -> Digest:
        """State(step) of a run without faults."""
        while len(self._states) <= step:
            self._states.append(self.next(self._states[-1], self.undisturbed_result(len(self._states) - 1)))
        return self._states[step]

    def _digest(self, origin: tuple[object, ...]) -> Digest:
        return self._known.setdefault(origin, len(self._known))
