"""Replicas in virtual time, on disks and a network that fail by a seed.

A replica crashes **at effect boundaries**: before and after each Persist, and before and after each Send that follows
one. (Crashes at random times almost never hit the gap between a reply and the sync that it relies on.) The network
loses, delays, doubles and reorders, is cut in one or both directions, and resets connections; processes stall. Every
rate is drawn per seed and many are zero: runs in which everything fails at once find less than runs that have a theme.

After each event the invariants of `node` are checked against a history that no replica sees. A run ends with a calm
phase in which the replicas must agree on one leader and commit.

``python -m orch_consensus_raft.simulation --seeds 10000`` runs many and prints how fast.
"""

import argparse
import heapq
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orch_consensus_raft.messages import NOTHING, Entry, HardState, Message, Saved, Snapshot, decode, encode
from orch_consensus_raft.node import (
    Accept,
    Apply,
    Drop,
    Effect,
    Event,
    Lead,
    Node,
    PeerConnected,
    PeerReset,
    Persist,
    Persisted,
    Proposal,
    Received,
    Refuse,
    Role,
    Send,
    StepDown,
    Tick,
)
from orch_core.contracts.consensus import Committed
from orch_core.contracts.ids import CoordinatorId, Term

FAULTY_S, CALM_S = 5.0, 4.0
EVENTS_LIMIT = 400_000  # of one run; the busiest sound runs have a quarter of it


