"""Runs a job on this host: one loop that compares what should run with what runs, until the job is over.

Hints (a death, news from the leader, a signal) only make the loop look at once; what it does follows from
:func:`orch_core.protocol.children.plan`. Nothing in the loop waits for a disk, a terminal or a plugin: logs, events,
hooks and drawing have threads of their own.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, assert_never

from orch_core import plugins, telemetry
from orch_core.agent import guardian
from orch_core.agent.aside import Aside
from orch_core.agent.audience import Audience, Snapshot
from orch_core.agent.coordinators import Coordinators, coordinator_program
from orch_core.agent.coordinators import Program as CoordinatorProgram
from orch_core.agent.environment import (
    COLD_START,
    environment,
    nursery_environment,
    nursery_program,
    worker_environment,
    worker_program,
)
from orch_core.agent.folder import JobFolder
from orch_core.agent.logs import LogPump
from orch_core.agent.nursery import Birth, Nursery
from orch_core.agent.process import Child, Spawner
from orch_core.agent.report import EventLog, Reporter, first_failure, read_failure, stamped
from orch_core.contracts import codec
from orch_core.contracts.document import Document, Failure
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import PlaceId, Step, Term, ViewNumber, WorkerId
from orch_core.contracts.job import JobFile, JobSpec, JobStatus
from orch_core.contracts.note import read_note
from orch_core.contracts.status import AgentStatus, Progress
from orch_core.contracts.summary import Summary
from orch_core.protocol.children import Kill, Order, Process, Signal, Start, observe, plan, prune
from orch_core.protocol.evidence import HEARTBEAT_S
from orch_core.protocol.outcome import summarize
from orch_core.rpc.priority import raise_priority
from orch_core.rpc.stream import LeaderStream
from orch_core.rpc.wire import Update

DRAIN_S = 9.0  # from Ctrl-C to SIGTERM for everybody: the step at hand, and what the script does after its loops
LEADERLESS_S = 2.0  # nobody leads: who was asked to stop does not wait longer
FINAL_S = 5.0  # for the leader to write the end down
COORDINATORLESS_S = 600.0  # training goes on for so long while no majority of coordinators can live
COORDINATORS_S = 2.0  # from SIGTERM to SIGKILL
CHORES_S, HOOKS_S = 3.0, 5.0  # for disks and plugins, at the end
SAME_SIGNAL_S = 0.5  # one Ctrl-C may arrive twice: from the terminal and from a wrapper
INTERRUPTED = 130

logger = logging.getLogger(__name__)


class Line(Protocol):
    """The agent's tie to the leader, see :class:`orch_core.rpc.stream.LeaderStream`."""

    leader: str | None

    def send(self, status: AgentStatus) -> None: ...

    def updates(self) -> AsyncIterator[Update]: ...


