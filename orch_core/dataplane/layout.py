"""Where each parameter's gradient travels: a pure function of names, shapes, dtypes and the bucket size.

Buckets are filled in reverse order of the parameters, because backward makes the last gradients first. Values are
added in float32 (float64 for parameters of float64 and complex128); complex ones travel as pairs of reals. Every
parameter has its place, frozen ones too, so that a script may unfreeze layers on the way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.sync import Bucket, BucketParameter
from orch_core.dataplane.memory import empty


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter's part of a bucket: `size` reals from `offset` on."""

    name: str
    position: int  # among the layout's parameters
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class BucketLayout:
    index: int
    dtype: torch.dtype  # that values are added in
    size: int  # reals
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All buckets of a job's parameters."""

    buckets: tuple[BucketLayout, ...]
    names: tuple[str, ...]
    pinned: bool = False  # some parameter is on a CUDA device: flat tensors are page-locked

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> "Layout":
        """The layout of named parameters. One larger than `bucket_bytes` gets a bucket of its own."""
        named = list(parameters)
        closed: list[list[Slot]] = []
        open_: dict[torch.dtype, list[Slot]] = {}
        for position in reversed(range(len(named))):
            name, parameter = named[position]
            dtype = gradient_dtype(parameter.dtype)
            if dtype is None:
                continue
            size = parameter.numel() * (2 if parameter.dtype.is_complex else 1)
            slots = open_.setdefault(dtype, [])
            offset = _end(slots)
            if slots and (offset + size) * dtype.itemsize > bucket_bytes:
                closed.append(open_.pop(dtype))
                slots, offset = open_.setdefault(dtype, []), 0
            slots.append(Slot(name, position, tuple(parameter.shape), parameter.dtype, offset, size))
        closed.extend(open_.values())
        buckets = tuple(_bucket(index, slots) for index, slots in enumerate(closed))
        return cls(buckets, tuple(name for name, _ in named), any(parameter.is_cuda for _, parameter in named))

    def presence(self, grads: Sequence[Tensor | None]) -> int:
        """Bit i: parameter i has a gradient."""
        return sum(1 << position for position, grad in enumerate(grads) if grad is not None)

    def flat(self, bucket: BucketLayout) -> Tensor:
        """Uninitialised memory for one shard's gradient of `bucket`."""
        if self.pinned and torch.cuda.is_available():
            return torch.empty(bucket.size, dtype=bucket.dtype, pin_memory=True)
        return empty(bucket.size, bucket.dtype)

    def gather(self, bucket: BucketLayout, grads: Sequence[Tensor | None], flat: Tensor) -> None:
        """Copy one bucket's gradients into `flat`; None counts as zeros. Raises ConfigurationError for sparse ones."""
        parts = [(slot, grads[slot.position]) for slot in bucket.slots]
        present = [_real(slot, grad) for slot, grad in parts if grad is not None]
        if not present:
            flat.zero_()
            return
        device = present[0].device
        target = flat if device.type == "cpu" else torch.empty(bucket.size, dtype=bucket.dtype, device=device)
        if len(present) == len(parts) and all(part.dtype == bucket.dtype and part.device == device for part in present):
            torch.cat(present, out=target)
        else:
            views = list(zip(_pieces(bucket, target), parts, strict=True))
            missing = [view for view, (_, grad) in views if grad is None]
            if missing:
                torch._foreach_zero_(missing)
            torch._foreach_copy_([view for view, (_, grad) in views if grad is not None], present)
        if target is not flat:
            flat.copy_(target, non_blocking=True)
            torch.cuda.current_stream(device).synchronize()

    def bucket(self, bucket: BucketLayout, flat: Tensor) -> Bucket[Tensor]:
        """What a strategy sees."""
        return Bucket(bucket.index, flat, _Parameters(bucket.slots, flat))

    def write(
        self, means: Sequence[Tensor], presence: int, parameters: Sequence[Tensor], left: Sequence[Tensor | None]
    ) -> None:
        """Put the mean gradients into `.grad`, added to what the script had left there.

        `means` has one flat tensor per bucket. A parameter without a gradient in any shard gets back what was left.
        """
        for bucket, mean in zip(self.buckets, means, strict=True):
            fresh: tuple[list[Tensor], list[Tensor]] = ([], [])
            added: tuple[list[Tensor], list[Tensor]] = ([], [])
            by_device: dict[torch.device, Sequence[Tensor]] = {}
            for index, slot in enumerate(bucket.slots):
                parameter, before = parameters[slot.position], left[slot.position]
                if not presence >> slot.position & 1:
                    parameter.grad = before
                    continue
                if parameter.device not in by_device:
                    by_device[parameter.device] = _pieces(bucket, mean.to(parameter.device))
                value = _shaped(slot, by_device[parameter.device][index])
                if before is None:
                    parameter.grad = torch.empty_like(parameter, requires_grad=False)
                    fresh[0].append(parameter.grad)
                    fresh[1].append(value)
                else:
                    parameter.grad = before
                    added[0].append(before)
                    added[1].append(value.to(before.dtype))
            with torch.no_grad():
                if fresh[0]:
                    torch._foreach_copy_(fresh[0], fresh[1])
                if added[0]:
                    torch._foreach_add_(added[0], added[1])


def gradient_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """In which dtype gradients of `dtype` are added; None for what has no gradients."""
    if dtype in (torch.float64, torch.complex128):
        return torch.float64
    return torch.float32 if dtype.is_floating_point or dtype.is_complex else None


class _Parameters(Sequence[BucketParameter[Tensor]]):
    """Made on demand: a bucket may hold thousands, and most strategies look at none."""

    def __init__(self, slots: tuple[Slot, ...], flat: Tensor) -> None:
        self._slots = slots
        self._flat = flat

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, index: int) -> BucketParameter[Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[BucketParameter[Tensor]]: ...

    def __getitem__(self, index: int | slice) -> BucketParameter[Tensor] | Sequence[BucketParameter[Tensor]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        slot = self._slots[index]
        pair = (2,) if slot.dtype.is_complex else ()
        view = self._flat[slot.offset : slot.offset + slot.size].view(slot.shape + pair)
        return BucketParameter(slot.name, slot.shape, view)


def _bucket(index: int, slots: list[Slot]) -> BucketLayout:
    dtype = gradient_dtype(slots[0].dtype)
    assert dtype is not None
    return BucketLayout(index, dtype, _end(slots), tuple(slots))


def _end(slots: Sequence[Slot]) -> int:
    return slots[-1].offset + slots[-1].size if slots else 0


def _pieces(bucket: BucketLayout, flat: Tensor) -> Sequence[Tensor]:
    return torch.split_with_sizes(flat, [slot.size for slot in bucket.slots])


def _real(slot: Slot, grad: Tensor) -> Tensor:
    """A gradient as flat reals."""
    if grad.layout != torch.strided:
        raise ConfigurationError(
            f"the gradient of {slot.name} is sparse, which orch cannot add up yet: build its layer with sparse=False"
        )
    if tuple(grad.shape) != slot.shape:
        raise ConfigurationError(
            f"the gradient of {slot.name} has shape {tuple(grad.shape)}, but the parameter had {slot.shape} when it "
            f"was prepared: parameters must keep their shapes"
        )
    grad = grad.detach()
    if grad.is_complex():
        grad = torch.view_as_real(grad.resolve_conj())
    return grad.reshape(-1)


def _shaped(slot: Slot, flat: Tensor) -> Tensor:
    if slot.dtype.is_complex:
        return torch.view_as_complex(flat.clone().view(*slot.shape, 2))  # a view would need an even offset
    return flat.view(slot.shape)
