"""`table`: a handful of nodes on a table, with every message, sync and minute in the test's hands."""

from collections.abc import Callable

import pytest

from orch_consensus_raft.messages import Message, Saved
from orch_consensus_raft.node import Effect, Event, Node, Persist, Persisted, Received, Role, Send, Tick
from orch_consensus_raft.simulation import Disk, History
from orch_core.contracts.ids import CoordinatorId

Letter = tuple[CoordinatorId, CoordinatorId, Message]


class Table:
    """Disks are instant; letters lie in `wire` until :meth:`deliver`; time passes for who is told so."""

    def __init__(self, count: int, make: Callable[..., Node] = Node) -> None:
        self.ids = tuple(CoordinatorId(f"c{number}") for number in range(count))
        self.make, self.now = make, 100.0
        self.disks = {me: Disk() for me in self.ids}
        self.history = History(list(self.disks.values()))
        self.nodes: dict[CoordinatorId, Node] = {}
        self.wire: list[Letter] = []
        self.news: list[tuple[CoordinatorId, Effect]] = []
        for me in self.ids:
            self.restart(me)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[self.ids[number]]

    def restart(self, me: CoordinatorId, saved: Saved | None = None) -> Node:
        saved = saved or self.disks[me].read()
        self.nodes[me] = self.make(me, self.ids, saved, self.now, random=lambda: 0.99)
        self.wire = [letter for letter in self.wire if letter[0] != me]
        return self.nodes[me]

    def feed(self, number: int, event: Event) -> tuple[Effect, ...]:
        """Let `event` happen; carry out what follows, instantly."""
        node = self[number]
        led = node.role is Role.LEADER
        effects = node.handle(event, self.now)
        if node.role is Role.LEADER and not led:
            self.history.check_leader(node)
        for effect in effects:
            match effect:
                case Send():
                    self.wire.append((node.id, effect.peer, effect.message))
                case Persist():
                    self.history.record(node, effect)
                    self.disks[node.id].write(effect)
                    self.wire += [(node.id, send.peer, send.message) for send in effect.then]
                    self.feed(number, Persisted(effect.sequence))
                case _:
                    self.news.append((node.id, effect))
                    if hasattr(effect, "snapshot"):
                        self.history.apply(node, effect.snapshot)
        return effects

    def wait(self, number: int, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            self.feed(number, Tick())

    def deliver(self, *between: int, only: type | tuple[type, ...] = object) -> None:
        """Deliver until nothing is left, among these (default: all). What is not for them is lost."""
        among = {self.ids[number] for number in between or range(len(self.ids))}
        while self.wire:
            sender, receiver, message = self.wire.pop(0)
            if {sender, receiver} <= among and isinstance(message, only):
                self.feed(self.ids.index(receiver), Received(sender, message))

    def elect(self, number: int, *voters: int, only: type | tuple[type, ...] = object) -> None:
        """Let `number` campaign when these have lost patience with any leader; deliver what comes of it."""
        for voter in voters:
            self.wait(voter, 0.35)
        self.wire.clear()
        while not self.wire:
            self.wait(number, 0.05)
        self.deliver(number, *voters, only=only)


@pytest.fixture
def table() -> type[Table]:
    return Table
