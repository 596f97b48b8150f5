"""Rounds over the group: partials in, canonical sums out.

A big value is cut into chunks, and the members that carry shards share the chunks out: each sends its partials' slices
of a chunk to the chunk's owner, who adds them up the tree and sends the sum to all (a reduce-scatter and an all-gather
that overlap: a chunk's sum is on its way while the next chunk comes in, and it fits the processor's cache). A small
value takes one trip: all partials to everybody, and everybody adds. The order of additions, so every bit, is the same.
Members without shards carry no chunks and contribute nothing; they receive sums like everybody else.
"""

import functools
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from orch_core.contracts.errors import StrategyError
from orch_core.contracts.ids import Shard
from orch_core.dataplane.group import Group
from orch_core.dataplane.memory import empty
from orch_core.dataplane.tcp import Fill, Header, Key, Kind, bytes_of
from orch_core.protocol.tree import Place, additions, maximal, root

SMALL_BYTES = 64 * 1024  # up to here one trip is faster than two
CHUNK_BYTES = 1024 * 1024

_ADDED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_SUMMED = (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Deal = Sequence[Collection[Shard]]  # per member the shards it carries


@dataclass(frozen=True, slots=True)
class Operation:
    """What every shard must ask for alike in one round."""

    name: Literal["sum", "mean"]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def added_in(self) -> torch.dtype:
        """The dtype on the wire. Raises StrategyError for one that cannot be summed."""
        dtype = self.dtype.to_real() if self.dtype.is_complex else self.dtype
        dtype = _ADDED_IN.get(dtype, dtype)
        if dtype not in _SUMMED or (self.name == "mean" and not dtype.is_floating_point):
            raise StrategyError(f"there is no {self.name} of {self.dtype}")
        return dtype

    @property
    def size(self) -> int:
        """Elements on the wire."""
        return functools.reduce(int.__mul__, self.shape, 2 if self.dtype.is_complex else 1)

    @property
    def signature(self) -> int:
        return zlib.crc32(str(self).encode())

    def flatten(self, value: Tensor) -> Tensor:
        """A contribution as it is added: flat, contiguous, on the CPU."""
        if value.is_complex():
            value = torch.view_as_real(value.resolve_conj())
        return value.reshape(-1).to("cpu", self.added_in).contiguous()

    def shape_result(self, flat: Tensor) -> Tensor:
        """The inverse of :meth:`flatten`, rounded to the contributions' dtype."""
        if self.dtype.is_complex:
            return torch.view_as_complex(flat.view(*self.shape, 2)).to(self.dtype)
        return flat.view(self.shape).to(self.dtype)

    def __str__(self) -> str:
        return f"{self.name} of {str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Call:
    """One round of one bucket, as this member takes part in it."""

    strategy: str
    bucket: int
    round: int
    operation: Operation
    partials: Mapping[Place, Tensor]  # of the shards that are dealt to this member


def run_calls(calls: Sequence[Call], step: int, deal: Deal, me: int, group: Group | None, shards: int) -> list[Tensor]:
    """All calls at once; each one's result, in the operation's shape and dtype.

    Raises ViewBroken, and StrategyError if another member does something else.
    """
    places = tuple(maximal(carried, shards) for carried in deal)
    sums = [_Sum(call, step, places, me, group, shards) for call in calls]
    for one in sums:
        one.start()
    if group is not None:
        group.run()
    return [call.operation.shape_result(one.out) for call, one in zip(calls, sums, strict=True)]


class _Sum:
    """One call while its frames are under way."""

    def __init__(
        self, call: Call, step: int, places: tuple[tuple[Place, ...], ...], me: int, group: Group | None, shards: int
    ) -> None:
        operation = call.operation
        self._call = call
        self._step = step
        self._me = me
        self._group = group
        self._places = places
        self._carriers = [member for member, held in enumerate(places) if held]
        self._others = group.peers if group is not None else ()
        self._additions = additions([place for held in places for place in held], shards)
        self._root = root(shards)
        self._dtype = operation.added_in
        self._scale = 1.0 / shards if operation.name == "mean" else None
        self._signature = operation.signature
        self.out = empty(operation.size, self._dtype)
        self._waiting: dict[int, int] = {}  # chunk -> carriers that have not sent their partials of it
        self._arrived: dict[int, dict[Place, Tensor]] = {}

    def start(self) -> None:
        """Queue this member's frames, say what is expected, and do what needs nobody else."""
        size, width = self.out.numel(), self._dtype.itemsize
        if size * width <= SMALL_BYTES:
            self._collect(0, slice(0, size), self._others, then=None)
            return
        step = CHUNK_BYTES // width
        for chunk, lo in enumerate(range(0, size, step)):
            owner, part = self._carriers[chunk % len(self._carriers)], slice(lo, min(lo + step, size))
            if owner == self._me:
                self._collect(chunk, part, (), then=self._publish)
            else:
                self._send_partials(chunk, part, (owner,))
                self._expect(owner, Kind.SUM, chunk, lambda header, part=part: self._fill_sum(header, part))  # type: ignore[misc]

    def _collect(self, chunk: int, part: slice, to: Sequence[int], then: Callable[[int, slice], None] | None) -> None:
        """Add up a chunk here, once all carriers' partials are in; send ours to those who do the same."""
        self._send_partials(chunk, part, to)
        self._arrived[chunk] = {}
        others = [member for member in self._carriers if member != self._me]
        self._waiting[chunk] = len(others)
        for member in others:
            fill = functools.partial(self._fill_partials, member=member, chunk=chunk, part=part, then=then)
            self._expect(member, Kind.PARTIALS, chunk, fill)
        if not others:
            self._add_up(chunk, part, then)

    def _send_partials(self, chunk: int, part: slice, to: Sequence[int]) -> None:
        mine = self._places[self._me]
        if self._group is None or not mine or not to:
            return
        views = [self._bytes(self._call.partials[place], part) for place in mine]
        header = self._header(Kind.PARTIALS, chunk, sum(len(view) for view in views))
        for member in to:
            self._group.send(member, header, views)

    def _fill_partials(
        self, header: Header, *, member: int, chunk: int, part: slice, then: Callable[[int, slice], None] | None
    ) -> Fill:
        count = part.stop - part.start
        held = self._places[member]
        self._check(member, header, count * len(held))
        scratch = empty(count * len(held), self._dtype)
        yield [bytes_of(scratch)]
        self._arrived[chunk].update(zip(held, torch.split_with_sizes(scratch, [count] * len(held)), strict=True))
        self._waiting[chunk] -= 1
        if not self._waiting[chunk]:
            self._add_up(chunk, part, then)

    def _add_up(self, chunk: int, part: slice, then: Callable[[int, slice], None] | None) -> None:
        scratch = self._arrived.pop(chunk)
        values = {place: self._call.partials[place][part] for place in self._places[self._me]} | scratch
        out = self.out[part]
        for left, right, place in self._additions:
            if place == self._root:
                target = out
            else:
                target = next((scratch[half] for half in (left, right) if half in scratch), None)  # type: ignore[assignment]
            values[place] = torch.add(values.pop(left), values.pop(right), out=target)
            scratch[place] = values[place]
        total = values[self._root]
        if self._scale is not None:
            torch.mul(total, self._scale, out=out)
        elif total is not out:
            out.copy_(total)
        if then is not None:
            then(chunk, part)

    def _publish(self, chunk: int, part: slice) -> None:
        view = self._bytes(self.out, part)
        for member in self._others:
            assert self._group is not None
            self._group.send(member, self._header(Kind.SUM, chunk, len(view)), [view])

    def _fill_sum(self, header: Header, part: slice) -> Fill:
        self._check(self._carriers[header.part % len(self._carriers)], header, part.stop - part.start)
        yield [self._bytes(self.out, part)]

    def _expect(self, member: int, kind: Kind, chunk: int, fill: Callable[[Header], Fill]) -> None:
        assert self._group is not None
        self._group.expect(member, Key(kind, self._step, self._call.bucket, self._call.round, chunk), fill)

    def _header(self, kind: Kind, chunk: int, length: int) -> Header:
        return Header(kind, self._step, self._call.bucket, self._call.round, chunk, self._signature, length)

    def _check(self, member: int, header: Header, count: int) -> None:
        if header.signature != self._signature or header.length != count * self._dtype.itemsize:
            call = self._call
            raise StrategyError(
                f"strategy {call.strategy}: members {self._me} and {member} disagree in bucket {call.bucket}, round "
                f"{call.round} of step {self._step}: here it is a {call.operation}, there something else; every shard "
                f"must issue the same rounds with the same shapes"
            )

    def _bytes(self, tensor: Tensor, part: slice) -> memoryview:
        width = self._dtype.itemsize
        return bytes_of(tensor)[part.start * width : part.stop * width]
