"""The control thread of a worker: owns :class:`Member`, talks to the leader and greets peers.

One asyncio loop. Everything that happens becomes an event for the machine, and what the machine answers is done at
once. The script never waits here.
An unreachable coordinator is no news: statuses wait, documents come later, training goes on in the present view.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orch_core import telemetry
from orch_core.contracts import codec
from orch_core.contracts.address import split
from orch_core.contracts.document import HAS_LEFT, Cause, Document, Failure, LifeState, Recovery, View, ViewMember
from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Step, ViewNumber, WorkerId, place_and_life
from orch_core.contracts.status import Phase, WorkerStatus
from orch_core.dataplane.group import Group
from orch_core.protocol.deal import Position
from orch_core.protocol.member import (
    EVICTED,
    CloseGroup,
    Ended,
    Event,
    Exit,
    Fed,
    FormedSeen,
    Greet,
    GroupClosed,
    Hello,
    HelloReceived,
    Leave,
    LinkBroken,
    Member,
    OpenGroup,
    Plan,
    SendStatus,
    StateHeld,
    Tick,
    ViewSeen,
)
from orch_core.protocol.member import Greeted as HelloDelivered
from orch_core.rpc.priority import SteppedBack, raise_priority, step_back
from orch_core.rpc.stream import LeaderStream
from orch_core.worker import forks
from orch_core.worker.following import Following
from orch_core.worker.handover import Handover, Offer, Told
from orch_core.worker.peers import Listener, Peers
from orch_core.worker.setting import Setting

HEARTBEAT_S = 0.5
LOOK_S = 0.05  # how soon progress of the script is seen and told
JOINERS_NICE = 15  # starting up takes a little longer, and members that share its cores hardly notice
FORSAKEN_S = 60.0  # a follower without anybody to follow: its state may be the last one, and a view may want it,
#                    unless a formed view goes on without all that it has followed
OWN_HANDLER_S = 1.0  # for a SIGTERM handler of the script's own

logger = logging.getLogger(__name__)

Leaves = Callable[[int, str], None]


class Keeper:
    """``start()`` from the main thread. `leave(code, reason)` ends the process; no line of the script runs any more."""

    def __init__(self, setting: Setting, handover: Handover, leave: Leaves) -> None:
        self._setting = setting
        self._handover = handover
        self._leave_process = leave
        self._member = Member(setting.worker, setting.spec.shards, min_workers=setting.spec.min_workers)
        self._thread = threading.Thread(target=self._run, name="orch-keeper", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hint = asyncio.Event()
        self._started = threading.Event()
        self._closing = False
        self._parent = os.getppid()
        self._signals: socket.socket | None = None
        self._failure: Failure | None = None
        self._peers: Peers | None = None
        self._stream: LeaderStream | None = None
        self._sequence = 0
        self._announced = False
        self._status_due = True
        self._sent_at = float("-inf")
        self._sent_progress: object = None
        self._leave_due: float | None = None
        self._group: tuple[Plan, Group | None] | None = None
        self._following: Following | None = None
        self._view: View | None = None  # the newest one that a document has shown
        self._formed: ViewNumber | None = None  # and the newest formed one
        self._fed: Step | None = None  # what the machine knows of what was fed
        self._lost_at: float | None = None
        self._level = False
        self._script = 0  # its thread
        self._stepped_back: SteppedBack | None = None
        self._clock = RecoveryClock()
        self._recovery: Recovery | None = None
        handover.wake = self.wake

    # ---------------------------------------------------------------- for the main thread

    def start(self, signals: socket.socket | None = None) -> None:
        """`signals`: the reading end of what ``signal.set_wakeup_fd`` writes to."""
        self._signals = signals
        self._script = threading.get_native_id()
        if place_and_life(self._setting.worker)[1] > 1:
            self._step_back()
        self._thread.start()
        self._started.wait()

    def wake(self) -> None:
        """Any thread: look at the handover now."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._hint.set)
            except RuntimeError:
                pass  # the loop has ended

    def fail(self, failure: Failure) -> None:
        """The script has raised: tell the leader. The agent finds the same in a file."""
        self._failure = failure
        self._status_due = True
        self.wake()

    def close(self, timeout_s: float = 2.0) -> None:
        """End the thread. Idempotent."""
        self._closing = True
        self.wake()
        self._thread.join(timeout_s)

    # ---------------------------------------------------------------- the loop

    def _run(self) -> None:
        try:
            logger.info(
                "event=keeper-started worker=%s priority=%s", self._setting.worker, raise_priority(inherit=True)
            )
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - the thread's root: told, and the process ends
            self._failed(error)
        finally:
            self._started.set()

    def _failed(self, error: BaseException) -> None:
        """An error in orch: a worker without its keeper would only stand in the others' way."""
        logger.error("event=keeper-failed worker=%s", self._setting.worker, exc_info=error)
        self._leave_process(1, "the keeper of this worker has failed, which is an error in orch: see its log")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the loop caught: in a callback it is ours; what libraries do with their tasks is their business."""
        error = context.get("exception")
        if "handle" in context and error is not None:
            self._failed(error)
        else:
            loop.default_exception_handler(context)

    async def _main(self) -> None:
        setting, loop = self._setting, asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        self._loop, self._hint = loop, asyncio.Event()
        listener = Listener(self._greeted, self._heard, self._broken, self._failed)
        peers = Peers(setting.host, setting.token, listener, self._handover.feeds)
        self._peers = peers
        peers.start()
        forks.watch_ports(split(address)[1] for address in setting.coordinators)
        if self._signals is not None:
            loop.add_reader(self._signals.fileno(), self._signalled)
        self._started.set()
        async with LeaderStream(setting.coordinators, setting.token, setting.worker) as stream:
            self._stream = stream
            reader = loop.create_task(self._listen(stream), name="listen-to-leader")
            try:
                while not self._closing:
                    self._look()
                    try:
                        async with asyncio.timeout(self._wait_s()):
                            await self._hint.wait()
                    except TimeoutError:
                        pass
                    self._hint.clear()
                    if reader.done():
                        reader.result()
                        raise AssertionError("the stream to the leader has ended by itself")
            finally:
                reader.cancel()
                await asyncio.wait([reader])
                await peers.close()

    def _wait_s(self) -> float:
        due = [LOOK_S]
        if self._member.deadline is not None:
            due.append(self._member.deadline - time.monotonic())
        return max(0.0, min(due))

    def _look(self) -> None:
        """Everything that may have changed without a call of its own."""
        now = time.monotonic()
        position, told = self._handover.read()
        if told.announcement is not None and not self._announced:
            self._announced = self._status_due = True
            self._member.fingerprint = told.announcement.fingerprint
            self._member.model = told.announcement.model
        self._look_at_what_it_follows(position)
        if (lost := self._handover.take_lost()) is not None:
            self._lost(lost.view, lost.peer)
        if told.holds is not None and (self._member.opened is None or told.holds > self._member.opened):
            self._clock.formed(told.holds, now)
            self._handle(StateHeld(told.holds))
        if self._member.deadline is not None and now >= self._member.deadline:
            self._handle(Tick())
        if self._leave_due is not None and now >= self._leave_due:
            self._leave_due = None
            self._leave()
        if os.getppid() != self._parent:
            self._exit(1, "the agent of this worker is gone")
        if (measured := self._clock.measured(told.applied_at)) is not None:
            self._recovery, self._status_due = measured, True
            _trace(measured)
        self._tell(now)

    def _look_at_what_it_follows(self, position: Position) -> None:
        """A joiner follows from its announcement on, until it is a member and its position is in a hello."""
        view, member = self._view, self._member
        if self._following is None:
            me = self._setting.worker
            if self._announced and member.view is None and view is not None and me not in view.workers:
                token = self._setting.token
                self._following = Following(me, token, self._members_to_follow, self._handover, self.wake)
                self._following.start()
            return
        if self._handover.level and not self._level:
            self._level = self._status_due = True
            logger.info("event=level worker=%s applied=%s", self._setting.worker, position.applied)
        if self._handover.follows and position.applied is not None and position.applied != self._fed:
            self._fed = position.applied
            self._handle(Fed(position.applied))
        if self._following.lost and member.view is None and self._lost_at is None:
            self._lost_at = time.monotonic()
        if self._lost_at is not None and member.view is None and self._is_forsaken(self._following, self._lost_at):
            self._exit(EVICTED, "those that it followed are gone")

    def _is_forsaken(self, following: Following, lost_at: float) -> bool:
        """It cannot begin anew: its script is behind a step that the others' states have passed."""
        view = self._view
        goes_on = view is not None and view.number == self._formed and following.fed_by.isdisjoint(view.workers)
        return goes_on or time.monotonic() - lost_at > FORSAKEN_S

    def _step_back(self) -> None:
        """Others train already: the script does not get in their way until it is a member."""
        if self._stepped_back is None:
            self._stepped_back = step_back(JOINERS_NICE, self._script)

    def _members_to_follow(self) -> Sequence[ViewMember]:
        view = self._view
        return () if view is None else view.members

    # ---------------------------------------------------------------- what happens

    def _handle(self, event: Event) -> None:
        """The machine's answers are done before anything else happens."""
        todo: list[Event] = [event]
        while todo:
            for effect in self._member.handle(todo.pop(0), time.monotonic()):
                match effect:
                    case CloseGroup():
                        todo.append(GroupClosed(self._close_group()))
                    case Greet(hello, others):
                        assert self._peers is not None
                        self._peers.greet(hello, others)
                    case OpenGroup(plan):
                        self._open_group(plan)
                    case SendStatus():
                        self._status_due = True
                    case Exit(code, reason):
                        self._exit(code, reason)
        if self._status_due:
            self._hint.set()

    def _close_group(self) -> Position:
        """Stop watching first: what breaks now breaks because we let go."""
        assert self._peers is not None
        view = self._member.view
        number = ViewNumber(0) if view is None else view.number
        if self._member.broken == number:
            number = ViewNumber(number + 1)
        self._peers.drop(number)
        self._group = None
        if self._following is not None:
            self._following.stop()
        return self._handover.close()

    def _open_group(self, plan: Plan) -> None:
        assert self._peers is not None
        others = [worker for worker in plan.view.workers if worker != plan.me]
        group = None
        if others:
            links = self._peers.links(plan.view.number, others)
            place = {worker: index for index, worker in enumerate(plan.view.workers)}
            group = Group(plan.index, {place[worker]: link for worker, link in zip(others, links, strict=True)})
        self._group = (plan, group)
        if self._stepped_back is not None:
            self._stepped_back.undo()
            self._stepped_back = None
        telemetry.VIEW_NUMBER.set(plan.view.number)
        telemetry.VIEW_MEMBERS.set(len(plan.view.members))
        logger.info("event=view-open view=%d step=%d members=%d", plan.view.number, plan.step, len(plan.view.members))
        self._handover.offer(Offer(plan, group))

    def _greeted(self, view: ViewNumber, peer: WorkerId) -> None:
        self._handle(HelloDelivered(view, peer))

    def _heard(self, hello: Hello) -> None:
        self._see(hello.view, HelloReceived(hello))

    def _broken(self, view: ViewNumber, peer: WorkerId) -> None:
        if self._member.view is not None and self._member.view.number == view:
            self._clock.broke(time.monotonic(), self._last_heard(peer), self._handover.read()[1].applied_at)
            logger.info("event=link-broken view=%d peer=%s", view, peer)
        self._handle(LinkBroken(view, peer))

    def _lost(self, view: ViewNumber, peer: int | None) -> None:
        """The script met a broken link first."""
        present = self._member.view
        if present is None or present.number != view:
            return
        others = [worker for worker in present.workers if worker != self._setting.worker]
        named = present.workers[peer] if peer is not None and peer < len(present.workers) else None
        if named is not None or others:
            self._broken(view, named or others[0])

    def _last_heard(self, peer: WorkerId) -> float | None:
        if self._group is None or self._group[1] is None:
            return None
        plan, group = self._group
        assert group is not None
        return group.last_heard.get(plan.view.workers.index(peer)) if peer in plan.view.workers else None

    def _see(self, view: View, event: Event) -> None:
        before = self._member.view
        self._clock.seen(view, time.monotonic(), self._handover.read()[1].applied_at, known=before)
        self._handle(event)

    async def _listen(self, stream: LeaderStream) -> None:
        async for update in stream.updates():
            if update.document is None:
                continue
            try:
                document = codec.decode(Document, update.document)
            except MalformedMessage as error:
                logger.warning("event=leader-unreadable cause=%r", str(error))
                continue
            self._read(document)

    def _read(self, document: Document) -> None:
        me = self._setting.worker
        place = next((place for place in document.places if place.worker == me), None)
        told_to_leave = place is not None and place.state is LifeState.LEAVING
        self._handover.hear(job_runs=document.view is not None, stop=bool(document.stop), end_at=document.end_at)
        if place is not None and place.state is LifeState.GONE and place.why != HAS_LEFT:
            self._exit(EVICTED, f"{me} is out of the job: {place.why}")  # whether it wanted to leave or not
        if told_to_leave and self._member.view is not None:
            self._leave()  # before a view without this worker, which is no eviction then
        if document.view is not None:
            if self._view is None and me not in document.view.workers:
                self._step_back()
            self._view = document.view
            if self._following is not None:
                self._following.seen(document.view.workers)
            self._see(document.view, ViewSeen(document.view))
        if document.formed is not None:
            self._formed = document.formed
            self._handle(FormedSeen(document.formed))
        if place is not None and place.state is LifeState.GONE:
            self._exit(0 if self._member.leaving else EVICTED, f"{me} is out of the job: {place.why}")
        if told_to_leave:
            self._leave()
        if document.finished is not None:
            self._finish(document)
        self._hint.set()

    def _finish(self, document: Document) -> None:
        told = self._handover.read()[1]
        if told.done is None:
            self._exit(EVICTED, "the job has ended without this worker")
        if self._member.view is None:
            if document.ended:
                self._exit(0, "the job has ended without this worker")
            return  # it has followed to the end, and its state is wanted if all members die before theirs
        self._handle(Ended())
        self._handover.end()

    # ---------------------------------------------------------------- leaving

    def _signalled(self) -> None:
        assert self._signals is not None
        try:
            numbers = self._signals.recv(64)
        except BlockingIOError:
            return
        if signal.SIGTERM in numbers:
            own = signal.getsignal(signal.SIGTERM) is not ignore_signal
            self._leave_due = time.monotonic() + (OWN_HANDLER_S if own else 0.0)
            self._hint.set()

    def _leave(self) -> None:
        if not self._member.leaving:
            logger.info("event=leaving worker=%s", self._setting.worker)
            self._handle(Leave())

    def _exit(self, code: int, reason: str) -> None:
        logger.info("event=exit worker=%s code=%d reason=%r", self._setting.worker, code, reason)
        self._leave_process(code, reason)

    # ---------------------------------------------------------------- the status

    def _tell(self, now: float) -> None:
        position, told = self._handover.read()
        progress = (position.applied, position.computing, told.entered, told.means, told.doing, told.done, told.left)
        due = self._status_due or now - self._sent_at >= HEARTBEAT_S
        if not due and progress == self._sent_progress:
            return
        if self._stream is None:
            return
        self._status_due, self._sent_at, self._sent_progress = False, now, progress
        self._sequence += 1
        self._stream.send(self._status(told))

    def _status(self, told: Told) -> WorkerStatus:
        member, position = self._member, self._handover.read()[0]
        assert self._peers is not None
        speed = steps_per_s(told.applied_at)
        return WorkerStatus(
            worker=self._setting.worker,
            sequence=self._sequence,
            pid=os.getpid(),
            host=socket.gethostname(),
            address=self._peers.address,
            phase=self._phase(told),
            doing=told.doing,
            view=None if member.view is None else member.view.number,
            opened=member.opened,
            opened_step=member.opened_step,
            applied=position.applied,
            computing=position.computing,
            shards=told.shards,
            epoch=told.epoch,
            broken=member.broken,
            broken_peers=member.broken_peers,
            unreachable=member.unreachable,
            leaving=member.leaving,
            left=told.left,
            done=told.done,
            failure=self._failure,
            training=told.training,
            means=told.means,
            samples_per_s=speed * told.training.batch_size if told.training is not None else 0.0,
            steps_per_s=speed,
            first_step_at=told.first_step_at,
            recovery=self._recovery,
            pass_ms=self._handover.pass_ms,
            reset_shard_state=told.reset,
            entered=told.entered,
        )

    def _phase(self, told: Told) -> Phase:
        if told.done is not None:
            return Phase.DONE
        if told.announcement is None:
            return Phase.STARTING
        if self._member.view is not None:
            return Phase.TRAINING
        return Phase.READY if self._following is None or self._handover.level else Phase.FOLLOWING


