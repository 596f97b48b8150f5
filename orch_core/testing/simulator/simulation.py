"""One simulated job: everything from one seed, faults first, and then it must end."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from orch_core.contracts.ids import JobName, WorkerId
from orch_core.contracts.job import JobSpec
from orch_core.testing.simulator.agent import Agent
from orch_core.testing.simulator.bits import Bits
from orch_core.testing.simulator.checks import Checks
from orch_core.testing.simulator.coordinator import Register
from orch_core.testing.simulator.faults import Nemesis
from orch_core.testing.simulator.swarm import Swarm, draw
from orch_core.testing.simulator.worker import Worker
from orch_core.testing.simulator.world import Violation, World

PATIENCE_S = 120.0  # of virtual time, after faults have stopped
EVENTS_LIMIT = 200_000
BLAME_S = 40.0  # a fault may be held against a host for so long: STALL_S and what comes on top


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    events: int
    virtual_s: float
    views: int
    steps: int
    lost_steps: int
    violation: str = ""


class Simulation:
    def __init__(self, seed: int, swarm: Swarm | None = None, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.world = World(seed)
        self.world.trace = trace
        self.swarm = swarm or draw(random.Random(seed))
        self.swarm.rng = self.world.rng
        self.bits = Bits(self.swarm.shards)
        self.checks = Checks(self)
        self.spec = JobSpec(
            JobName("simulated"),
            shards=self.swarm.shards,
            workers=self.swarm.workers,
            min_workers=self.swarm.min_workers,
            max_workers=self.swarm.max_workers or self.swarm.workers,
            max_restarts=1000,
        )
        self.workers: dict[WorkerId, Worker] = {}
        self.register = Register(self)
        self.agent = Agent(self)
        self.hosts = [*(f"w{i}" for i in range(self.spec.max_workers)), self.agent.host]
        self.nemesis = Nemesis(self)
        self.reap_late_s = 0.0  # directed: how much later the agent notices an exit
        self.expect: Callable[[Simulation], None] = lambda simulation: None
        self.milestones: set[str] = set()  # directed: what of the schedule has come about
        self._triggers: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self._blamed: dict[str, float] = {}

    def when(self, condition: Callable[[], bool], action: Callable[[], None]) -> None:
        """Do something once, right after the event that makes the condition true."""
        self._triggers.append((condition, action))

    def run(self) -> Outcome:
        """To the end. Raises Violation with seed and time in its message."""
        try:
            self.start()
            while not self.ended:
                self._step()
            self.checks.ended()
            self.expect(self)
        except Violation as violation:
            raise Violation(f"seed {self.seed}, at {self.world.now:.4f} s: {violation}") from violation
        return self.outcome()

    def _step(self) -> None:
        if not self.world.step():
            raise Violation("nothing happens any more")
        if self.world.events > EVENTS_LIMIT:
            raise Violation("too many events")
        if self.world.now > self.swarm.until_s + PATIENCE_S:
            raise Violation("faults have stopped long ago, and the job does not end")
        if self._triggers:
            due = [trigger for trigger in self._triggers if trigger[0]()]
            for trigger in due:
                self._triggers.remove(trigger)
                trigger[1]()

    def start(self) -> None:
        self.register.start(self.swarm.coordinators)
        self.agent.start()
        self.nemesis.start()

    @property
    def ended(self) -> bool:
        document = self.register.document
        return document is not None and document.status.final

    def outcome(self, violation: str = "") -> Outcome:
        document = self.register.document
        finished = document.finished if document is not None else None
        return Outcome(
            self.seed,
            self.world.events,
            self.world.now,
            document.views_total if document is not None else 0,
            finished.steps if finished is not None else 0,
            document.lost_steps if document is not None else 0,
            violation,
        )

    # processes

    def spawn(self, worker: WorkerId) -> Worker:
        child = Worker(self, worker, 1000 + len(self.workers))
        self.world.say(f"starts {worker}")
        self.workers[worker] = child
        child.start()
        return child

    def living(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.alive]

    def kill(self, worker: Worker) -> None:
        """SIGKILL."""
        if worker.alive:
            self.world.say(f"killed: {worker.name}")
            worker.exit_code = -9
            self.exited(worker)

    def exited(self, worker: Worker) -> None:
        rng = self.world.rng
        worker.end(rng.choice((0.0, 0.001, 0.1)))
        late = rng.random() * 3.0 if "late reaping" in self.swarm.faults else self.reap_late_s
        self.world.at(self.world.now + 0.001 + 0.02 * rng.random() + late, self.agent, self.agent.reap, worker)
        self.blame(worker.host)

    @property
    def restarted(self) -> bool:
        """Whether there was a counted restart."""
        return any(v.fresh and v.number > 1 for v in self.checks.views.values())

    # faults

    def blame(self, *hosts: str) -> None:
        for host in hosts:
            self._blamed[host] = self.world.now

    def was_faulty(self, host: str) -> bool:
        return self.world.now - self._blamed.get(host, float("-inf")) < BLAME_S


def simulate(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """One random job. Raises Violation."""
    return Simulation(seed, trace=trace).run()
