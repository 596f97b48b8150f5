"""The two one-slot mailboxes between a worker's script and its keeper, and the one lock around them.

::

    keeper ── offer(plan, group) ──►  script        a newer offer replaces one that was not taken
    script ── position, readiness ──► keeper        read as a whole, under the lock

The rule that keeps hellos true: :meth:`close` freezes the position in the same instant in which it is read for a hello.
From then on, until a new plan is offered, the script can neither begin a pass nor apply a step (ViewBroken). A pass
that is under way may end: the hello names its shard as being computed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from orch_core.contracts.document import Finished, Training
from orch_core.contracts.errors import ViewBroken
from orch_core.contracts.ids import Shard, Step, ViewNumber
from orch_core.dataplane.group import Blob, Group
from orch_core.dataplane.kept import Results
from orch_core.protocol.deal import Position
from orch_core.protocol.member import Plan
from orch_core.protocol.tree import maximal
from orch_core.worker.feeds import Feeds


@dataclass(frozen=True, slots=True)
class Offer:
    """How a view goes on, and its links. `group` is None for a view of one."""

    plan: Plan
    group: Group | None = None


@dataclass(frozen=True, slots=True)
class Followed:
    """What came to a worker beside the view: State(`step`), or the results of `step`."""

    step: Step
    state: Blob | None = None
    results: Results | None = None


@dataclass(frozen=True, slots=True)
class Announcement:
    """What the script tells once, when it is ready to be a member."""

    fingerprint: str
    model: tuple[str, ...]
    training: Training | None  # None: it joins a job that runs and learns the numbers with the state


@dataclass(frozen=True, slots=True)
class Lost:
    """The script met a broken link before the keeper did."""

    view: ViewNumber
    peer: int | None  # index in the view


@dataclass(frozen=True, slots=True)
class Told:
    """What the script tells beside its position. Values are replaced, never changed."""

    announcement: Announcement | None = None
    training: Training | None = None
    doing: str = ""
    entered: Step | None = None
    epoch: int = 0
    shards: tuple[Shard, ...] = ()  # dealt to it in the open step
    means: Mapping[str, float] = field(default_factory=dict)
    holds: ViewNumber | None = None  # the newest view whose state it holds
    left: Step | None = None
    done: Finished | None = None
    reset: bool = False
    first_step_at: float | None = None
    applied_at: tuple[float, ...] = ()  # time.monotonic() of the newest applied steps, oldest first


APPLIED_KEPT = 32
WARM_STEPS = 2  # a follower applies so many before it is taken in: the first ones take a process several times as long


class Ended(Exception):
    """Training is over for this process: the end is committed, or there is nothing more to wait for."""


class Handover:
    """Thread-safe. `wake` is called when the keeper should look at once; it must not wait for anything."""

    def __init__(self, shards: int, wake: Callable[[], None] = lambda: None) -> None:
        self.wake = wake
        self._shards = shards
        self._contributed: set[Shard] = set()  # to the open step
        self._changed = threading.Condition()
        self._offer: Offer | None = None
        self._open = False
        self._ended = False
        self._group: Group | None = None
        self._position = Position()
        self._told = Told()
        self._lost: Lost | None = None
        self._job_runs: bool | None = None  # there is a view; None: nothing has been heard yet
        self._stop = False
        self.feeds = Feeds()  # what others get from this worker
        self._followed: deque[Followed] = deque()  # not yet taken by the script
        self._follows = False  # what it has comes from members that it follows
        self._frozen = False  # ... and it takes no more: its position is in a hello
        self._caught_up = 0  # steps that it has applied so
        self._level = False
        self.cost = 0  # of a pass, microseconds, as others may know it; 0: not known
        self.pass_ms = 0.0
        self.end_at: int | None = None  # the number of steps after which training has ended before

    # ---------------------------------------------------------------- the script's side

    def next_word(self, *, newer: bool = False, or_stop: bool = False) -> Offer | Followed | None:
        """A plan that the script has not taken yet; None if the one that it follows is still good.

        Waits while no group is open, or (`newer`) until there is another plan or (`or_stop`) members are to stop.
        What a follower was fed comes before any plan. Raises Ended.
        """
        with self._changed:
            while True:
                if self._ended:
                    raise Ended
                if self._followed:
                    return self._followed.popleft()
                if self._caught_up >= WARM_STEPS and not self._level:
                    self._level = True
                    self.wake()
                if self._offer is not None:
                    offer, self._offer = self._offer, None
                    return offer
                if self._open and not newer:
                    return None
                if or_stop and self._stop:
                    return None
                self._changed.wait()

    def job_runs(self) -> bool:
        """Whether there was a view before this worker was ready; waits for the first word of a coordinator."""
        with self._changed:
            while self._job_runs is None and not self._ended:
                self._changed.wait()
            return bool(self._job_runs)

    @property
    def stop_asked(self) -> bool:
        return self._stop

    def start_pass(self, shard: Shard) -> None:
        """Raises ViewBroken."""
        with self._changed:
            self._check()
            at = self._position
            self._position = Position(at.applied, at.partials, shard, at.shard_state)

    def end_pass(self, shard: Shard) -> None:
        """Always allowed: a hello that went out meanwhile says that the shard was being computed."""
        with self._changed:
            at = self._position
            self._position = Position(at.applied, (), None, at.shard_state)
            self._contributed.add(shard)

    def contributions(self, shards: Collection[Shard]) -> None:
        """What is held of the open step, after a view may have taken some of it away."""
        with self._changed:
            self._contributed = set(shards)

    def apply(self, step: Step, shard_state: tuple[Shard, ...], means: Mapping[str, float]) -> None:
        """The step's mean gradient goes to the outer body: it counts as applied. Raises ViewBroken."""
        with self._changed:
            self._check()
            self._position = Position(applied=step, shard_state=shard_state)
            self._contributed = set()
            self._tell_applied(means)

    def caught_up(self, means: Mapping[str, float]) -> None:
        """A step that was fed beside the view goes to the outer body. Its position has told of it already."""
        with self._changed:
            self._caught_up += 1
            self._tell_applied(means)

    def _tell_applied(self, means: Mapping[str, float]) -> None:
        told = self._told
        self._told = replace(
            told,
            entered=None,
            means=means,
            first_step_at=told.first_step_at or time.time(),
            applied_at=(*told.applied_at[-APPLIED_KEPT:], time.monotonic()),
        )

    def hold_state(self, step: Step, shard_state: tuple[Shard, ...]) -> None:
        """State(step) came from another member, or is the script's own State(0). Raises ViewBroken."""
        with self._changed:
            self._check()
            self._position = Position(applied=Step(step - 1), shard_state=shard_state)

    def hold_shards(self, shard_state: tuple[Shard, ...]) -> None:
        """Strategy state of shards came in. Raises ViewBroken."""
        with self._changed:
            self._check()
            self._position = replace(self._position, shard_state=shard_state)

    def tell(self, **news: object) -> None:
        """Replace fields of :class:`Told`."""
        with self._changed:
            self._told = replace(self._told, **news)  # type: ignore[arg-type]  # checked by replace itself

    def tell_now(self, **news: object) -> None:
        self.tell(**news)
        self.wake()

    def lose(self, view: ViewNumber, peer: int | None) -> None:
        """A link broke under the script's hands. No group is open from here on."""
        with self._changed:
            first = self._open and self._offer is None
            if first:
                self._open, self._lost = False, Lost(view, peer)
        if first:
            self.wake()

    def _check(self) -> None:
        if not self._open or self._offer is not None:
            raise ViewBroken("the view that this was computed in is over")

    # ---------------------------------------------------------------- the side of who feeds this worker

    def take_state(self, step: Step, state: Blob) -> bool:
        """State(`step`) is here as a whole. False: too late, a hello has told of what was here before."""
        with self._changed:
            if self._frozen or self._ended:
                return False
            self._follows = True
            self._position = Position(applied=Step(step - 1))
            self._followed.append(Followed(step, state=state))
            self._changed.notify_all()
            return True

    def take_results(self, results: Results) -> bool:
        """Of the step behind all that was taken before."""
        with self._changed:
            if self._frozen or self._ended:
                return False
            self._position = Position(applied=results.step)
            self._followed.append(Followed(results.step, results=results))
            self._changed.notify_all()
            return True

    @property
    def follows(self) -> bool:
        """It has a state that came beside the view."""
        return self._follows

    @property
    def level(self) -> bool:
        """... and has once applied all that was there, some steps among it."""
        return self._level

    # ---------------------------------------------------------------- the keeper's side

    def offer(self, offer: Offer) -> None:
        with self._changed:
            self._offer = offer
            self._group = offer.group
            self._open = True
            self._lost = None
            self._changed.notify_all()

    def close(self) -> Position:
        """End the open group, freeze the position and read it. Idempotent."""
        with self._changed:
            self._open, self._frozen = False, True
            taken, self._offer = self._offer is None, None
            group, self._group = self._group, None
            places = maximal(self._contributed, self._shards)
            partials = tuple(tuple(Shard(shard) for shard in range(place.lo, place.hi)) for place in places)
            position = replace(self._position, partials=partials, cost=self.cost)
        if group is not None:
            if taken:
                group.abort()
            else:
                group.close()  # the script has never seen it
        return position

    def end(self) -> None:
        """Wake the script for good."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def hear(self, *, job_runs: bool, stop: bool = False, end_at: int | None = None) -> None:
        """A document came."""
        with self._changed:
            if self._job_runs is None or (job_runs and self._told.announcement is None):
                self._job_runs = job_runs
            self._stop = self._stop or stop
            self.end_at = end_at
            self._changed.notify_all()

    def read(self) -> tuple[Position, Told]:
        with self._changed:
            return self._position, self._told

    def take_lost(self) -> Lost | None:
        with self._changed:
            lost, self._lost = self._lost, None
            return lost