def ignore_signal(*_: object) -> None:
    """A handler that lets the wake-up descriptor do its work; the keeper reads the signal's number from there."""


def steps_per_s(applied_at: tuple[float, ...]) -> float:
    if len(applied_at) < 2 or applied_at[-1] <= applied_at[0]:
        return 0.0
    return (len(applied_at) - 1) / (applied_at[-1] - applied_at[0])


@dataclass(slots=True)
class RecoveryClock:
    """What one failure costs this member, from monotonic stamps; several failures in a row count as one."""

    view: View | None = None  # the newest of the recovery
    seen_at: float | None = None
    formed_at: float | None = None
    evidence_at: float | None = None
    last_frame_at: float | None = None
    last_step_at: float | None = None
    steps_before: int = 0
    _known: ViewNumber = ViewNumber(0)

    def broke(self, now: float, last_frame: float | None, applied_at: tuple[float, ...]) -> None:
        if self.evidence_at is None:
            self.evidence_at, self.last_frame_at = now, last_frame
            self.last_step_at = applied_at[-1] if applied_at else None

    def seen(self, view: View, now: float, applied_at: tuple[float, ...], known: View | None) -> None:
        if known is None or view.number <= max(known.number, self._known):
            self._known = max(self._known, view.number)
            return
        self._known = view.number
        if not view.cause.is_failure and self.view is None:  # links end with every view: that alone is no failure
            self.evidence_at = self.last_frame_at = self.last_step_at = None
            return
        self.broke(now, None, applied_at)
        if view.cause.is_failure or self.view is None:
            self.view, self.seen_at, self.formed_at = view, now, None

    def formed(self, number: ViewNumber, now: float) -> None:
        if self.view is not None and number == self.view.number and self.formed_at is None:
            self.formed_at = now

    def measured(self, applied_at: tuple[float, ...]) -> Recovery | None:
        """Once the first step after it is done."""
        if self.view is None or self.evidence_at is None or self.seen_at is None:
            return None
        if not applied_at or applied_at[-1] < self.seen_at:
            return None
        done = next(at for at in applied_at if at >= self.seen_at)
        formed = min(self.formed_at or done, done)
        began = self.last_frame_at or self.last_step_at or self.evidence_at
        cause = self.view.cause if self.view.cause.is_failure else Cause.BROKEN
        recovery = Recovery(
            view=self.view.number,
            step=self.view.at_step,
            cause=cause,
            detect_ms=_ms(began, self.evidence_at),
            agree_ms=_ms(self.evidence_at, self.seen_at),
            reform_ms=_ms(self.seen_at, formed),
            redo_ms=_ms(formed, done),
            total_ms=_ms(self.last_step_at or began, done),
        )
        self.view = self.seen_at = self.formed_at = self.evidence_at = None
        self.last_frame_at = self.last_step_at = None
        return recovery


def _trace(recovery: Recovery) -> None:
    """The recovery that has just ended, part after part."""
    telemetry.RECOVERY_DURATION.record(recovery.total_ms / 1000)
    end = time.time_ns()
    facts = {"view": int(recovery.view), "step": int(recovery.step), "cause": recovery.cause.value}
    telemetry.past_span(telemetry.RECOVERY, end - int(recovery.total_ms * 1e6), end, **facts)
    for name, lasted in (
        (telemetry.REDO, recovery.redo_ms),
        (telemetry.REFORM, recovery.reform_ms),
        (telemetry.AGREE, recovery.agree_ms),
        (telemetry.DETECT, recovery.detect_ms),
    ):
        begin = end - int(lasted * 1e6)
        telemetry.past_span(name, begin, end, **facts)
        end = begin


def _ms(start: float, end: float) -> float:
    return round(max(0.0, end - start) * 1000, 3)
