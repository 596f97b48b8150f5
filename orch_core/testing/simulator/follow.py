"""Following: how a joiner gets the state beside the view, and what members do for it.

As in the workers' own code: a wish goes to every member, the barrier tells when all have it, then all capture the same
state; results follow. Each message comes from every member that was asked, and counts when it is here from all.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from orch_core.contracts.document import Document
from orch_core.contracts.ids import Step, WorkerId
from orch_core.protocol.member import Fed
from orch_core.testing.simulator.bits import Digest, Results
from orch_core.testing.simulator.world import Connection, Violation

if TYPE_CHECKING:
    from orch_core.testing.simulator.worker import Worker

AGAIN_S = 0.1


class Wish(NamedTuple):
    what: str  # "state" | "results"
    number: int
    step: Step | None = None  # results behind this one


class Shared(NamedTuple):
    """A member's share of a state (with the results of the step before it), or of a step's results."""

    number: int
    step: Step
    state: Digest | None
    results: Results | None


class Label(NamedTuple):
    """Of a connection between a follower and a member."""

    follower: WorkerId
    member: WorkerId


Item = tuple[Step, Digest | None, Results | None]


@dataclass(slots=True, eq=False)
class Feed:
    """A member's side of one follower."""

    connection: Connection
    number: int = 0
    waits: bool = False
    active: bool = False
    kept: list[Results] = field(default_factory=list)  # since the capture


class Feeds:
    def __init__(self, worker: "Worker") -> None:
        self.worker = worker
        self.feeds: dict[WorkerId, Feed] = {}

    def wish(self, connection: Connection, wish: Wish) -> None:
        follower = connection.label.follower
        feed = self.feeds.get(follower)
        if feed is None or feed.connection is not connection:
            feed = self.feeds[follower] = Feed(connection)
        feed.number = wish.number
        if wish.what == "state":
            feed.waits, feed.active, feed.kept = True, False, []
            return
        assert wish.step is not None
        for results in [r for r in feed.kept if r.step > wish.step]:
            connection.send(self.worker, Shared(feed.number, results.step, None, results))

    def lost(self, connection: Connection) -> None:
        feed = self.feeds.get(connection.label.follower)
        if feed is not None and feed.connection is connection:
            del self.feeds[connection.label.follower]

    def waiting(self) -> frozenset[tuple[WorkerId, int]]:
        return frozenset((name, feed.number) for name, feed in self.feeds.items() if feed.waits)

    def capture(self, asked: frozenset[tuple[WorkerId, int]], step: Step, state: Digest, before: Results) -> None:
        for follower, number in sorted(asked):
            feed = self.feeds.get(follower)
            if feed is not None and feed.waits and feed.number == number:
                feed.waits, feed.active = False, True
                self.worker.simulation.checks.captured(follower, number, step)
                feed.connection.send(self.worker, Shared(number, step, state, before))
                self.worker.point("state half sent")

    def push(self, results: Results) -> None:
        for feed in self.feeds.values():
            if feed.active:
                feed.kept.append(results)
                feed.connection.send(self.worker, Shared(feed.number, results.step, None, results))
                self.worker.point("fed")


class Following:
    """A joiner's side. Begins with the first document that shows a view without it, when its script is ready."""

    def __init__(self, worker: "Worker") -> None:
        self.worker = worker
        self.number = 0
        self.links: dict[WorkerId, Connection] = {}
        self.here: dict[tuple[Step, bool], set[WorkerId]] = {}  # (step, state?) -> from whom
        self.had: Step | None = None
        self.taken: deque[Item] = deque()  # not yet with the script
        self.level = False
        self.frozen = False
        self.begun = False
        self._state: Item
        self._results: dict[Step, Results | None] = {}

    @property
    def follows(self) -> bool:
        return self.had is not None

    def look(self, document: Document) -> None:
        view = document.view
        if self.frozen or view is None:
            return
        gone = [w for w in self.links if w not in view.workers]
        for worker in gone:
            self.links.pop(worker).close(self.worker)
        if not self.begun:
            if self.worker.member.view is None and self.worker.id not in view.workers:
                self.begun = True
                self._attempt()
        elif gone or self._is_unheard_of(view.workers):
            self._go_on_without()

    def _is_unheard_of(self, workers: Collection[WorkerId]) -> bool:
        """Somebody has become a member meanwhile, to whom no wish has gone: then none of them captures a state."""
        waits = self.had is None and not self.here and bool(self.links)
        return waits and not {*workers} <= {*self.links, self.worker.id}

    def _attempt(self) -> None:
        document = self.worker.document
        if self.frozen or self.had is not None or self.worker.exit_code is not None:
            return
        for connection in self.links.values():
            connection.close(self.worker)
        self.number += 1
        self.links, self.here = {}, {}
        view = document.view if document is not None else None
        others = [w for w in view.workers if w != self.worker.id] if view is not None else []
        for other in others:
            member = self.worker.simulation.workers[other]
            made = self.worker.world.connect(self.worker, member, Label(self.worker.id, other))
            if made is None:
                self.worker.later(AGAIN_S, self._attempt)
                return
            self.links[other] = made
        for connection in self.links.values():
            self.worker.later(self.worker.world.latency(), connection.send, self.worker, Wish("state", self.number))

    def lost(self, connection: Connection) -> None:
        member = connection.label.member
        if self.links.get(member) is connection:
            del self.links[member]
            self._go_on_without()

    def _go_on_without(self) -> None:
        if self.frozen:
            return
        if self.had is None:
            for connection in self.links.values():
                connection.close(self.worker)
            self.links = {}
            self.worker.later(AGAIN_S, self._attempt)
            return
        self.number += 1
        self.here = {}
        for connection in self.links.values():
            connection.send(self.worker, Wish("results", self.number, self.had))

    def hear(self, connection: Connection, shared: Shared) -> None:
        member = connection.label.member
        if self.frozen or shared.number != self.number or self.links.get(member) is not connection:
            return
        key = (shared.step, shared.state is not None)
        self.here.setdefault(key, set()).add(member)
        if shared.state is not None:
            self._state = (shared.step, shared.state, shared.results)
        else:
            self._results[shared.step] = shared.results
        self._deliver()

    def _complete(self, step: Step, state: bool) -> bool:
        return bool(self.links) and self.here.get((step, state), set()) >= set(self.links)

    def _deliver(self) -> None:
        before = self.had
        if self.had is None:
            waiting = [step for step, state in self.here if state]
            if waiting and self._complete(waiting[0], True):
                self.had = Step(waiting[0] - 1)
                self.taken.append(self._state)
        while self.had is not None and self._complete(step := Step(self.had + 1), False):
            results = self._results[step]
            if results is None or results.step != step:
                raise Violation(f"{self.worker.name} was fed {results} as step {step}")
            self.had = step
            self.taken.append((step, None, results))
        if self.had is not None and self.had != before:
            self.worker.point("fed beside")
            self.worker.wake()
            self.worker.feed(Fed(self.had))

    def stop(self) -> None:
        """Its position is in a hello."""
        if self.frozen:
            return
        self.frozen = True
        for connection in self.links.values():
            connection.close(self.worker)
        self.links = {}
