"""The agent: starts workers as the real `children.plan` says, reaps them, and repeats what it knows."""

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orch_core.contracts.document import Document
from orch_core.contracts.ids import AgentId, Step, WorkerId
from orch_core.contracts.status import AgentStatus, ProcessReport, ProcessState
from orch_core.protocol import children
from orch_core.protocol.evidence import HEARTBEAT_S
from orch_core.testing.simulator.coordinator import Client
from orch_core.testing.simulator.worker import Worker
from orch_core.testing.simulator.world import Connection, Violation

if TYPE_CHECKING:
    from orch_core.testing.simulator.simulation import Simulation

NAME = AgentId("agent")


class Agent(Client):
    def __init__(self, simulation: "Simulation") -> None:
        super().__init__(simulation, NAME, NAME)
        self.document: Document | None = None
        self.processes: dict[WorkerId, children.Process] = {}
        self.stop = ""
        self.heard_at: float | None = None
        self._by_pid: dict[int, Worker] = {}
        self._sequence = 0
        self._due: float | None = None

    def start(self) -> None:
        self.uplink.start()
        self.later(0.0, self._look)
        self.later(HEARTBEAT_S * self.world.rng.random(), self._heartbeat)

    def receive(self, connection: Connection, payload: Any) -> None:
        self.heard_at = self.world.now
        if self.document is None or payload.revision > self.document.revision:
            self.document = payload
            self._look()

    def lost(self, connection: Connection) -> None:
        if connection is self.uplink.connection:
            self.uplink.lost()

    def reap(self, worker: Worker) -> None:
        """A child has ended: pidfd."""
        process = self.processes[worker.id]
        self.processes[worker.id] = replace(process, exited_at=self.world.now, exit_code=worker.exit_code)
        self.world.say(f"{NAME} reaps {worker.name}, exit code {worker.exit_code}")
        self.report()
        self._look()

    def report(self) -> None:
        self._sequence += 1
        self.uplink.send(
            AgentStatus(
                NAME, self._sequence, self.host, tuple(self._report_of(p) for p in self._told()), stop=self.stop
            )
        )

    def _told(self) -> list[children.Process]:
        """Exited ones stay until the document has buried them: a newer life, or gone."""
        document = self.document
        if document is None:
            return list(self.processes.values())
        places = {p.id: p for p in document.places}
        kept = []
        for worker, process in self.processes.items():
            place = places.get(self._by_pid[process.pid].place)
            buried = place is not None and place.worker != worker and worker not in _relevant(document)
            if process.alive or not buried:
                kept.append(process)
        return kept

    def _report_of(self, process: children.Process) -> ProcessReport:
        if not process.alive:
            return ProcessReport(process.worker, process.pid, ProcessState.EXITED, process.exit_code)
        worker = self._by_pid[process.pid]
        state = ProcessState.STOPPED if worker.frozen and not worker.busy else ProcessState.RUNNING
        return ProcessReport(process.worker, process.pid, state)

    def _heartbeat(self) -> None:
        self.report()
        self._look()
        self.later(HEARTBEAT_S, self._heartbeat)

    def _look(self) -> None:
        now = self.world.now
        self.processes = {p.worker: p for p in children.observe(self.processes.values(), self.document, Step(0), now)}
        verdict = children.plan(
            self.document, self.simulation.spec, list(self.processes.values()), now, heard_at=self.heard_at
        )
        if verdict.failure is not None:
            raise Violation(verdict.failure.message)
        for action in verdict.actions:
            self._do(action)
        if verdict.actions:
            self.report()
        if verdict.next_look is not None and verdict.next_look != self._due:
            self._due = verdict.next_look
            self.world.at(max(verdict.next_look, now), self, self._look_again, verdict.next_look)

    def _look_again(self, due: float) -> None:
        if due == self._due:
            self._due = None
            self._look()

    def _do(self, action: children.Action) -> None:
        match action:
            case children.Start(worker):
                self._start(worker)
            case children.Signal(pid, signal.SIGTERM):
                process = self._by_pid[pid]
                self.processes[process.id] = replace(self.processes[process.id], asked_at=self.world.now)
                process.later(0.0, process.terminate)
            case children.Kill(pid):
                self.simulation.kill(self._by_pid[pid])

    def _start(self, worker: WorkerId) -> None:
        child = self.simulation.spawn(worker)
        self._by_pid[child.pid] = child
        self.processes[worker] = children.Process(worker, child.pid, self.world.now)


def _relevant(document: Document) -> set[WorkerId]:
    view = document.view
    return {*document.formed_members, *(view.workers if view is not None else ())}
