"""Buffers (BatchNorm's running averages, tables, counters) in the canonical sum.

Every pass starts from the buffers as they were at the step's start. After the step a buffer that no shard changed keeps
its bits; float buffers become the canonical mean over the shards, all others are shard 0's. So a step first adds up
who changed what, and only changed buffers travel: constant tables cost nothing and are never averaged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orch_core.contracts.sync import Comm

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class BufferGroup:
    """Buffers that are added in one dtype: float32, float64 or int64."""

    dtype: torch.dtype
    positions: tuple[int, ...]  # among the layout's buffers


@dataclass(frozen=True, slots=True)
class BufferLayout:
    names: tuple[str, ...] = ()
    groups: tuple[BufferGroup, ...] = ()

    @classmethod
    def of(cls, buffers: Iterable[tuple[str, Tensor]]) -> "BufferLayout":
        named = list(buffers)
        positions: dict[torch.dtype, list[int]] = {}
        for position, (_, buffer) in enumerate(named):
            positions.setdefault(_added_in(buffer.dtype), []).append(position)
        groups = tuple(BufferGroup(dtype, tuple(where)) for dtype, where in positions.items())
        return cls(tuple(name for name, _ in named), groups)


def capture(buffers: Sequence[Tensor]) -> list[Tensor]:
    """Copies, where the buffers are."""
    return [buffer.detach().clone() for buffer in buffers]


def restore(start: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    """Put captured values back where they changed."""
    with torch.no_grad():
        for before, buffer in zip(start, buffers, strict=True):
            if not same_bits(before, buffer):
                buffer.copy_(before)


def changes(start: Sequence[Tensor], buffers: Sequence[Tensor]) -> dict[int, Tensor]:
    """Copies of the buffers whose bits are not those captured, by position."""
    return {
        position: buffer.detach().clone()
        for position, (before, buffer) in enumerate(zip(start, buffers, strict=True))
        if not same_bits(before, buffer)
    }


def same_bits(left: Tensor, right: Tensor) -> bool:
    """As torch.equal, but NaN equals itself and 0.0 is not -0.0."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(_bits(left), _bits(right))


async def reduce_buffers(
    group: BufferGroup, start: Sequence[Tensor], changed: Mapping[int, Tensor], comm: Comm[Tensor]
) -> Tensor:
    """One shard's part: round 0 adds up who changed what, round 1 the values that somebody changed, if any."""
    flags = torch.tensor([position in changed for position in group.positions], dtype=torch.int32)
    moved = _moved(group, await comm.sum(flags))
    if not moved:
        return torch.empty(0, dtype=group.dtype)
    values = torch.cat([_reals(changed.get(position, start[position]), group.dtype) for position in moved])
    if group.dtype.is_floating_point:
        return await comm.mean(values)
    return await comm.sum(values if comm.shard == 0 else torch.zeros_like(values))


def write(
    layout: BufferLayout,
    rounds: Sequence[tuple[Tensor, Tensor | None]],
    start: Sequence[Tensor],
    buffers: Sequence[Tensor],
    put: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> None:
    """Set the buffers to what the step made of them. `rounds` has each group's flags and values."""
    restore(start, buffers)
    with torch.no_grad():
        for group, (flags, values) in zip(layout.groups, rounds, strict=True):
            moved = _moved(group, flags)
            if not moved or values is None:
                continue
            sizes = [start[position].numel() * (2 if start[position].is_complex() else 1) for position in moved]
            for position, flat in zip(moved, torch.split_with_sizes(values, sizes), strict=True):
                put(buffers[position], _like(start[position], flat))


def _moved(group: BufferGroup, flags: Tensor) -> list[int]:
    return [position for position, flag in zip(group.positions, flags.tolist(), strict=True) if flag]


def _added_in(dtype: torch.dtype) -> torch.dtype:
    if dtype in (torch.float64, torch.complex128):
        return torch.float64
    return torch.float32 if dtype.is_floating_point or dtype.is_complex else torch.int64


def _bits(tensor: Tensor) -> Tensor:
    plain = tensor.detach().contiguous()
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    return plain.view(_BITS[plain.dtype.itemsize])


def _reals(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    if buffer.is_complex():
        buffer = torch.view_as_real(buffer.resolve_conj())
    return buffer.reshape(-1).to("cpu", dtype)


def _like(start: Tensor, flat: Tensor) -> Tensor:
    if start.is_complex():
        return torch.view_as_complex(flat.clone().view(*start.shape, 2)).to(start.dtype)  # see layout.py
    return flat.view(start.shape).to(start.dtype)
