"""The nemesis: does to a simulated job what its swarm says, until faults stop."""

from typing import TYPE_CHECKING

from orch_core.testing.simulator.coordinator import Coordinator
from orch_core.testing.simulator.worker import Worker
from orch_core.testing.simulator.world import Process, World

if TYPE_CHECKING:
    from orch_core.testing.simulator.simulation import Simulation

NOT_TIMED = ("kill at points", "late reaping", "slow network", "slow user code", "run.stop")


class Nemesis:
    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        self.world: World = simulation.world
        self.swarm = simulation.swarm
        self.kills_left = self.swarm.kills
        self._over = False

    def start(self) -> None:
        if "slow network" in self.swarm.faults:
            self.world.slow_share = 0.03
        if self.swarm.points:
            self.world.watchers.append(self._at_point)
        for fault, rate in self.swarm.faults.items():
            if fault not in NOT_TIMED:
                self._schedule(fault, rate)
        self.world.at(self.swarm.until_s, None, self.stop)

    def stop(self) -> None:
        """From here on everything heals, and the job must end."""
        self._over = True
        self.world.say("faults stop")
        self.world.slow_share = 0.0
        self.world.heal()
        self.swarm.slow_user = 0.0
        for worker in self.simulation.living():
            worker.busy = False
            worker.thaw()
        self.simulation.agent.thaw()
        for coordinator in list(self.simulation.register.coordinators):
            self.simulation.register.rejoin(coordinator)
            coordinator.thaw()
            if not coordinator.alive:
                self.simulation.register.restart(coordinator)
        self.simulation.register.fault(0.1)

    def _schedule(self, fault: str, rate: float) -> None:
        delay = self.world.rng.expovariate(rate)
        if self.world.now + delay < self.swarm.until_s:
            self.world.after(delay, self._strike, fault, rate)

    def _strike(self, fault: str, rate: float) -> None:
        if self._over:
            return
        getattr(self, "_" + fault.replace(" ", "_"))()
        self._schedule(fault, rate)

    def _at_point(self, process: Process, name: str) -> None:
        probability = self.swarm.points.get(name)
        if probability is None or self._over or self.kills_left <= 0 or not self.world.chance(probability):
            return
        self.kills_left -= 1
        self.world.say(f"killed at {name!r}: {process.name}")
        if isinstance(process, Worker):
            self.simulation.kill(process)
        elif isinstance(process, Coordinator):
            self.kill_coordinator(process)

    # one method per kind of fault

    def _kill(self) -> None:
        living = self.simulation.living()
        if living and self.kills_left > 0:
            self.kills_left -= 1
            self.simulation.kill(self.world.rng.choice(living))

    def _kill_all(self) -> None:
        if self.world.chance(0.3):
            for worker in self.simulation.living():
                if self.world.chance(0.8):
                    self.simulation.kill(worker)

    def _freeze(self) -> None:
        self._freeze_one(busy=False, duration=self.world.rng.choice((0.05, 0.7, 3.0, 6.0)))

    def _busy(self) -> None:
        """A C call holds the interpreter: nothing runs, and the agent sees a running process."""
        self._freeze_one(busy=True, duration=self.world.rng.choice((0.3, 2.5, 5.0)))

    def _freeze_one(self, *, busy: bool, duration: float) -> None:
        living = [w for w in self.simulation.living() if not w.frozen]
        if not living:
            return
        worker = self.world.rng.choice(living)
        self.hold_up(worker, busy=busy)
        self.world.after(duration, self.thaw, worker)

    def hold_up(self, worker: Worker, *, busy: bool = False) -> None:
        """SIGSTOP, or a C call that does not end."""
        self.world.say(f"{worker.name} is {'busy' if busy else 'stopped'}")
        worker.busy = busy
        worker.freeze()
        self.simulation.blame(worker.host)

    def thaw(self, worker: Worker) -> None:
        self.simulation.blame(worker.host)
        worker.thaw()

    def _cut(self) -> None:
        a, b = self._two_places()
        self._block(((a, b), (b, a)), self.world.rng.choice((0.3, 2.5, 5.0)))

    def _cut_one_way(self) -> None:
        self._block((self._two_places(),), self.world.rng.choice((0.3, 2.5, 5.0)))

    def _cut_from_leader(self) -> None:
        a = self.world.rng.choice(self.simulation.hosts)
        ways = [(a, c.name) for c in self.simulation.register.coordinators]
        if self.world.chance(0.5):
            ways += [(c, a) for a, c in ways]
        self._block(tuple(ways), self.world.rng.choice((0.3, 2.5, 4.5)))

    def _two_places(self) -> tuple[str, str]:
        hosts = [h for h in self.simulation.hosts if h.startswith("w")]
        if len(hosts) < 2:
            return hosts[0], "agent"
        a, b = self.world.rng.sample(hosts, 2)
        return a, b

    def _block(self, ways: tuple[tuple[str, str], ...], duration: float) -> None:
        self.cut(*ways)
        self.world.after(duration, self._unblock, ways)

    def cut(self, *ways: tuple[str, str]) -> None:
        """Packets from the one host to the other are dropped."""
        self.world.say(f"cut: {ways}")
        for source, target in ways:
            self.world.block(source, target)
            self.simulation.blame(source, target)

    def mend(self, *ways: tuple[str, str]) -> None:
        self.world.say(f"mended: {ways}")
        self._unblock(ways)

    def _unblock(self, ways: tuple[tuple[str, str], ...]) -> None:
        for source, target in ways:
            self.simulation.blame(source, target)
            self.world.unblock(source, target)

    def _reset(self) -> None:
        whole = [c for c in self.world.connections if not c.broken and c.ends[0].alive and c.ends[1].alive]
        if whole:
            connection = self.world.rng.choice(whole)
            self.world.say(f"reset: {connection.ends[0].name} to {connection.ends[1].name} {connection.label}")
            connection.reset()

    def _flap(self) -> None:
        """A pair of hosts whose links break again and again."""
        a, b = self._two_places()
        for i in range(6):
            self.world.after(i * 0.25, self._reset_between, a, b)

    def _reset_between(self, a: str, b: str) -> None:
        if self._over:
            return
        for connection in self.world.connections:
            if {connection.ends[0].host, connection.ends[1].host} == {a, b}:
                connection.reset()

    def _kill_leader(self) -> None:
        leader = self.simulation.register.leader
        if leader is not None and leader.alive:
            self.kill_coordinator(leader)

    def kill_coordinator(self, coordinator: Coordinator) -> None:
        self.world.say(f"killed: {coordinator.name}")
        coordinator.end()
        self.simulation.register.fault(0.02 + 0.2 * self.world.rng.random())
        self.world.after(0.2 + self.world.rng.random(), self._restart_coordinator, coordinator)

    def _restart_coordinator(self, coordinator: Coordinator) -> None:
        if coordinator in self.simulation.register.coordinators:
            self.simulation.register.restart(coordinator)

    def _freeze_leader(self) -> None:
        leader = self.simulation.register.leader
        if leader is not None and leader.alive and not leader.frozen:
            leader.freeze()
            duration = self.world.rng.choice((0.2, 1.0, 3.0))
            self.world.say(f"{leader.name} is stopped for {duration} s")
            self.simulation.register.fault(0.3 + 0.5 * self.world.rng.random())
            self.world.after(duration, leader.thaw)

    def _isolate_leader(self) -> None:
        leader = self.simulation.register.leader
        if leader is not None and leader.alive:
            self.simulation.register.isolate(leader)
            self.world.say(f"{leader.name} is isolated")
            self.simulation.register.fault(0.3 + 0.5 * self.world.rng.random())
            self.world.after(self.world.between(0.3, 3.0), self._join_again, leader)

    def _join_again(self, coordinator: Coordinator) -> None:
        self.simulation.register.rejoin(coordinator)

    def _freeze_agent(self) -> None:
        self.simulation.agent.freeze()
        self.simulation.blame(*self.simulation.hosts)
        self.world.after(self.world.rng.choice((0.5, 3.0)), self.simulation.agent.thaw)

    def _drain(self) -> None:
        living = self.simulation.living()
        if len(living) > 1 and self.world.chance(0.3):
            worker = self.world.rng.choice(living)
            self.world.say(f"SIGTERM to {worker.name}")
            worker.later(0.0, worker.terminate)

    def _scale(self) -> None:
        self.order("scale", workers=str(self.world.rng.randint(1, self.swarm.max_workers)))

    def _orch_drain(self) -> None:
        living = self.simulation.living()
        if living:
            replaced = self.world.rng.choice(("yes", "no"))
            self.order("drain", worker=self.world.rng.choice(living).id, replace=replaced)

    def order(self, name: str, **args: str) -> None:
        """What a person asks of whoever leads."""
        leader = self.simulation.register.leader
        if leader is not None and leader.alive and leader.leads:
            leader.command(name, **args)

    def _orch_stop(self) -> None:
        if self.world.chance(0.3):
            self.simulation.agent.stop = "stopped"
            self.world.say("orch stop")
