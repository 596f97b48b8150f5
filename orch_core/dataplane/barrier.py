"""The barrier: the last exchange of every step, in which every member tells what its shards did.

Whatever a step decides is decided by pure functions of *all* parts, so every member decides alike. A part is sent only
from inside its step; so who has applied a step knows that every member has finished the one before.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Shard, Step
from orch_core.protocol.tree import combine, leaf


@dataclass(frozen=True, slots=True)
class BarrierPart:
    """One member's word."""

    member: int  # its index in the view
    shards: tuple[Shard, ...]  # that it carried
    logged: Mapping[Shard, Mapping[str, float]] = field(default_factory=dict)
    presence: int = 0  # bit i: parameter i of the layout had a gradient in one of its shards
    stop: bool = False
    left: Step | None = None  # the outer loop was left by `break` after this step
    digests: tuple[int, ...] | None = None  # crc32 of each tensor of State(step), when this step is checked
    reset: tuple[Shard, ...] = ()  # shards whose strategy state was lost
    cost: int = 0  # of one of its passes, microseconds; 0: not known
    asked: tuple[tuple[str, int], ...] = ()  # who follows and wants State(step + 1), and the number of its attempt


@dataclass(frozen=True, slots=True)
class Difference:
    """States that drifted apart."""

    index: int | None  # of the first digest that differs; None: they differ in number
    groups: tuple[tuple[int, ...], ...]  # members that agree with each other, largest group first


Parts = Sequence[BarrierPart]


def means(parts: Parts, shards: int) -> dict[str, float]:
    """Per name the canonical sum, in float64, over the shards that logged it, times 1/count. NaN and inf pass."""
    by_name: dict[str, dict[Shard, float]] = {}
    for shard, values in sorted((item for part in parts for item in part.logged.items()), key=lambda item: item[0]):
        for name, value in values.items():
            by_name.setdefault(name, {})[shard] = value
    return {name: _mean(values, shards) for name, values in sorted(by_name.items())}


def presence(parts: Parts) -> int:
    """Bit i: parameter i had a gradient in some shard."""
    bits = 0
    for part in parts:
        bits |= part.presence
    return bits


def stop(parts: Parts) -> bool:
    return any(part.stop for part in parts)


def reset(parts: Parts) -> tuple[Shard, ...]:
    """All shards whose strategy state was lost in this step."""
    return tuple(sorted(shard for part in parts for shard in part.reset))


def asked(parts: Parts) -> tuple[tuple[str, int], ...]:
    """Followers whose wish for a state has reached every member: all capture State(step + 1) for them."""
    everywhere = set(parts[0].asked)
    for part in parts[1:]:
        everywhere &= set(part.asked)
    return tuple(sorted(everywhere))


def uncovered(parts: Parts, shards: int) -> tuple[int, ...]:
    """Shards that not exactly one member has carried. Always empty, unless orch has an error."""
    carried = [shard for part in parts for shard in part.shards]
    return tuple(shard for shard in range(shards) if carried.count(Shard(shard)) != 1)


def difference(parts: Parts) -> Difference | None:
    """The first digest in which members differ; None if none does, or if this step is not checked."""
    told = {part.member: part.digests for part in parts if part.digests is not None}
    if len({len(digests) for digests in told.values()}) > 1:
        return Difference(None, _grouped({member: len(digests) for member, digests in told.items()}))
    for index, column in enumerate(zip(*told.values(), strict=True)):
        if len(set(column)) > 1:
            return Difference(index, _grouped(dict(zip(told, column, strict=True))))
    return None


def encode(part: BarrierPart) -> dict[str, Any]:
    """As JSON for a blob's header. Python's JSON keeps every float64, NaN and infinities too."""
    return {
        "version": 1,
        "member": part.member,
        "shards": list(part.shards),
        "logged": [[shard, dict(values)] for shard, values in part.logged.items()],
        "presence": f"{part.presence:x}",
        "stop": part.stop,
        "left": part.left,
        "digests": None if part.digests is None else list(part.digests),
        "reset": list(part.reset),
        "cost": part.cost,
        "asked": [list(wish) for wish in part.asked],
    }


def decode(raw: Any) -> BarrierPart:
    """The inverse of :func:`encode`. Raises MalformedMessage."""
    try:
        if raw["version"] != 1:
            raise MalformedMessage(f"a barrier part has version {raw['version']}; this program speaks version 1")
        return BarrierPart(
            member=int(raw["member"]),
            shards=tuple(Shard(int(shard)) for shard in raw["shards"]),
            logged={Shard(int(shard)): _floats(values) for shard, values in raw["logged"]},
            presence=int(raw["presence"], 16),
            stop=bool(raw["stop"]),
            left=None if raw["left"] is None else Step(int(raw["left"])),
            digests=None if raw["digests"] is None else tuple(int(digest) for digest in raw["digests"]),
            reset=tuple(Shard(int(shard)) for shard in raw["reset"]),
            cost=int(raw["cost"]),
            asked=tuple((str(worker), int(attempt)) for worker, attempt in raw["asked"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(f"a barrier part cannot be read: {error!r}") from error


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}


def _mean(values: Mapping[Shard, float], shards: int) -> float:
    total = combine({leaf(shard): value for shard, value in values.items()}, shards, lambda left, right: left + right)
    return math.nan if total is None else total * (1.0 / len(values))


def _grouped(values: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    groups: dict[int, list[int]] = {}
    for member, value in values.items():
        groups.setdefault(value, []).append(member)
    return _largest_first(tuple(sorted(group)) for group in groups.values())


def _largest_first(groups: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    return tuple(sorted(groups, key=lambda group: (-len(group), group)))
