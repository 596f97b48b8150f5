"""A worker's way through views (ARCHITECTURE.md, "The life of a failure") as a machine without I/O.

::

            ViewSeen(higher)                GroupClosed(position)          all hellos in, own delivered
    idle ───────────────────► closing ───────────────────────► greeting ───────────────────────────► open
     ▲                           ▲                                │  LinkBroken                        │ LinkBroken
     │                           └────────────────────────────────┴──── broken ◄───────────────────────┘
     └─ Exit when a view leaves this worker out

Rules that keep positions within one step of each other:

* a hello is the position at the moment the group was closed, and is never amended;
* a group opens only when the hello of every other member is in and the own one is delivered to each of them;
* any link of the view that breaks means: leave this view, say so, and wait for a higher one;
* views may be skipped; what belongs to a lower one is dropped;
* who has followed (:class:`Fed`) and is taken in keeps taking results until it is at most one step behind the others,
  whose hellos say how far they are; only then it freezes its position;
* who leaves keeps its state until the view without it is formed, and comes back if nobody in there has one.

All members compute the same :class:`Plan`, from the same view and the same hellos.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from orch_core.contracts.document import View
from orch_core.contracts.ids import BEFORE_FIRST_STEP, Step, ViewNumber, WorkerId
from orch_core.protocol.deal import Deal, Deals, Move, Position, begun, moves_at_start, redeal, start_of

FORMING_DEADLINE_S = 1.0
EVICTED = 75  # exit code: a restart that is not counted


@dataclass(frozen=True, slots=True)
class Hello:
    """What one member tells another when a view starts."""

    view: View
    sender: WorkerId
    position: Position
    fingerprint: str = ""  # what the bits of its kernels depend on
    model: tuple[str, ...] = ()  # "name dtype shape" per tensor, and the loops' numbers; equal on all members
    version: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How a view goes on. `step` is the open one: a + 1, where a is the highest applied step in the hellos."""

    view: View
    me: WorkerId
    step: Step
    donor: WorkerId | None  # the lowest member that holds State(step)
    behind: tuple[WorkerId, ...]  # they have step - 1 still open: the donor feeds them its results
    without_state: tuple[WorkerId, ...]  # the donor sends them State(step) and the results of step - 1
    first_deal: Deal  # of `step`
    next_deal: Deal  # of the steps behind it, until costs say otherwise
    first_moves: tuple[Move, ...] = ()  # before `step`
    min_workers: int = 1

    @property
    def index(self) -> int:
        """This member's place in the view's order."""
        return self.view.workers.index(self.me)

    def deals(self) -> Deals:
        return Deals(self.view.workers, self.step, self.first_deal, self.next_deal, self.first_moves)

    @property
    def paused(self) -> bool:
        """Too few members: finish the open step, keep the state and wait for another view."""
        return len(self.view.members) < self.min_workers


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class ViewSeen:
    """In the document, or in a peer's hello."""

    view: View


@dataclass(frozen=True, slots=True)
class FormedSeen:
    """The document's formed view."""

    number: ViewNumber


@dataclass(frozen=True, slots=True)
class GroupClosed:
    """The answer to CloseGroup: from here on the script can neither apply a step nor start a pass."""

    position: Position


@dataclass(frozen=True, slots=True)
class HelloReceived:
    hello: Hello


@dataclass(frozen=True, slots=True)
class Greeted:
    """The own hello of `view` is written to the link to `peer`."""

    view: ViewNumber
    peer: WorkerId


@dataclass(frozen=True, slots=True)
class LinkBroken:
    """A link of `view`, to or from `peer`, closed or was reset."""

    view: ViewNumber
    peer: WorkerId


@dataclass(frozen=True, slots=True)
class StateHeld:
    """The script has taken the plan of `view` and holds its State(step)."""

    view: ViewNumber


@dataclass(frozen=True, slots=True)
class Fed:
    """A follower holds State(s) and all results up to this step, which it can apply without anybody's help."""

    applied: Step


