"""Which member carries which shard. Pure, and equal on all members, because they all know the same view and hellos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orch_core.contracts.ids import BEFORE_FIRST_STEP, Shard, Step, WorkerId

Deal = tuple[tuple[Shard, ...], ...]  # by member, in the view's order


@dataclass(frozen=True, slots=True)
class Position:
    """Where a worker stands when it greets. Never amended once it is in a hello."""

    applied: Step | None = None  # the last applied step; BEFORE_FIRST_STEP with State(0); None without a state
    partials: tuple[tuple[Shard, ...], ...] = ()  # of step applied + 1: shards whose sum it holds, indivisible
    computing: Shard | None = None  # the pass that is under way and may still end
    shard_state: tuple[Shard, ...] = ()  # shards whose strategy state it holds, as of State(applied + 1)


@dataclass(frozen=True, slots=True)
class Move:
    """A shard's strategy state goes to its new carrier, from the lowest member that has it; None: it is lost."""

    shard: Shard
    source: WorkerId | None
    target: WorkerId


def deal(members: int, shards: int) -> Deal:
    """Contiguous, as even as can be; members beyond the number of shards carry none and are hot spares.

    A contiguous range has at most 2 log2 V maximal places in the canonical tree.
    """
    carriers = min(members, shards)
    cuts = [shards * i // carriers for i in range(carriers + 1)]
    ranges = [tuple(Shard(v) for v in range(lo, hi)) for lo, hi in pairwise(cuts)]
    return tuple(ranges + [()] * (members - carriers))


def redeal(positions: Sequence[Position], open_step: Step, shards: int) -> Deal:
    """The deal of the step that is open when a view starts.

    Partials stay with who holds them and a shard being computed with its worker (ties: the lowest member); the rest
    goes one by one to whoever has least left to compute.
    """
    owner: dict[Shard, int] = {}
    to_compute = [0] * len(positions)
    here = [p.applied is not None and p.applied + 1 == open_step for p in positions]
    for i, position in enumerate(positions):
        if here[i]:
            for shard in (v for partial in position.partials for v in partial):
                owner.setdefault(shard, i)
    for i, position in enumerate(positions):
        if here[i] and position.computing is not None and position.computing not in owner:
            owner[position.computing] = i
            to_compute[i] += 1
    if not owner:
        return deal(len(positions), shards)
    for v in range(shards):
        if v not in owner:
            i = min(range(len(positions)), key=lambda k: (to_compute[k], k))
            owner[Shard(v)] = i
            to_compute[i] += 1
    return tuple(tuple(Shard(v) for v in range(shards) if owner[Shard(v)] == i) for i in range(len(positions)))


def moves_at_start(
    workers: Sequence[WorkerId], positions: Sequence[Position], dealt: Deal, open_step: Step
) -> tuple[Move, ...]:
    """Which shards' state must travel before the open step of a new view."""
    if open_step == 0:
        return ()
    held = {w: _state_at(p, open_step) for w, p in zip(workers, positions, strict=True)}
    holders: dict[Shard, WorkerId] = {}
    for worker in workers:
        for shard in held[worker]:
            holders.setdefault(shard, worker)
    return tuple(
        Move(shard, holders.get(shard), worker)
        for worker, carried in zip(workers, dealt, strict=True)
        for shard in carried
        if shard not in held[worker]
    )


def _state_at(position: Position, open_step: Step) -> tuple[Shard, ...]:
    """The shards whose state a member holds when `open_step` begins.

    Who is a step behind has staged the state of what it computed there, and holds it once it has been fed.
    """
    if position.applied is None or position.applied < open_step - 2:
        return ()
    if position.applied == open_step - 1:
        return position.shard_state
    return tuple(shard for partial in position.partials for shard in partial)


def moves_between(workers: Sequence[WorkerId], before: Deal, after: Deal) -> tuple[Move, ...]:
    """Which shards' state must travel between two steps of one view."""
    source = {shard: worker for worker, carried in zip(workers, before, strict=True) for shard in carried}
    return tuple(
        Move(shard, source[shard], worker)
        for worker, carried in zip(workers, after, strict=True)
        for shard in carried
        if source[shard] != worker
    )


def most_advanced(positions: Mapping[WorkerId, Position]) -> Step | None:
    """The highest applied step; None if nobody holds a state."""
    applied = [p.applied for p in positions.values() if p.applied is not None]
    return max(applied) if applied else None


def start_of(positions: Mapping[WorkerId, Position], *, fresh: bool) -> Step | None:
    """The last applied step from which a view goes on; in a fresh view without any state that is State(0)."""
    best = most_advanced(positions)
    return BEFORE_FIRST_STEP if best is None and fresh else best
