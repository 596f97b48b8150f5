"""Virtual time, processes that die and freeze, and a network of connections that are slow, cut or reset.

Everything that happens is an event in one queue, and all chance comes from one generator: a seed is a schedule.
A process is killed *at an effect boundary* by raising Killed where it says ``point(...)``, or between two events.
"""

import heapq
import random
from collections.abc import Callable
from typing import Any

USER_TIMEOUT_S = 2.0  # TCP_USER_TIMEOUT and keepalives of every link
Action = Callable[..., object]


class Killed(BaseException):
    """Unwinds the stack of a process that has just been killed. Not an Exception: nothing may catch it."""


class Violation(AssertionError):
    """A promise was broken."""


class Fin:
    """The last thing that comes out of a connection that was closed in order."""


FIN = Fin()


class Process:
    """Something that runs: events come to it one at a time, wait while it is frozen, and are lost when it is dead."""

    def __init__(self, world: "World", name: str, host: str) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.alive = True
        self.frozen = False
        self.connections: dict[Connection, None] = {}
        self._waiting: list[tuple[Action, tuple[Any, ...]]] = []

    def receive(self, connection: "Connection", payload: Any) -> None:
        """Something has come out of a connection."""

    def lost(self, connection: "Connection") -> None:
        """A connection was closed by the other side, or reset."""

    def point(self, name: str) -> None:
        """An effect boundary: the process may be killed here."""
        watchers = self.world.watchers
        if watchers:
            for watcher in watchers:
                watcher(self, name)
            if not self.alive:
                raise Killed

    def later(self, delay: float, action: Action, *args: Any) -> None:
        self.world.at(self.world.now + delay, self, action, *args)

    def run(self, action: Action, args: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.frozen:
            self._waiting.append((action, args))
            return
        try:
            action(*args)
        except Killed:
            pass

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        if not self.frozen:
            return
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for action, args in waiting:
            self.run(action, args)

    def end(self, delay: float = 0.0) -> None:
        """The process is gone; its connections close when its memory is freed."""
        if not self.alive:
            return
        self.alive = False
        self._waiting.clear()
        self.world.at(self.world.now + delay, None, self._close_all)

    def _close_all(self) -> None:
        for connection in list(self.connections):
            connection.close(self)
        self.connections.clear()


class Connection:
    """A TCP connection between two processes: in order, until it is closed, reset or cut for too long."""

    __slots__ = ("_closed", "_held", "_last", "broken", "ends", "frames", "label", "world")

    def __init__(self, world: "World", a: Process, b: Process, label: Any) -> None:
        self.world = world
        self.ends = (a, b)
        self.label = label  # whatever the two ends want to know about it
        self.frames: list[Any] = []  # received and not yet read
        self.broken = False
        self._closed = [False, False]
        self._last = [0.0, 0.0]
        self._held: tuple[list[Any], list[Any]] = ([], [])
        a.connections[self] = None
        b.connections[self] = None

    def peer_of(self, process: Process) -> Process:
        return self.ends[1] if process is self.ends[0] else self.ends[0]

    def send(self, sender: Process, payload: Any) -> None:
        way = 0 if sender is self.ends[0] else 1
        if self.broken or self._closed[way]:
            return
        if self.world.blocked and (sender.host, self.ends[1 - way].host) in self.world.blocked:
            self._held[way].append(payload)
            return
        due = self.world.now + self.world.latency()
        due = max(due, self._last[way])
        self._last[way] = due
        self.world.at(due, self.ends[1 - way], self._arrive, way, payload)

    def close(self, by: Process) -> None:
        """In order: what was sent before still arrives."""
        way = 0 if by is self.ends[0] else 1
        if self._closed[way] or self.broken:
            return
        self.send(by, FIN)
        self._closed[way] = True
        by.connections.pop(self, None)

    def reset(self) -> None:
        """At once: what is under way is lost, and both ends notice."""
        if self.broken:
            return
        self.broken = True
        for way, process in enumerate(self.ends):
            process.connections.pop(self, None)
            if not self._closed[way]:
                process.later(self.world.latency(), process.lost, self)

    def unblock(self, source: str) -> None:
        for way in (0, 1):
            if self.ends[way].host == source and self._held[way]:
                held = self._held[way][:]
                self._held[way].clear()
                closed, self._closed[way] = self._closed[way], False
                for payload in held:
                    self.send(self.ends[way], payload)
                self._closed[way] = closed

    def _arrive(self, way: int, payload: Any) -> None:
        if self.broken or self._closed[1 - way]:
            return
        receiver = self.ends[1 - way]
        if payload is FIN:
            self._closed[1 - way] = True
            receiver.connections.pop(self, None)
            receiver.lost(self)
        else:
            receiver.receive(self, payload)


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.blocked: dict[tuple[str, str], int] = {}  # (from, to) -> when it was cut, counted
        self.connections: list[Connection] = []
        self.watchers: list[Callable[[Process, str], None]] = []
        self.slow_share = 0.0  # of messages that take much longer
        self.trace: Callable[[str], None] | None = None
        self._queue: list[tuple[float, int, Process | None, Action, tuple[Any, ...]]] = []
        self._count = 0
        self._cuts = 0

    def at(self, time: float, process: Process | None, action: Action, *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, process, action, args))

    def after(self, delay: float, action: Action, *args: Any) -> None:
        self.at(self.now + delay, None, action, *args)

    def step(self) -> bool:
        """One event. False if there is none."""
        if not self._queue:
            return False
        self.now, _, process, action, args = heapq.heappop(self._queue)
        self.events += 1
        if process is None:
            action(*args)
        else:
            process.run(action, args)
        return True

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now:9.4f} {text}")

    def latency(self) -> float:
        if self.slow_share and self.rng.random() < self.slow_share:
            return self.rng.random() * 0.4
        return 0.0002 + self.rng.random() * 0.002

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    # the network

    def connect(self, a: Process, b: Process, label: Any) -> Connection | None:
        """None if nobody answers: refused, or lost on the way. A frozen process's kernel answers."""
        if not b.alive or (a.host, b.host) in self.blocked or (b.host, a.host) in self.blocked:
            return None
        connection = Connection(self, a, b, label)
        self.connections.append(connection)
        if len(self.connections) > 256:
            self.connections = [c for c in self.connections if not c.broken and c.ends[0].alive and c.ends[1].alive]
        return connection

    def block(self, source: str, target: str) -> None:
        """Packets from one host to another are dropped; after a while both ends of a connection give up."""
        if source == target or (source, target) in self.blocked:
            return
        self._cuts += 1
        self.blocked[source, target] = self._cuts
        self.after(USER_TIMEOUT_S + self.rng.random() * 0.3, self._give_up, source, target, self._cuts)

    def unblock(self, source: str, target: str) -> None:
        if self.blocked.pop((source, target), None) is None:
            return
        for connection in self._between(source, target):
            connection.unblock(source)

    def heal(self) -> None:
        for source, target in list(self.blocked):
            self.unblock(source, target)

    def _give_up(self, source: str, target: str, cut: int) -> None:
        if self.blocked.get((source, target)) == cut:
            for connection in self._between(source, target):
                connection.reset()

    def _between(self, source: str, target: str) -> list[Connection]:
        hosts = {source, target}
        return [c for c in self.connections if not c.broken and {c.ends[0].host, c.ends[1].host} == hosts]
