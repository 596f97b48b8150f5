"""The script's thread: passes, rounds, barrier, the outer body, and taking up where a plan says.

A generator that yields how long user code runs, or None to wait until something has come. It works with one group at
a time; ``start_pass`` and ``applied`` are refused with ViewBroken once the keeper has closed that group, so that a
position that stands in a hello stays true. A pass that is under way may end: the hello says so.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from orch_core.contracts.ids import BEFORE_FIRST_STEP, Shard, Step, WorkerId
from orch_core.contracts.status import Phase
from orch_core.protocol.deal import Deals, Position
from orch_core.protocol.member import Plan
from orch_core.testing.simulator.bits import Contribution, Digest, Results
from orch_core.testing.simulator.world import Connection, Violation

if TYPE_CHECKING:
    from orch_core.testing.simulator.worker import Worker

Life = Generator[float | None, None, None]


class ViewBroken(Exception):
    """The group was closed: wait for the next plan."""


class Over(Exception):
    """The end of training is committed."""


@dataclass(slots=True, eq=False)
class Group:
    """Greeted links and a plan; knows no hello, id or view rule."""

    plan: Plan
    outgoing: dict[WorkerId, Connection]
    incoming: dict[WorkerId, Connection]
    closed: bool = False
    others: tuple[WorkerId, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.others = tuple(w for w in self.plan.view.workers if w != self.plan.me)


class Part(NamedTuple):
    """What a member tells in a barrier."""

    stop: bool
    asked: frozenset[tuple[WorkerId, int]]
    cost: int


class Script:
    def __init__(self, worker: "Worker") -> None:
        self.worker = worker
        self.bits = worker.simulation.bits
        self.swarm = worker.simulation.swarm
        self.checks = worker.simulation.checks
        self.phase = Phase.STARTING
        self.applied: Step | None = None
        self.state: Digest | None = None  # State(applied + 1), once the outer body is over
        self.in_outer_body = False
        self.held: dict[Shard, Contribution] = {}  # of step applied + 1
        self.computing: Shard | None = None
        self.shard_state: set[Shard] = set()
        self.kept: dict[Step, Results] = {}
        self.entered: Step | None = None
        self.ends_at: int | None = None
        self.stopped = False
        self.started: Group | None = None  # the group whose feeding is through
        self.dealt_for: Group | None = None
        self.deals: Deals | None = None  # of that group
        self.cost = 0

    # what the keeper reads

    def position(self) -> Position:
        partials = tuple((v,) for v in sorted(self.held))
        had = self.worker.following.had
        if had is not None and (self.applied is None or had > self.applied):
            return Position(had, cost=self.cost)  # it can apply them without anybody's help
        return Position(self.applied, partials, self.computing, tuple(sorted(self.shard_state)), self.cost)

    # the thread

    def life(self) -> Life:
        yield self.swarm.time(self.swarm.start_up_s)
        self.worker.point("ready")
        self.phase = Phase.READY
        self.worker.hop(self.worker.ready)
        try:
            while True:
                try:
                    group = yield from self._group()
                    if group is None:
                        self._take_fed()
                    elif self.started is not group:
                        yield from self._start(group)
                    if group is not None and not self.in_outer_body:
                        yield from (self._serve(group) if self.is_over else self._step(group))
                except ViewBroken:
                    continue
                if self.in_outer_body:
                    yield from self._outer_body()
        except Over:
            self.checks.rest(self.worker)
            yield self.swarm.time(self.swarm.rest_s)
            self.worker.point("rest")
            self.worker.exit(0)

    @property
    def total(self) -> int:
        end_at = self.worker.end_at
        return self.swarm.steps if end_at is None else end_at

    @property
    def is_over(self) -> bool:
        if self.applied is None:
            return False
        results = self.kept.get(self.applied)
        stopped = results is not None and results.stop and self.worker.end_at is None
        return stopped or self.applied + 1 >= self.total

    def _group(self) -> Generator[None, None, Group | None]:
        """None: something has come beside the view, which comes first."""
        following = self.worker.following
        while True:
            if self.worker.ended and self.phase is Phase.DONE:
                raise Over
            if following.taken:
                return None
            if following.follows and not following.level:
                following.level = True
                self.worker.hop(self.worker.report)
            if following.follows and self.worker.member.view is None and self.is_over and self.phase is not Phase.DONE:
                self.phase = Phase.DONE  # nobody has taken it in, and it is through as well
                self.worker.hop(self.worker.report)
            if self.worker.group is not None:
                return self.worker.group
            yield None

    def _take_fed(self) -> None:
        step, state, results = self.worker.following.taken.popleft()
        if state is not None:
            self.applied, self.state = Step(step - 1), state
            self.kept = {} if results is None else {results.step: results}
            self.checks.followed(self.worker, step, state)
            return
        assert results is not None
        self.checks.fed(self.worker, results)
        self.applied = results.step
        self.kept = {results.step: results}
        self.in_outer_body = True
        self.worker.point("applied beside")

    # a view begins

    def _start(self, group: Group) -> Life:
        plan, me = group.plan, group.plan.me
        if self.dealt_for is not group:
            self.deals, self.dealt_for = plan.deals(), group
        before = Step(plan.step - 1)
        if self.applied is None and me not in plan.without_state:
            self.applied, self.state = BEFORE_FIRST_STEP, self.bits.first
        if self.phase is Phase.READY:
            self.phase = Phase.TRAINING
        if me in plan.without_state:
            yield from self._install(group)
        elif me in plan.behind and self.applied != before:
            results = yield from self._receive(group, plan.donor, "results", before)
            self._apply(group, results, sorted(self.held))
            return  # the inner loop ends; once its outer body is over, it holds State(step)
        if me == plan.donor:
            self._feed(group)
        self.shard_state |= {m.shard for m in plan.first_moves if m.target == me}
        self.started = group
        self.worker.hop(self.worker.state_held, plan.view.number)

    def _install(self, group: Group) -> Life:
        plan = group.plan
        before = Step(plan.step - 1)
        state = yield from self._receive(group, plan.donor, "state", plan.step)
        results = yield from self._receive(group, plan.donor, "results", before)
        self.applied, self.state, self.in_outer_body = before, state, False
        self.held.clear()
        self.shard_state = set()
        self.kept = {} if results is None else {before: results}
        self.checks.installed(self.worker, plan, state)
        self.worker.point("installed")

    def _feed(self, group: Group) -> None:
        plan = group.plan
        before = Step(plan.step - 1)
        for worker in plan.behind:
            if before not in self.kept:
                raise Violation(f"{self.worker.name} has no results of step {before} to feed to {worker}")
            self._send(group, worker, "results", before, self.kept[before])
            self.worker.point("fed")
        for worker in plan.without_state:
            if before >= 0 and before not in self.kept:
                raise Violation(f"{self.worker.name} has no results of step {before} to send with the state")
            self._send(group, worker, "state", plan.step, self.state)
            self.worker.point("state half sent")
            self._send(group, worker, "results", before, self.kept.get(before))
            self.worker.point("state sent")

    # a step

    def _step(self, group: Group) -> Life:
        plan = group.plan
        assert self.applied is not None
        step = Step(self.applied + 1)
        while plan.paused and step > plan.step:
            self._check(group)
            yield None
        self._check(group)
        self.entered = step
        assert self.deals is not None
        if step > plan.step:
            self.shard_state |= {m.shard for m in self.deals.moves(step) if m.target == plan.me}
        deal = self.deals.dealt(step)
        self.checks.dealt(plan, step, deal)
        dealt = deal[plan.index]
        yield from self._passes(group, step, dealt)
        parts = list(self.held.values())
        self.worker.point("contributed")
        if self.held:  # who carries nothing takes part in the barrier only
            for other in group.others:
                self._send(group, other, "round", step, tuple(self.held.values()))
        for other, carried in zip(plan.view.workers, deal, strict=True):
            if carried and other != plan.me:
                parts += yield from self._receive(group, other, "round", step)
        stop = self._wants_to_stop(step)
        yield from self._barrier(group, step, parts, stop, dealt)

    def _passes(self, group: Group, step: Step, dealt: tuple[Shard, ...]) -> Life:
        for shard in dealt:
            if shard in self.held:
                continue
            self._start_pass(group, shard)
            self.checks.pass_started(self.worker, step, shard, self.shard_state)
            took = self.swarm.time(self.swarm.pass_s * self.swarm.slow.get(self.worker.place, 1.0))
            yield took
            self.cost = int(1e6 * took)
            assert self.state is not None
            self.held[shard] = Contribution(step, shard, self.state)
            self.checks.held(self.worker, step, shard)
            self.computing = None
            self.worker.point("pass")
        self._check(group)

    def _barrier(
        self, group: Group, step: Step, parts: list[Contribution], stop: bool, dealt: tuple[Shard, ...]
    ) -> Life:
        asked, costs = self.worker.feeds.waiting(), {group.plan.me: self.cost}
        for other in group.others:
            self._send(group, other, "barrier", step, Part(stop, asked, self.cost))
            self.worker.point("barrier part sent")
        for other in group.others:
            part = yield from self._barrier_of(group, other, step)
            stop, asked, costs[other] = stop or part.stop, asked & part.asked, part.cost
        by_member = tuple(costs[w] for w in group.plan.view.workers)
        self._apply(group, Results(step, self.bits.result(parts), stop, by_member, asked), dealt)

    def _barrier_of(self, group: Group, other: WorkerId, step: Step) -> Generator[None, None, "Part"]:
        part: Part = yield from self._receive(group, other, "barrier", step)
        return part

    def _wants_to_stop(self, step: Step) -> bool:
        if self.worker.end_at is not None:
            return False
        return self.worker.stop_asked or self.swarm.stops(self.worker.place, step)

    def _apply(self, group: Group, results: Results, carried: Any) -> None:
        """Atomic: handed to the outer body counts as applied."""
        self._check(group)
        self.checks.applied(self.worker, group.plan, results)
        self.applied = results.step
        self.kept = {results.step: results}
        self.held.clear()
        self.shard_state = set(carried)
        self.in_outer_body = True
        if self.deals is not None:
            self.deals.applied(results.step, results.costs)
        self.worker.feeds.push(results)
        self.worker.point("applied")

    def _outer_body(self) -> Life:
        yield self.swarm.time(self.swarm.outer_s)
        assert self.applied is not None
        assert self.state is not None
        self.state = self.bits.next(self.state, self.kept[self.applied].digest)
        self.in_outer_body = False
        self.worker.point("outer body")
        before = self.kept[self.applied]
        if before.asked:
            self.worker.feeds.capture(before.asked, Step(self.applied + 1), self.state, before)

    def _serve(self, group: Group) -> Life:
        """Left the last step: keep results and state until the end is committed."""
        if self.phase is not Phase.DONE:
            self.phase = Phase.DONE
            self.worker.point("done")
        self.worker.hop(self.worker.report)
        while True:
            self._check(group)
            yield None

    # links

    def _start_pass(self, group: Group, shard: Shard) -> None:
        self._check(group)
        self.computing = shard

    def _check(self, group: Group) -> None:
        if group.closed:
            raise ViewBroken

    def _send(self, group: Group, to: WorkerId, kind: str, step: Step, value: Any) -> None:
        if not group.closed:
            group.outgoing[to].send(self.worker, (kind, step, value))

    def _receive(self, group: Group, sender: WorkerId | None, kind: str, step: Step) -> Generator[None, None, Any]:
        assert sender is not None
        frames = group.incoming[sender].frames
        while True:
            self._check(group)
            if frames:
                break
            yield None
        found, at, value = frames.pop(0)
        if (found, at) != (kind, step):
            raise Violation(f"{self.worker.name} waits for {kind} of {step} from {sender} and gets {found} of {at}")
        return value
