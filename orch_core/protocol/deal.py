"""Which member carries which shard. Pure, and equal on all members, because they all know the same view, hellos and
barriers.

Shards are fluid: who is slow carries fewer. What a pass costs each member travels in hellos and barriers, like
everything that a step decides, and changes nothing but who computes what: the sum and every bit are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orch_core.contracts.ids import BEFORE_FIRST_STEP, Shard, Step, WorkerId

Deal = tuple[tuple[Shard, ...], ...]  # by member, in the view's order
MARGIN_PERCENT = 15  # by so much the longest member must become shorter
IN_A_ROW = 3  # so many barriers must agree to that: noise does not
SETTLED, SETTLED_MAX = 8, 64  # steps between two changes, doubled each time; not when somebody has become known


@dataclass(frozen=True, slots=True)
class Position:
    """Where a worker stands when it greets. Never amended once it is in a hello."""

    applied: Step | None = None  # the last applied step; BEFORE_FIRST_STEP with State(0); None without a state
    partials: tuple[tuple[Shard, ...], ...] = ()  # of step applied + 1: shards whose sum it holds, indivisible
    computing: Shard | None = None  # the pass that is under way and may still end
    shard_state: tuple[Shard, ...] = ()  # shards whose strategy state it holds, as of State(applied + 1)
    cost: int = 0  # of one of its passes, microseconds; 0: not known


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
    return _ranges([hi - lo for lo, hi in pairwise(cuts)] + [0] * (members - carriers))


def weighted(costs: Sequence[int], shards: int) -> Deal:
    """The deal whose longest member is shortest, by what a pass costs each (microseconds; 0: not known yet).

    Everybody carries one shard at least: who carries none measures nothing, and could never come back. Who is not known
    yet carries just one: a process's first pass takes several times as long as its later ones.
    """
    known = [i for i, cost in enumerate(costs) if cost]
    if len(costs) >= shards or not known:
        return deal(len(costs), shards)
    counts = [1] * len(costs)
    for _ in range(shards - len(costs)):
        counts[min(known, key=lambda i: ((counts[i] + 1) * costs[i], counts[i], i))] += 1
    return _ranges(counts)


def fluid(present: Deal, costs: Sequence[int], shards: int) -> Deal:
    """The present deal, or the weighted one if that makes the longest member clearly shorter."""
    other = weighted(costs, shards)
    return other if 100 * _longest(other, costs) <= (100 - MARGIN_PERCENT) * _longest(present, costs) else present


def begun(costs: Sequence[int], shards: int) -> Deal:
    """The deal with which a view begins, behind the step that is open."""
    return fluid(weighted([1 if cost else 0 for cost in costs], shards), costs, shards)


def _longest(dealt: Deal, costs: Sequence[int]) -> int:
    return max((len(shards) * cost for shards, cost in zip(dealt, costs, strict=True)), default=0)


def _ranges(counts: Sequence[int]) -> Deal:
    dealt, at = [], 0
    for count in counts:
        dealt.append(tuple(Shard(v) for v in range(at, at + count)))
        at += count
    return tuple(dealt)


def redeal(positions: Sequence[Position], open_step: Step, shards: int) -> Deal:
    """The deal of the step that is open when a view starts.

    Partials stay with who holds them and a shard being computed with its worker (ties: the lowest member); the rest
    goes one by one to whoever is first through with what it has left to compute. Who is not known yet gets nothing,
    if others have begun: all would wait for its first pass.
    """
    owner: dict[Shard, int] = {}
    costs = [p.cost for p in positions]
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
        return begun(costs, shards)
    able = [i for i, cost in enumerate(costs) if cost] or list(range(len(positions)))
    for v in range(shards):
        if v not in owner:
            i = min(able, key=lambda k: ((to_compute[k] + 1) * (costs[k] or 1), k))
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


class Deals:
    """The deals of one view, step by step, as its members go through it together."""

    def __init__(
        self, workers: Sequence[WorkerId], step: Step, first: Deal, later: Deal, moves: Sequence[Move]
    ) -> None:
        self._workers = tuple(workers)
        self._first = step
        self._deals = {step: first}
        self._later = later
        self._moves = tuple(moves)
        self._shards = sum(len(carried) for carried in first)
        self._known: frozenset[int] = frozenset()
        self._met_anew = False  # somebody has become known since the deal has changed
        self._in_a_row = 0  # barriers that would have changed it, for the sake of one and the same member
        self._longest = -1
        self._age, self._rest = 0, SETTLED

    def dealt(self, step: Step) -> Deal:
        """Of a step that is open or to come, as far as is known."""
        return self._deals.get(step, self._later)

    def moves(self, step: Step) -> tuple[Move, ...]:
        """Which shards' state travels before `step`, the open one."""
        if step == self._first:
            return self._moves
        return moves_between(self._workers, self._deals.get(Step(step - 1), self._later), self.dealt(step))

    def applied(self, step: Step, costs: Sequence[int]) -> bool:
        """All members have applied `step` and know these costs of all. Whether the deal changes."""
        if step < self._first:
            return False  # of the view before: fed to who was behind
        self._deals = {step: self.dealt(step)}
        known = frozenset(i for i, cost in enumerate(costs) if cost)
        self._met_anew = self._met_anew or not known <= self._known
        self._known, before = known, self._later
        wanted = fluid(before, costs, self._shards)
        self._age += 1
        longest = max(range(len(costs)), key=lambda i: len(before[i]) * costs[i])
        self._in_a_row = 0 if wanted == before else self._in_a_row + 1 if longest == self._longest else 1
        self._longest = longest
        if self._in_a_row < IN_A_ROW or not (self._met_anew or self._age >= self._rest):
            return False
        self._later, self._met_anew, self._in_a_row = wanted, False, 0
        self._age, self._rest = 0, min(2 * self._rest, SETTLED_MAX)
        return True
