"""Coordinators over a register that keeps what consensus promises: one writer per term, commits by a majority.

The register is abstract (Raft has a simulation of its own): a commit takes a while; a leader may die, freeze or be
cut off with a commit under way, which is then in or not, and nobody can tell; a stalled leader goes on to believe.
The leader drives the real `cluster.decide` with the real judge's clock, as `coordinator/lead.py` does.
"""

from typing import TYPE_CHECKING, Any

from orch_core.contracts.document import Document
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import AgentId, Term, WorkerId, place_and_life
from orch_core.contracts.status import AgentStatus, WorkerStatus
from orch_core.coordinator.lead import IDLE_S, PENDING_S, SHORTEST_S, JudgeClock
from orch_core.protocol import cluster
from orch_core.protocol.cluster import Heard, Observed
from orch_core.rpc.stream import SILENCE_S as LEADER_SILENCE_S
from orch_core.testing.simulator.world import Connection, Process, World

if TYPE_CHECKING:
    from orch_core.testing.simulator.simulation import Simulation

CHECK_QUORUM_S = 0.6


class Register:
    """The replicated document."""

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.document: Document | None = None
        self.term = 0
        self.leader: Coordinator | None = None
        self.coordinators: list[Coordinator] = []
        self._uncertain: Document | None = None  # proposed by a leader that is gone: in or not
        self._electing = False

    def start(self, count: int) -> None:
        self.coordinators = [Coordinator(self, f"c{i}") for i in range(count)]
        self._elect_after(0.01)

    def healthy(self) -> "list[Coordinator]":
        return [c for c in self.coordinators if c.alive and not c.frozen and not c.isolated]

    @property
    def quorum(self) -> bool:
        return len(self.healthy()) > len(self.coordinators) // 2

    def fault(self, delay: float) -> None:
        """Something happened to a coordinator: followers will look for a leader."""
        self._elect_after(delay)

    def propose(self, leader: "Coordinator", term: int, document: Document) -> None:
        if term == self.term:
            self._uncertain = document
        self.world.after(
            self.simulation.swarm.commit_s * (0.5 + self.world.rng.random()), self._resolve, leader, term, 0.0
        )

    def isolate(self, leader: "Coordinator") -> None:
        """CheckQuorum: a leader that hears no majority steps down, before anybody else may be missed elsewhere."""
        leader.isolated = True
        leader.later(CHECK_QUORUM_S, leader.check_quorum, leader.term)

    def rejoin(self, coordinator: "Coordinator") -> None:
        """Its links to the others are back, and it hears of newer terms."""
        coordinator.isolated = False
        if coordinator.term and coordinator.term != self.term:
            coordinator.later(0.03, coordinator.lose, coordinator.term)

    def restart(self, dead: "Coordinator") -> None:
        index = self.coordinators.index(dead)
        self.coordinators[index] = Coordinator(self, dead.name)
        self.fault(0.05)

    def _resolve(self, leader: "Coordinator", term: int, waited: float) -> None:
        if term != self.term:
            leader.later(0.0, leader.lose, term)
            return
        document = self._uncertain
        if document is None:
            return
        if leader.alive and (leader.isolated or not self.quorum) and waited < CHECK_QUORUM_S:
            self.world.after(0.05, self._resolve, leader, term, waited + 0.05)
        elif leader.isolated or not self.quorum:
            leader.later(0.0, leader.lose, term)
        elif leader.alive or self.world.chance(0.5):
            self._uncertain = None
            self._write(document)
            leader.later(0.0, leader.committed, term, document)

    def _write(self, document: Document) -> None:
        self.simulation.checks.committed(self.document, document)
        self.document = document

    def _elect_after(self, delay: float) -> None:
        if not self._electing:
            self._electing = True
            self.world.after(delay, self._elect)

    def _elect(self) -> None:
        self._electing = False
        if self.leader is not None and self.leader in self.healthy() and self.leader.term == self.term and self.quorum:
            return
        if not self.quorum:
            self._elect_after(0.1)
            return
        if self._uncertain is not None:
            if self.world.chance(0.5):
                self._write(self._uncertain)
            self._uncertain = None
        self.term += 1
        for other in self.coordinators:
            if other.term and not other.isolated:
                other.later(0.03, other.lose, other.term)  # it hears of the new term; when it wakes, if it is frozen
        self.leader = self.world.rng.choice(self.healthy())
        self.leader.later(self.world.latency(), self.leader.lead, self.term, self.document)