class InvariantBroken(AssertionError):
    """A rule of Raft does not hold. The text says which, and where."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities per message or boundary, rates per second, durations in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.002
    late: float = 0.0  # share of messages that are held back up to 0.5 s, and so overtaken
    crash: float = 0.0  # per effect boundary
    down_s: float = 0.3
    cuts: float = 0.0
    cut_s: float = 0.5
    resets: float = 0.0
    stalls: float = 0.0
    disk_s: float = 0.001
    proposals: float = 20.0

    @classmethod
    def drawn(cls, draw: random.Random) -> "Faults":
        """A swarm member: each fault is absent from half of the runs. Some runs are all about elections."""
        if draw.random() < 0.15:
            return ELECTIONS

        def maybe(*values: float) -> float:
            return draw.choice(values) if draw.random() < 0.5 else 0.0

        return cls(
            loss=maybe(0.01, 0.1, 0.3),
            duplicate=maybe(0.05, 0.3),
            delay_s=draw.choice((0.001, 0.01, 0.05)),
            late=maybe(0.02, 0.1),
            crash=maybe(0.001, 0.005, 0.02),
            down_s=draw.choice((0.02, 0.3, 1.0)),
            cuts=maybe(0.5, 2.0, 5.0),
            cut_s=draw.choice((0.1, 0.7, 1.5)),
            resets=maybe(1.0, 5.0),
            stalls=maybe(0.5, 3.0),
            disk_s=draw.choice((0.0002, 0.005, 0.05)),
            proposals=draw.choice((2.0, 20.0, 60.0)),
        )


ELECTIONS = Faults(crash=0.05, down_s=0.01, resets=20.0, delay_s=0.05)


class Disk:
    """What a replica finds when it starts again."""

    def __init__(self) -> None:
        self.state, self.snapshot, self.entries = HardState(), NOTHING, list[Entry]()

    def write(self, persist: Persist) -> None:
        if not persist.writes:
            return
        self.state = persist.state
        if persist.snapshot is not None:
            self.snapshot, self.entries = persist.snapshot, []
        if persist.entries:
            self.entries[persist.first - self.snapshot.index - 1 :] = persist.entries

    def read(self) -> Saved:
        return Saved(self.state, self.snapshot, tuple(self.entries))

    def holds(self, index: int, term: Term) -> bool:
        at = index - self.snapshot.index - 1
        return at < 0 or (at < len(self.entries) and self.entries[at].term == term)


class Process:
    """A replica that can die. `life` tells events of an earlier one apart."""

    def __init__(self, me: CoordinatorId) -> None:
        self.id, self.disk = me, Disk()
        self.node: Node | None = None
        self.life = self.timer = 0
        self.pending: list[Persist] = []
        self.stalled_until = 0.0
        self.leads: Term | None = None
        self.accepted: dict[int, bytes] = {}


class History:
    """All entries that ever were and all that is committed; raises InvariantBroken."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self._disks = disks
        self._entries: dict[tuple[int, Term], tuple[Term, bytes | None]] = {}
        self._leaders: dict[Term, CoordinatorId] = {}
        self.committed: dict[int, Term] = {0: Term(0)}
        self._documents: dict[int, Committed | None] = {0: None}
        self._commits: list[tuple[Term, int]] = []  # in which term what was committed

    @property
    def newest(self) -> int:
        return max(self.committed)

    def check_leader(self, node: Node) -> None:
        """Election Safety and Leader Completeness, when `node` has just become leader."""
        other = self._leaders.setdefault(node.term, node.id)
        if other != node.id:
            raise InvariantBroken(f"Election Safety: {other} and {node.id} lead term {node.term}")
        index = self._committed_before(node.term)
        if node.log.base.index < index and node.log.term_at(index) != self.committed[index]:
            raise InvariantBroken(f"Leader Completeness: {node.id} leads {node.term} without entry {index}")

    def check_lead(self, node: Node, document: Committed | None) -> None:
        """Who may write has applied all that was committed before its term."""
        index = self._committed_before(node.term)
        if node.log.base.index < index:
            raise InvariantBroken(f"{node.id} leads {node.term} and has not applied entry {index}")
        if document != self._documents[node.log.base.index]:
            raise InvariantBroken(f"{node.id} leads {node.term} with a document that is not the newest")

    def record(self, node: Node, persist: Persist) -> None:
        """Log Matching: (index, term) says what an entry is and which one stands before it."""
        before = node.log.term_at(persist.first - 1)
        assert before is not None, "a Persist continues the log"
        for index, entry in enumerate(persist.entries, persist.first):
            known = self._entries.setdefault((index, entry.term), (before, entry.document))
            if known != (before, entry.document):
                raise InvariantBroken(f"Log Matching: {node.id} has another entry {index} of term {entry.term}")
            before = entry.term

    def apply(self, node: Node, snapshot: Snapshot) -> None:
        """State Machine Safety, and that what is committed is durable on a majority."""
        new, index, term = [], snapshot.index, snapshot.term
        while index not in self.committed:
            new.append((index, term))
            index, term = index - 1, self._entries[(index, term)][0]
        if self.committed[index] != term:
            raise InvariantBroken(
                f"State Machine Safety: {node.id} applies term {term} at {index}, not {self.committed[index]}"
            )
        for at, written_in in reversed(new):
            document = self._entries[(at, written_in)][1]
            self._documents[at] = self._documents[at - 1] if document is None else Committed(document, written_in, at)
            self.committed[at] = written_in
        if new:
            self._commits.append((node.term, snapshot.index))
            holders = sum(disk.holds(snapshot.index, snapshot.term) for disk in self._disks)
            if holders * 2 <= len(self._disks):
                raise InvariantBroken(f"entry {snapshot.index} is committed and durable on {holders} replicas only")
        if snapshot.document != self._documents[snapshot.index]:
            raise InvariantBroken(f"State Machine Safety: {node.id} applies another document at {snapshot.index}")

    def check_accepted(self, index: int, document: bytes) -> None:
        kept = self._entries[(index, self.committed[index])][1]
        if kept != document:
            raise InvariantBroken(f"a commit was confirmed at {index}, and something else stands there")

    def _committed_before(self, term: Term) -> int:
        return max((index for committed_in, index in self._commits if committed_in < term), default=0)