Connect = Callable[[Sequence[str], str, str], AbstractAsyncContextManager[Line]]
WorkerProgram = Callable[[JobSpec], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Part:
    """What one host of several has of a job: some places, and none of the coordinators."""

    name: str  # of the host, different from the others'
    places: frozenset[PlaceId]
    address: str  # where its workers listen, as the others reach it


@dataclass(frozen=True, slots=True)
class Outcome:
    summary: Summary
    failure: Failure | None
    exit_code: int


class Host:
    """One job on this host, from the first process to the last. ``await run()`` once, in the main thread."""

    def __init__(
        self,
        folder: JobFolder,
        job: JobFile,
        audience: Audience,
        *,
        worker: WorkerProgram = worker_program,
        coordinator: CoordinatorProgram = coordinator_program,
        connect: Connect = LeaderStream,
        part: Part | None = None,
    ) -> None:
        self._folder, self._job, self._audience, self._part = folder, job, audience, part
        self._worker_program, self._connect = worker, connect
        self._environment = environment(os.environ, job, folder)
        if part is not None:
            self._environment["ORCH_WORKER_HOST"] = part.address
        self._spawner = Spawner(folder.path)
        self._pump = LogPump(audience.output, audience.say)
        self._events = EventLog(folder.path / "events.jsonl", audience.say)
        self._reporter = Reporter() if part is None else Reporter(part.name)
        self._coordinators = Coordinators(
            folder,
            [c.id for c in job.coordinators] if part is None else (),
            self._spawner,
            coordinator,
            self._environment,
            self._hint,
        )
        self._nursery: Nursery | None = None
        if worker is worker_program and COLD_START not in self._environment:  # it can be nothing but orch's own workers
            self._nursery = Nursery(
                self._spawner,
                self._pump,
                folder.log_of("nursery"),
                lambda agent, control: nursery_program(job.spec, agent, control),
                nursery_environment(self._environment, job.spec),
                self._hint,
            )
        self._births: dict[WorkerId, Birth] = {}
        self._leaders = {c.address: str(c.id) for c in job.coordinators}
        self._hinted = asyncio.Event()
        self._line: Line | None = None
        self._document: Document | None = None
        self._progress: Progress | None = None
        self._term = Term(0)
        self._heard_at: float | None = None  # when a leader has spoken last
        self._processes: tuple[Process, ...] = ()
        self._children: dict[WorkerId, Child] = {}
        self._failures: list[Failure] = []
        self._own_failure: Failure | None = None  # one that no worker can tell the leader
        self._failed_at: float | None = None
        self._signals: list[float] = []
        hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # else: nohup
        self._signal_numbers = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangup else []))
        self._interrupted_at: float | None = None  # Unix time
        self._leaderless_since: float = time.monotonic()
        self._lost_coordinators_at: float | None = None
        self._idle_since: float | None = None
        self._looked_at = self._sent_at = float("-inf")
        self._sent: AgentStatus | None = None
        self._view_told = ViewNumber(0)
        self._chores, self._hooks = Aside("agent-chores"), Aside("agent-hooks")

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        for number in self._signal_numbers:
            loop.add_signal_handler(number, self._interrupt)
        try:
            self._pump.start()
            self._chores.start()
            self._hooks.start()
            self._spawner.start()
            telemetry.observe_host()
            priority = raise_priority(inherit=True)
            logger.info("event=started job=%s pid=%d priority=%s", self._job.job, os.getpid(), priority)
            self._tell_hooks("orch_run_started", job=self._job.spec, folder=self._folder.path)
            addresses = [c.address for c in self._job.coordinators]
            async with self._connect(addresses, self._job.token, "agent") as line:
                self._line = line
                listener = asyncio.create_task(self._listen(line), name="listen-to-leader")
                try:
                    await self._supervise(listener)
                finally:
                    listener.cancel()
                    await asyncio.wait([listener])
            await self._end_coordinators()
        finally:
            self._leave_nothing()
            for number in self._signal_numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # what is left is to print and to go
        return self._outcome()

    # ---------------------------------------------------------------------------------------------- hints

    def _hint(self) -> None:
        self._hinted.set()

    def _interrupt(self) -> None:
        now = time.monotonic()
        if self._signals and now - self._signals[-1] < SAME_SIGNAL_S:
            return
        self._signals.append(now)
        self._interrupted_at = self._interrupted_at or time.time()
        if len(self._signals) == 1:
            self._audience.say("interrupted: ends after this step; once more to kill everything at once")
        self._hint()

    async def _listen(self, line: Line) -> None:
        async for update in line.updates():
            try:
                if update.document is not None:
                    self._document = codec.decode(Document, update.document)
                    self._chores.do(self._events.append, self._document)
                    self._tell_views(self._document)
                if update.progress is not None:
                    self._progress = _remembering(self._progress, codec.decode(Progress, update.progress))
            except MalformedMessage as error:
                logger.warning("event=leader-unreadable why=%r", str(error))
                continue
            self._term, self._heard_at = update.term, time.monotonic()
            self._hint()

    def _ended(self, child: Child) -> None:
        """A worker is dead: find out what it has left behind, and tell."""
        worker = WorkerId(child.name)
        process = next(p for p in self._processes if p.worker == worker)
        note = read_note(self._folder.path / "notes" / worker)
        failure = read_failure(self._folder.path, worker)
        if failure is not None and process.asked_at is not None:
            failure = None  # it was told to go in the middle of something
        if failure is not None and child.exit_code != 0:
            self._fail(failure, own=False)
        self._reporter.heard(worker, note, failure)
        self._change(process, exited_at=time.monotonic(), exit_code=child.exit_code, failed=failure is not None)
        self._spawner.forget(child)
        self._pump.ended(worker)
        del self._children[worker]
        self._chores.do(guardian.sweep, str(self._folder.path), worker)
        logger.info("event=worker-ended worker=%s exit_code=%s", worker, child.exit_code)
        self._hint()

    def _fail(self, failure: Failure, *, own: bool) -> None:
        self._failures.append(failure)
        self._failed_at = self._failed_at or time.monotonic()
        if own and self._own_failure is None:
            self._own_failure = failure

    # ---------------------------------------------------------------------------------------------- the loop

    async def _supervise(self, listener: asyncio.Task[None]) -> None:
        while True:
            self._hinted.clear()
            if listener.done() and not listener.cancelled() and (error := listener.exception()) is not None:
                raise error
            now = time.monotonic()
            looks = self._look(now)
            if self._is_over(now):
                self._report(now)
                return
            try:
                async with asyncio.timeout(max(0.0, min(looks) - now)):
                    await self._hinted.wait()
            except TimeoutError:
                pass

    def _look(self, now: float) -> list[float]:
        """Compare and act once. When to look again."""
        looks = [now + HEARTBEAT_S]
        if now - self._looked_at >= HEARTBEAT_S:
            self._looked_at = now
            self._see_who_is_stopped()
            self._processes = prune(self._processes, now)
        if self._line is not None and self._line.leader is not None:
            self._leaderless_since = now
        if self._nursery is not None and (due := self._nursery.reconcile(now)) is not None:
            looks.append(due)
        if (due := self._coordinators.reconcile(now)) is not None:
            looks.append(due)
        self._judge_coordinators(now)
        step = self._progress.step if self._progress is not None else Step(0)
        self._processes = observe(self._processes, self._document, step, now)
        order = self._order(now)
        mine = None if self._part is None else self._part.places
        verdict = plan(self._document, self._job.spec, self._processes, now, order, self._heard_at, mine)
        if verdict.failure is not None and self._own_failure is None:
            self._fail(stamped(verdict.failure, time.time()), own=True)
        for action in verdict.actions:
            match action:
                case Start(worker):
                    self._start(worker, now)
                case Signal(pid, number):
                    self._signal(pid, number, now)
                case Kill(pid):
                    self._kill(pid)
                case _:
                    assert_never(action)
        if verdict.next_look is not None:
            looks.append(verdict.next_look)
        self._report(now)
        self._audience.show(self._snapshot())
        return looks

    def _judge_coordinators(self, now: float) -> None:
        """Nobody needs them to train on, so a full disk has time to be cleared; but a job cannot begin without."""
        failure = self._coordinators.failure()
        if failure is None:
            self._lost_coordinators_at = None
            return
        training = self._document is not None and self._document.view is not None
        if self._lost_coordinators_at is None:
            self._lost_coordinators_at = now
            if training:
                self._audience.say(f"{failure.message}; training goes on, but no death can be repaired")
        late = now - self._lost_coordinators_at >= COORDINATORLESS_S
        through = self._document is not None and self._document.finished is not None
        if self._own_failure is None and not through and (late or not training):
            self._fail(stamped(failure, time.time()), own=True)

    def _order(self, now: float) -> Order:
        if len(self._signals) > 1:
            return Order.KILL
        if self._failed_at is not None and (
            now - self._failed_at >= FINAL_S or self._is_leaderless(self._failed_at, now)
        ):
            return Order.END  # nobody has written the failure down
        if self._own_failure is not None and not self._can_be_told(self._own_failure):
            return Order.END
        if not self._signals:
            return Order.RUN
        asked = self._signals[0]
        return Order.END if self._is_leaderless(asked, now) or now - asked >= DRAIN_S else Order.DRAIN

    def _is_leaderless(self, since: float, now: float) -> bool:
        """Nobody has led for some time, in which a leader was needed."""
        return now - max(since, self._leaderless_since) >= LEADERLESS_S

    def _can_be_told(self, failure: Failure) -> bool:
        return failure.worker not in self._leaders.values()  # without coordinators there is nobody to tell

    def _is_over(self, now: float) -> bool:
        if self._children or self._births:
            self._idle_since = None
            return False
        self._idle_since = now if self._idle_since is None else self._idle_since
        document = self._document
        if (document is not None and document.status.final) or self._order(now) in (Order.END, Order.KILL):
            return True
        asked = bool(self._signals) or (document is not None and bool(document.stop))
        trained = document is not None and document.view is not None
        if asked and not trained:
            return True
        ends = asked or self._failed_at is not None or (document is not None and document.finished is not None)
        return ends and now - self._idle_since >= FINAL_S

    def _see_who_is_stopped(self) -> None:
        for process in self._processes:
            child = self._children.get(process.worker)
            if child is not None and (stopped := child.stopped) != process.stopped:
                self._change(process, stopped=stopped)

    def _start(self, worker: WorkerId, now: float) -> None:
        if worker in self._births or (self._nursery is not None and self._nursery.is_warming(now)):
            return  # asked for again when that has changed
        program = self._worker_program(self._job.spec)
        env = worker_environment(self._environment, self._job.spec, worker)
        output = self._open_log(worker)

        def born(child: Child | None) -> None:
            self._births.pop(worker, None)
            try:
                self._started(worker, child or self._spawner.spawn(worker, program, env, output))
            except ConfigurationError as error:
                self._fail(stamped(Failure(worker, "configuration", str(error), exit_code=2), time.time()), own=True)
            finally:
                os.close(output)

        birth = self._nursery.bear(worker, program, env, output, born) if self._nursery is not None else None
        if birth is None:
            born(None)
        else:
            self._births[worker] = birth

    def _open_log(self, worker: WorkerId) -> int:
        try:
            return self._pump.open(worker, self._folder.log_of(worker))
        except OSError as error:
            self._audience.say(f"the output of {worker} is lost: its log cannot be opened ({error.strerror})")
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def _started(self, worker: WorkerId, child: Child) -> None:
        self._children[worker] = child
        self._processes = (*self._processes, Process(worker, child.pid, time.monotonic()))
        child.watch(self._ended)
        logger.info("event=worker-started worker=%s pid=%d", worker, child.pid)
        self._hint()

    def _signal(self, pid: int, number: int, now: float) -> None:
        for process in self._processes:
            if process.pid == pid and process.alive:
                self._children[process.worker].signal(number)
                self._change(process, asked_at=now)

    def _kill(self, pid: int) -> None:
        for process in self._processes:
            if process.pid == pid and process.alive:
                self._children[process.worker].kill()

    def _change(self, process: Process, **changes: Any) -> None:
        worker = process.worker
        self._processes = tuple(replace(p, **changes) if p.worker == worker else p for p in self._processes)

    def _report(self, now: float) -> None:
        """At once on a change, else every heartbeat."""
        if self._line is None:
            return
        told = self._own_failure
        if told is not None and not self._can_be_told(told):
            told = None
        status = self._reporter.status(self._processes, self._document, told, "interrupted" if self._signals else "")
        if self._sent is None or now - self._sent_at >= HEARTBEAT_S or not _same(status, self._sent):
            self._line.send(status)
            self._sent, self._sent_at = status, now

    def _snapshot(self) -> Snapshot:
        address = self._line.leader if self._line is not None else None
        return Snapshot(
            spec=self._job.spec,
            started_at=self._job.started_at,
            document=self._document,
            progress=self._progress,
            term=self._term,
            leader=self._leaders.get(address) if address is not None else None,
            processes=self._processes,
            stopping=bool(self._signals),
            importing=self._nursery is not None and self._nursery.is_warming(time.monotonic()),
        )

    # ---------------------------------------------------------------------------------------------- hooks

    def _tell_views(self, document: Document) -> None:
        for view in document.views:
            if view.number > self._view_told:
                self._view_told = view.number
                self._tell_hooks("orch_view_changed", view=view)

    def _tell_hooks(self, hook: str, **arguments: Any) -> None:
        self._hooks.do(plugins.installed().broadcast, hook, **arguments)

    # ---------------------------------------------------------------------------------------------- the end

    async def _end_coordinators(self) -> None:
        self._coordinators.signal(signal.SIGTERM)
        until = time.monotonic() + COORDINATORS_S
        while self._coordinators.alive and time.monotonic() < until and len(self._signals) < 2:
            self._hinted.clear()
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self._hinted.wait()
            except TimeoutError:
                break

    def _leave_nothing(self) -> None:
        self._coordinators.signal(signal.SIGKILL)
        for birth in self._births.values():
            birth.cancel()
        if self._nursery is not None:
            self._nursery.close()
        for child in self._children.values():
            child.kill()
        self._spawner.close()
        self._pump.close()
        self._chores.close(CHORES_S)

    def close(self, summary: Summary) -> None:
        """Tell the plugins; one that hangs holds nobody up for ever."""
        self._tell_hooks("orch_run_ended", summary=summary)
        self._hooks.close(HOOKS_S)

    def _outcome(self) -> Outcome:
        failure = first_failure(self._document, self._failures)
        status = self._final_status(failure)
        summary = summarize(self._job.spec, self._document, self._progress, status, self._job.started_at, time.time())
        if status is not JobStatus.FAILED:
            return Outcome(summary, None, INTERRUPTED if status is JobStatus.INTERRUPTED else 0)
        return Outcome(summary, failure, failure.exit_code if failure is not None and failure.exit_code else 1)

    def _final_status(self, failure: Failure | None) -> JobStatus:
        document = self._document
        if self._interrupted_at is not None and failure is not None and failure.at >= self._interrupted_at:
            return JobStatus.INTERRUPTED  # it failed because it was told to go
        if document is not None and document.status.final:
            return document.status
        if self._signals:
            return JobStatus.INTERRUPTED
        if failure is not None or document is None:
            return JobStatus.FAILED
        if document.stop:
            return JobStatus.INTERRUPTED if document.stop == "interrupted" else JobStatus.STOPPED
        return JobStatus.FINISHED if document.finished is not None else JobStatus.FAILED


def _remembering(old: Progress | None, new: Progress) -> Progress:
    """What only the living tell is still true when the last of them has gone."""
    if old is None:
        return new
    return replace(
        new,
        means=new.means or old.means,
        training=new.training or old.training,
        first_step_at=old.first_step_at if new.first_step_at is None else new.first_step_at,
    )


def _same(one: AgentStatus, other: AgentStatus) -> bool:
    return replace(one, sequence=0) == replace(other, sequence=0)
