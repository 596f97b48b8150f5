"""State of strategies: what was staged in applied steps, keyed by name, shard (None: the same for all) and bucket."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orch_core.contracts.errors import MalformedMessage, StrategyError
from orch_core.contracts.ids import Shard
from orch_core.dataplane.group import Blob


class StateKey(NamedTuple):
    name: str
    shard: Shard | None
    bucket: int


class StrategyState:
    """Changed only when a step is applied or state arrives from another member."""

    def __init__(self, shards: int) -> None:
        self._values: dict[StateKey, Tensor] = {}
        self._shards = tuple(Shard(shard) for shard in range(shards))
        self._kinds: dict[tuple[str, int], tuple[tuple[int, ...], torch.dtype]] = {}  # of shard state ever staged
        self._held: set[Shard] = set(self._shards)  # nothing staged yet: everybody holds that

    @property
    def held(self) -> tuple[Shard, ...]:
        """Shards whose state is here; all, as long as no shard state exists."""
        return tuple(sorted(self._held)) if self._kinds else self._shards

    @property
    def has_shard_state(self) -> bool:
        return bool(self._kinds)

    def read(self, name: str, shard: Shard | None, bucket: int, like: Tensor | None) -> Tensor:
        value = self._values.get(StateKey(name, shard, bucket))
        if value is not None:
            return value
        if like is not None:
            return torch.zeros_like(like)
        if shard is not None and (name, bucket) in self._kinds:
            shape, dtype = self._kinds[name, bucket]
            return torch.zeros(shape, dtype=dtype)
        raise StrategyError(f"there is no state {name!r} yet: pass like= to start from zeros")

    def apply(self, staged: Iterable[tuple[StateKey, Tensor]], carried: Collection[Shard]) -> None:
        """Take what this member's shards staged, and forget the state of shards that others carry now."""
        for key, value in staged:
            if key.shard is not None:
                self._kinds[key.name, key.bucket] = (tuple(value.shape), value.dtype)
            self._values[key] = value
        for key in [key for key in self._values if key.shard is not None and key.shard not in carried]:
            del self._values[key]
        if self._kinds:
            self._held = set(carried)

    def know(self, names: Iterable[tuple[str, int, Tensor]]) -> None:
        """Learn which shard state exists from a run whose own state does not count."""
        for name, bucket, value in names:
            self._kinds[name, bucket] = (tuple(value.shape), value.dtype)

    def export(self, shard: Shard | None) -> Blob:
        """One shard's state, or (None) what all shards share and which shard state exists."""
        keys = sorted((key for key in self._values if key.shard == shard), key=lambda key: (key.bucket, key.name))
        header: dict[str, Any] = {"version": 1, "shard": shard, "keys": [[key.name, key.bucket] for key in keys]}
        if shard is None:
            header["kinds"] = [
                [name, bucket, list(shape), str(dtype).removeprefix("torch.")]
                for (name, bucket), (shape, dtype) in sorted(self._kinds.items())
            ]
        return Blob(header, [self._values[key] for key in keys])

    def take(self, blob: Blob) -> None:
        """What :meth:`export` gave, on another member. Shared state replaces all that was here. MalformedMessage."""
        raw: Any = blob.header
        try:
            if raw["version"] != 1:
                raise MalformedMessage(f"strategy state has version {raw['version']}; this program speaks version 1")
            shard = None if raw["shard"] is None else Shard(int(raw["shard"]))
            keys = [StateKey(str(name), shard, int(bucket)) for name, bucket in raw["keys"]]
            values = dict(zip(keys, blob.tensors, strict=True))
            kinds = {
                (str(name), int(bucket)): (tuple(int(size) for size in shape), getattr(torch, dtype))
                for name, bucket, shape, dtype in raw.get("kinds", ())
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedMessage(f"strategy state cannot be read: {error!r}") from error
        if shard is None:
            self._values, self._kinds, self._held = values, kinds, set() if kinds else set(self._shards)
        else:
            self._values.update(values)
            self._held.add(shard)