class RaftCluster:
    """`replicas` processes in virtual time. Same arguments, same run."""

    def __init__(self, seed: int, replicas: int, faults: Faults, make: Callable[..., Node] = Node) -> None:
        self.draw, self.faults, self._make = random.Random(seed), faults, make
        self.now, self.events = 0.0, 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = self._written = 0
        self.ids = tuple(CoordinatorId(f"c{number}") for number in range(replicas))
        self.processes = {me: Process(me) for me in self.ids}
        self.history = History([process.disk for process in self.processes.values()])
        self._blocked: dict[tuple[CoordinatorId, CoordinatorId], float] = {}  # until when
        for me in self.ids:
            self.start(me)

    # ---- driving -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The faulty phase, then the calm one."""
        for rate, act in (
            (self.faults.proposals, self._propose_somewhere),
            (self.faults.cuts, self._cut),
            (self.faults.resets, self._reset_somewhere),
            (self.faults.stalls, self._stall),
        ):
            if rate:
                self._repeat(rate, act)
        self.advance(FAULTY_S)
        self.calm_down()
        self.advance(CALM_S)
        self.check_agreement()

    def advance(self, duration_s: float) -> None:
        end = self.now + duration_s
        while self._queue and self._queue[0][0] <= end:
            self.now, _, act = heapq.heappop(self._queue)
            self.events += 1
            if self.events > EVENTS_LIMIT:
                raise InvariantBroken("replicas answer each other without end")
            act()
        self.now = end

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        self._at_time(self.now + delay_s, act)

    def _at_time(self, when: float, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, act))

    def calm_down(self) -> None:
        """Mend everything."""
        self.faults = Faults(proposals=self.faults.proposals)
        self._blocked.clear()
        for process in self.processes.values():
            if process.node is None:
                self.start(process.id)

    def check_agreement(self) -> None:
        """Liveness: one leader, and what it commits reaches everybody."""
        leaders = [process for process in self.processes.values() if process.leads is not None]
        if len(leaders) != 1:
            raise InvariantBroken(f"{len(leaders)} replicas lead after the network has healed")
        before = self.history.newest
        self.propose(leaders[0].id)
        self.advance(0.5)
        behind = [
            me for me, process in self.processes.items() if not process.node or process.node.log.base.index <= before
        ]
        if behind:
            raise InvariantBroken(f"a commit in a calm network did not reach {', '.join(behind)}")

    def node(self, me: CoordinatorId) -> Node:
        node = self.processes[me].node
        assert node is not None, f"{me} is down"
        return node

    # ---- processes ---------------------------------------------------------------------------------------------------

    def start(self, me: CoordinatorId) -> None:
        process = self.processes[me]
        if process.node is not None:
            return
        process.life += 1
        process.node = self._make(me, self.ids, process.disk.read(), self.now, random=self.draw.random)
        process.stalled_until = 0.0
        self._arm(process)
        for peer in self.ids:
            if peer != me and self.processes[peer].node is not None:
                self.post(peer, PeerConnected(me), self._delay())
                self.post(me, PeerConnected(peer), self._delay())

    def crash(self, me: CoordinatorId) -> None:
        """End the process; a part of what its disk had begun is durable."""
        process = self.processes[me]
        if process.node is None:
            return
        for persist in process.pending[: self.draw.randint(0, len(process.pending))]:
            process.disk.write(persist)
        process.node, process.leads = None, None
        process.pending, process.accepted = [], {}
        process.life += 1
        for peer in self.ids:
            if peer != me and self.draw.random() < 0.8:  # else only its silence tells
                self.post(peer, PeerReset(me), self._delay())

    def post(self, me: CoordinatorId, event: Event, delay_s: float) -> None:
        """Let `event` happen to the present life of `me`."""
        life = self.processes[me].life
        self.at(delay_s, lambda: self._happen(me, life, event))

    def propose(self, me: CoordinatorId) -> None:
        process = self.processes[me]
        if process.leads is not None:
            self._written += 1
            self._happen(me, process.life, Proposal(process.leads, f"document {self._written}".encode()))

    def _happen(self, me: CoordinatorId, life: int, event: Event) -> None:
        process = self.processes[me]
        if process.node is None or process.life != life:
            return
        if process.stalled_until > self.now:
            self._at_time(process.stalled_until, lambda: self._happen(me, life, event))
            return
        led = process.node.role is Role.LEADER
        effects = process.node.handle(event, self.now)
        if process.node.role is Role.LEADER and not led:
            self.history.check_leader(process.node)
        self._perform(process, effects, event)
        self._arm(process)

    def _arm(self, process: Process) -> None:
        if process.node is None:
            return
        process.timer += 1
        timer, life = process.timer, process.life

        def ring() -> None:
            if process.timer == timer:
                self._happen(process.id, life, Tick())

        self.at(max(0.0, process.node.deadline - self.now), ring)

    # ---- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, process: Process, effects: Iterable[Effect], event: Event | None = None) -> None:
        for effect in effects:
            if process.node is None or self._crashes(process, effect):
                return
            match effect:
                case Send():
                    self.transmit(process.id, effect.peer, effect.message)
                case Persist():
                    self.history.record(process.node, effect)
                    self._begin_persist(process, effect)
                case Apply():
                    self.history.apply(process.node, effect.snapshot)
                    for index in [index for index in process.accepted if index <= effect.snapshot.index]:
                        self.history.check_accepted(index, process.accepted.pop(index))
                case Lead():
                    self.history.check_lead(process.node, effect.document)
                    process.leads = effect.term
                case StepDown():
                    process.leads, process.accepted = None, {}
                case Accept():
                    assert isinstance(event, Proposal), "only a proposal is accepted"
                    process.accepted[effect.index] = event.document
                case Refuse():
                    pass
                case Drop():
                    raise InvariantBroken(f"{process.id} met a message that cannot be: {effect.reason}")
            if self._crashes(process, effect):
                return

    def _crashes(self, process: Process, effect: Effect) -> bool:
        if not isinstance(effect, Send | Persist) or self.draw.random() >= self.faults.crash:
            return False
        self.crash(process.id)
        self.at(self.draw.uniform(0, 2 * self.faults.down_s), lambda: self.start(process.id))
        return True

    def _begin_persist(self, process: Process, persist: Persist) -> None:
        process.pending.append(persist)
        life = process.life
        self.at(self._disk_delay(), lambda: self._disk_done(process, life))

    def _disk_done(self, process: Process, life: int) -> None:
        """One Persist is through: the oldest."""
        if process.life != life or not process.pending:
            return
        if process.stalled_until > self.now:
            self._at_time(process.stalled_until, lambda: self._disk_done(process, life))
            return
        persist = process.pending.pop(0)
        process.disk.write(persist)
        if self._crashes(process, persist):
            return
        self._perform(process, persist.then)
        self._happen(process.id, life, Persisted(persist.sequence))

    # ---- network -----------------------------------------------------------------------------------------------------

    def transmit(self, sender: CoordinatorId, receiver: CoordinatorId, message: Message) -> None:
        if self._blocked.get((sender, receiver), 0.0) > self.now or self.draw.random() < self.faults.loss:
            return
        if self.draw.random() < 0.05 and decode(encode(message)) != message:
            raise InvariantBroken(f"{message} does not survive its encoding")
        copies = 2 if self.draw.random() < self.faults.duplicate else 1
        for _ in range(copies):
            self.at(self._delay(), lambda: self._arrive(sender, receiver, message))

    def _arrive(self, sender: CoordinatorId, receiver: CoordinatorId, message: Message) -> None:
        self._happen(receiver, self.processes[receiver].life, Received(sender, message))

    def _delay(self) -> float:
        late = self.draw.uniform(0, 0.5) if self.draw.random() < self.faults.late else 0.0
        return late + self.draw.uniform(0.0001, self.faults.delay_s)

    def _disk_delay(self) -> float:
        return self.draw.uniform(0.0001, self.faults.disk_s)

    # ---- the nemesis -------------------------------------------------------------------------------------------------

    def _repeat(self, rate: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.at(self.draw.expovariate(rate), again)

        self.at(self.draw.expovariate(rate), again)

    def _propose_somewhere(self) -> None:
        for me in self.ids:
            self.propose(me)

    def _cut(self) -> None:
        if not self.faults.cuts:
            return
        inside = set(self.draw.sample(self.ids, self.draw.randint(1, max(1, len(self.ids) // 2))))
        both_ways, until = self.draw.random() < 0.7, self.now + self.draw.uniform(0, 2 * self.faults.cut_s)
        for a in inside:
            for b in set(self.ids) - inside:
                self._blocked[a, b] = until
                if both_ways:
                    self._blocked[b, a] = until

    def _reset_somewhere(self) -> None:
        if self.faults.resets and len(self.ids) > 1:
            a, b = self.draw.sample(self.ids, 2)
            self.post(a, PeerReset(b), self._delay())
            self.post(b, PeerReset(a), self._delay())

    def _stall(self) -> None:
        if self.faults.stalls:
            self.processes[self.draw.choice(self.ids)].stalled_until = self.now + self.draw.uniform(0, 1.5)


def run_seed(
    seed: int,
    make: Callable[..., Node] = Node,
    replicas: Sequence[int] = (1, 3, 3, 4, 5),
    faults: Faults | None = None,
) -> RaftCluster:
    """One run, all of it drawn from `seed`. Raises InvariantBroken naming the seed."""
    draw = random.Random(seed)
    cluster = RaftCluster(seed, draw.choice(replicas), faults or Faults.drawn(draw), make)
    try:
        cluster.run()
    except InvariantBroken as broken:
        raise InvariantBroken(f"seed {seed}, {len(cluster.ids)} replicas, at {cluster.now:.3f} s: {broken}") from broken
    return cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    began, events, commits = time.perf_counter(), 0, 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        cluster = run_seed(seed)
        events, commits = events + cluster.events, commits + cluster.history.newest
    spent = time.perf_counter() - began
    print(
        f"raft: {arguments.seeds} seeds, {events} events, {commits} commits, {spent:.1f} s,"
        f" {arguments.seeds / spent:.0f} seeds/s, {events / spent:.0f} events/s"
    )


if __name__ == "__main__":
    main()