@dataclass(frozen=True, slots=True)
class Leave:
    """SIGTERM, a drain or a scale-down: be left out of the next view."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of training is committed: views no longer matter."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has passed."""


Event: TypeAlias = (
    ViewSeen | FormedSeen | GroupClosed | HelloReceived | Greeted | LinkBroken | StateHeld | Fed | Leave | Ended | Tick
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class CloseGroup:
    """Close the group and all links of lower views at once, freeze the position, answer with GroupClosed."""


@dataclass(frozen=True, slots=True)
class Greet:
    """Dial each peer until it answers or a higher view comes, and write this hello first."""

    hello: Hello
    peers: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class OpenGroup:
    plan: Plan


@dataclass(frozen=True, slots=True)
class SendStatus:
    """Something that the leader should know at once has changed: see Member's public attributes."""


@dataclass(frozen=True, slots=True)
class Exit:
    code: int
    reason: str


Effect: TypeAlias = CloseGroup | Greet | OpenGroup | SendStatus | Exit


@dataclass(slots=True)
class Member:
    """One worker's machine. The public attributes are what its status says."""

    me: WorkerId
    shards: int
    min_workers: int = 1
    fingerprint: str = ""
    model: tuple[str, ...] = ()

    view: View | None = None  # the newest one adopted
    opened: ViewNumber | None = None
    opened_step: Step | None = None  # the step with which `opened` began
    broken: ViewNumber | None = None
    broken_peers: tuple[WorkerId, ...] = ()
    unreachable: tuple[WorkerId, ...] = ()
    leaving: bool = False
    deadline: float | None = None

    _state: str = "idle"  # idle | catching | closing | greeting | open | broken | over
    _position: Position = field(default_factory=Position)
    _hellos: dict[WorkerId, Hello] = field(default_factory=dict)
    _greeted: set[WorkerId] = field(default_factory=set)
    _early: dict[WorkerId, Hello] = field(default_factory=dict)  # hellos of the view that is being closed for
    _fed: Step | None = None  # of a follower: how far it is
    _ahead: frozenset[WorkerId] = frozenset()  # of a follower that was taken in: who was there before it
    _begins: Step | None = None  # the step with which the open group began
    _formed: ViewNumber = ViewNumber(0)
    _left_out: View | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self._state == "over":
            return []
        match event:
            case ViewSeen(view):
                return self._see(view, now)
            case FormedSeen(number):
                self._formed = max(self._formed, number)
                return self._leave_if_free()
            case GroupClosed(position):
                return self._greet(position, now)
            case HelloReceived(hello):
                return self._hear(hello, now)
            case Greeted(number, peer):
                if self._state == "greeting" and self.view is not None and number == self.view.number:
                    self._greeted.add(peer)
                    return self._reached() + self._open_if_complete()
                return []
            case LinkBroken(number, peer):
                return self._break(number, peer)
            case StateHeld(number):
                if self._state == "open" and self.view is not None and number == self.view.number:
                    self.opened, self.opened_step = number, self._begins
                    return [SendStatus()]
                return []
            case Fed(applied):
                self._fed = applied
                return self._freeze_if_level()
            case Leave():
                self.leaving = True
                if self.view is None:
                    self._state = "over"
                    return [Exit(EVICTED, f"{self.me} was asked to leave before it was a member")]
                return [SendStatus()]
            case Ended():
                self._state, self.deadline = "over", None
                return [CloseGroup()]
            case Tick():
                return self._complain(now)

    # a view comes

    def _see(self, view: View, now: float) -> list[Effect]:
        newest = self._left_out or self.view
        if newest is not None and view.number <= newest.number:
            return []
        if self.me not in view.workers:
            if self.view is None:
                return []  # not yet a member: waits to be taken in
            self._left_out = view
            self.deadline = None
            return [CloseGroup(), *self._leave_if_free()]
        if self.view is None:
            self._ahead = frozenset(view.workers[: len(view.workers) - view.joined])
        self.view, self._left_out = view, None
        self._state = "closing" if self._fed is None else "catching"
        self._hellos, self._greeted = {}, set()
        self._early = {w: h for w, h in self._early.items() if h.view.number == view.number}
        self.broken, self.broken_peers, self.unreachable = None, (), ()
        self.deadline = None
        if self._state == "closing":
            return [CloseGroup()]
        self.deadline = now + FORMING_DEADLINE_S
        return self._freeze_if_level()

    def _freeze_if_level(self) -> list[Effect]:
        """Who has followed goes on taking results while it is taken in: the others' hellos tell how far they are."""
        view = self.view
        if self._state != "catching" or view is None or self._fed is None:
            return []
        others = [w for w in view.workers if w in self._ahead and w != self.me]
        positions = [self._early[w].position.applied for w in others if w in self._early]
        furthest = max((p for p in positions if p is not None), default=self._fed)
        if len(positions) < len(others) or self._fed < furthest - 1:
            return []
        return self._freeze()

    def _freeze(self) -> list[Effect]:
        self._state, self.deadline, self._fed = "closing", None, None
        return [CloseGroup()]

    def _leave_if_free(self) -> list[Effect]:
        """Out of the view: who was asked to leave goes when the others hold the state; who was evicted goes now."""
        if self._left_out is None:
            return []
        if not self.leaving:
            self._state = "over"
            return [Exit(EVICTED, f"view {self._left_out.number} goes on without {self.me}: {self._left_out.reason}")]
        if self._formed < self._left_out.number:
            return []
        self._state = "over"
        return [Exit(0, f"{self.me} has left: view {self._left_out.number} is formed")]

    def _greet(self, position: Position, now: float) -> list[Effect]:
        if self._state != "closing" or self.view is None:
            return []
        view = self.view
        if position.applied is None and not view.fresh and self.me in view.origin:
            position = Position(
                applied=BEFORE_FIRST_STEP
            )  # a member of view 1 holds State(0) even if it skipped view 1
        self._state, self._position = "greeting", position
        self.deadline = now + FORMING_DEADLINE_S
        hello = Hello(view, self.me, position, self.fingerprint, self.model)
        peers = tuple(w for w in view.workers if w != self.me)
        early, self._early = self._early, {}
        effects: list[Effect] = [Greet(hello, peers), SendStatus()]
        for other in early.values():
            effects += self._hear(other, now)
        return effects + self._open_if_complete()

    def _hear(self, hello: Hello, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.view is None or hello.view.number > self.view.number:
            effects = self._see(hello.view, now)
        if self.view is None or self._state == "over" or hello.view.number != self.view.number:
            return effects
        if hello.sender == self.me or hello.sender not in self.view.workers:
            return effects
        if self._state in ("catching", "closing"):
            self._early.setdefault(hello.sender, hello)
            return effects + self._freeze_if_level()
        if self._state != "greeting" or hello.sender in self._hellos:
            return effects
        self._hellos[hello.sender] = hello
        return effects + self._disagreement(hello) + self._reached() + self._open_if_complete()

    def _disagreement(self, hello: Hello) -> list[Effect]:
        if hello.fingerprint != self.fingerprint:
            ours, theirs = self.fingerprint, hello.fingerprint
            why = f"{self.me} and {hello.sender} would compute different bits: {ours} here, {theirs} there"
            self._state = "over"
            return [Exit(2, why)]
        if hello.model and self.model and hello.model != self.model:
            self._state = "over"
            return [Exit(2, difference(self.me, self.model, hello.sender, hello.model))]
        return []

    # everybody is there

    def _missing(self) -> tuple[WorkerId, ...]:
        view = self.view
        if view is None:
            return ()
        return tuple(w for w in view.workers if w != self.me and (w not in self._hellos or w not in self._greeted))

    def _reached(self) -> list[Effect]:
        """Withdraw the report of a peer that has answered after all."""
        missing = self._missing()
        if not any(w not in missing for w in self.unreachable):
            return []
        self.unreachable = tuple(w for w in self.unreachable if w in missing)
        return [SendStatus()]

    def _open_if_complete(self) -> list[Effect]:
        if self._state != "greeting" or self.view is None or self._missing():
            return []
        view = self.view
        positions = {w: self._position if w == self.me else self._hellos[w].position for w in view.workers}
        if overtaken := _overtaken(positions):
            return self._give_way() if self.me in overtaken else []  # there will be a view without them
        plan = make_plan(view, self.me, positions, self.shards, self.min_workers)
        if plan is None:
            return []  # nobody holds a state: only another view can help
        self._state, self.deadline, self._begins = "open", None, plan.step
        return [OpenGroup(plan)]

    def _give_way(self) -> list[Effect]:
        self._state, self.deadline = "over", None
        why = f"{self.me} came back with a state that is not needed: the others are further"
        return [CloseGroup(), Exit(0 if self.leaving else EVICTED, why)]

    def _break(self, number: ViewNumber, peer: WorkerId) -> list[Effect]:
        if (
            self.view is None
            or number != self.view.number
            or self._state
            not in (
                "catching",  # an early hello came on it
                "closing",
                "greeting",
                "open",
                "broken",
            )
        ):
            return []
        first, catching = self._state != "broken", self._state == "catching"
        if not first and peer in self.broken_peers:
            return []
        self._state, self.broken, self.deadline = "broken", number, None
        self.broken_peers = (*self.broken_peers, peer)
        if catching:
            return [SendStatus()]  # nothing is frozen yet: it goes on taking results
        return [CloseGroup(), SendStatus()] if first else [SendStatus()]

    def _complain(self, now: float) -> list[Effect]:
        if self._state == "catching" and self.deadline is not None and now >= self.deadline:
            return self._freeze()  # greets from where it is: who misses it learns that it lives
        if self._state != "greeting" or self.deadline is None or now < self.deadline:
            return []
        self.deadline = now + FORMING_DEADLINE_S
        self.unreachable = self._missing()
        return [SendStatus()]


def make_plan(
    view: View, me: WorkerId, positions: dict[WorkerId, Position], shards: int, min_workers: int = 1
) -> Plan | None:
    """The same on every member. None if nobody holds a state and the view is not fresh."""
    applied = start_of(positions, fresh=view.fresh)
    if applied is None:
        return None
    if applied == BEFORE_FIRST_STEP and view.fresh:
        positions = {w: Position(BEFORE_FIRST_STEP) if p.applied is None else p for w, p in positions.items()}
    step = Step(applied + 1)
    holders = [w for w in view.workers if positions[w].applied == applied]
    ordered = [positions[w] for w in view.workers]
    first, later = redeal(ordered, step, shards), begun([p.cost for p in ordered], shards)
    return Plan(
        view=view,
        me=me,
        step=step,
        donor=holders[0],
        behind=tuple(w for w in view.workers if positions[w].applied == applied - 1),
        without_state=tuple(w for w in view.workers if positions[w].applied is None),
        first_deal=first,
        next_deal=later,
        first_moves=moves_at_start(view.workers, ordered, first, step),
        min_workers=min_workers,
    )


def _overtaken(positions: dict[WorkerId, Position]) -> tuple[WorkerId, ...]:
    """Who is more than one step behind: it was left out on its way and taken back when nobody else seemed to have a
    state, and somebody had one after all. Members that were in every view are never so far apart."""
    furthest = max((p.applied for p in positions.values() if p.applied is not None), default=BEFORE_FIRST_STEP)
    return tuple(w for w, p in positions.items() if p.applied is not None and p.applied < furthest - 1)


def difference(me: WorkerId, ours: tuple[str, ...], other: WorkerId, theirs: tuple[str, ...]) -> str:
    """One sentence that names the first thing in which two models differ."""
    for mine, its in zip(ours, theirs, strict=False):
        if mine != its:
            break
    else:
        longer, lines = (me, ours) if len(ours) > len(theirs) else (other, theirs)
        mine = its = ""
        extra = lines[min(len(ours), len(theirs))]
        return f"the models of {me} and {other} differ: only {longer} has {extra}; build the same model on every worker"
    return (
        f"the models of {me} and {other} differ: {mine} on {me}, {its} on {other}; "
        "build the same model on every worker, after orch.init()"
    )