class Coordinator(Process):
    def __init__(self, register: Register, name: str) -> None:
        super().__init__(register.world, name, name)
        self.register = register
        self.simulation = register.simulation
        self.isolated = False  # from the other coordinators
        self.term = 0
        self.document: Document | None = None
        self.clients: dict[str, Connection] = {}
        self._again: float | None = None  # when `decide` wants to look even if nothing is heard
        self._awake = False
        self._begin()

    @property
    def leads(self) -> bool:
        return self.document is not None

    # leadership

    def lead(self, term: int, known: Document | None) -> None:
        self.world.say(f"{self.name} leads in term {term}")
        self._begin()
        self.term = term
        wall = self.world.now
        document = cluster.first_document(self.simulation.spec, wall) if known is None else known
        self._commit(cluster.took_over(document, Term(term), wall))

    def lose(self, term: int) -> None:
        if term != self.term or not term:
            return
        self.world.say(f"{self.name} has lost term {term}")
        self.document = None
        self._in_flight = False
        self.term = 0
        for connection in list(self.clients.values()):
            connection.close(self)
        self.clients.clear()
        self.register.fault(0.15)

    def freeze(self) -> None:
        super().freeze()
        for connection in list(self.clients.values()):
            self.world.after(LEADER_SILENCE_S * self.world.between(0.67, 1.0), self._unheard, connection)

    def _unheard(self, connection: Connection) -> None:
        """A leader says something every 500 ms; a client that hears nothing looks for another one."""
        if self.frozen:
            connection.reset()

    def check_quorum(self, term: int) -> None:
        if self.isolated or not self.register.quorum:
            self.lose(term)

    def committed(self, term: int, document: Document) -> None:
        if term != self.term:
            return
        self.point("end-committed" if _ends(self.document, document) else "committed")
        self._in_flight = False
        self.document = document
        self._forget(document)
        for connection in list(self.clients.values()):
            connection.send(self, document)
        self._look()

    # clients

    def receive(self, connection: Connection, payload: Any) -> None:
        if not self.leads:
            connection.close(self)
            return
        name = connection.peer_of(self).name
        if name not in self.clients:
            assert self.document is not None
            self.clients[name] = connection
            connection.send(self, self.document)
        self._posted.append(payload)
        if not self._awake:
            self._awake = True
            self.later(0.0002, self._wake, -1)

    def command(self, name: str, **args: str) -> None:
        """A person asks; what is no command of this job is refused."""
        self.world.say(f"orch {name} {args}")
        self._commands.append((name, args))
        self.later(0.0002, self._look)

    def lost(self, connection: Connection) -> None:
        name = connection.peer_of(self).name
        if self.clients.get(name) is connection:
            del self.clients[name]

    # the loop of coordinator/lead.py

    def _begin(self) -> None:
        """What was heard belongs to one leadership."""
        self._again = None
        self._judge = JudgeClock(lambda: self.world.now)
        self._workers: dict[WorkerId, Heard[WorkerStatus]] = {}
        self._agents: dict[AgentId, Heard[AgentStatus]] = {}
        self._observed = Observed(self._workers, self._agents, leading_since=0.0)
        self._posted: list[WorkerStatus | AgentStatus] = []
        self._in_flight = False
        self._awake = False
        self._timer = 0
        self._commands: list[tuple[str, dict[str, str]]] = []

    def _wake(self, timer: int) -> None:
        if timer >= 0 and timer != self._timer:
            return
        if timer < 0:
            self._awake = False
        if not self.leads:
            return
        now = self._judge.wake()
        for status in self._posted:
            if isinstance(status, WorkerStatus):
                worker = cluster.hear(self._workers.get(status.worker), status, now)
                if worker is not None:
                    self._workers[status.worker] = worker
            else:
                agent = cluster.hear(self._agents.get(status.agent), status, now)
                if agent is not None:
                    self._agents[status.agent] = agent
        heard = bool(self._posted)
        self._posted.clear()
        self._look(only_if_due=not heard)

    def _look(self, *, only_if_due: bool = False) -> None:
        if self._in_flight or self.document is None:
            return
        while self._commands:
            try:
                document = cluster.command(self.document, *self._commands.pop(0), self.world.now)
            except ConfigurationError as error:
                self.world.say(f"refused: {error}")
                continue
            if document.revision != self.document.revision:
                self._commit(document)
                return
        now = self._judge.wake()
        if not only_if_due or (self._again is not None and now >= self._again):
            decision = cluster.decide(self.document, self._observed, now, self.world.now)
            self._again = decision.look_again_at
            if decision.document is not None:
                self._commit(decision.document)
                return
        self._timer += 1
        wait = IDLE_S if self._again is None else max(SHORTEST_S, min(PENDING_S * 2, self._again - now))
        self.later(wait, self._wake, self._timer)

    def _commit(self, document: Document) -> None:
        self.point("before-end-commit" if _ends(self.document, document) else "before-commit")
        self._in_flight = True
        self.register.propose(self, self.term, document)

    def _forget(self, document: Document) -> None:
        view = document.view
        present = {p.worker for p in document.places} | {*document.formed_members, *(view.workers if view else ())}
        known = {p.id for p in document.places}
        for worker in [w for w in self._workers if w not in present and place_and_life(w)[0] in known]:
            del self._workers[worker]


class Uplink:
    """A client's stream to whoever leads: dials again and again, and says everything anew on each connection."""

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.connection: Connection | None = None
        self._dialling = False

    def start(self) -> None:
        self._dial_after(0.0)

    def send(self, payload: Any) -> None:
        if self.connection is not None:
            self.connection.send(self.client, payload)

    def lost(self) -> None:
        self.connection = None
        self._dial_after(0.02)

    def _dial_after(self, delay: float) -> None:
        if not self._dialling:
            self._dialling = True
            self.client.later(delay + self.client.world.latency(), self._dial)

    def _dial(self) -> None:
        self._dialling = False
        leaders = [c for c in self.client.simulation.register.coordinators if c.alive and c.leads and not c.frozen]
        leader = max(leaders, key=lambda c: c.term, default=None)
        if leader is not None and len(leaders) > 1 and self.client.world.chance(0.2):
            leader = self.client.world.rng.choice(leaders)
        connection = self.client.world.connect(self.client, leader, "control") if leader is not None else None
        if connection is None:
            self._dial_after(0.1)
            return
        self.connection = connection
        self.client.report()


class Client(Process):
    """A worker or an agent, as coordinators see it."""

    def __init__(self, simulation: "Simulation", name: str, host: str) -> None:
        super().__init__(simulation.world, name, host)
        self.simulation = simulation
        self.uplink = Uplink(self)

    def report(self) -> None:
        """Send the whole status."""
        raise NotImplementedError


def _ends(before: Document | None, after: Document) -> bool:
    return after.finished is not None and (before is None or before.finished is None)


__all__ = ["Client", "Coordinator", "Register", "Uplink", "World"]
