"""A worker process: the keeper with the real `Member`, its links to peers, and the script's thread beside it."""

from collections import deque
from typing import TYPE_CHECKING, Any, assert_never

from orch_core.contracts.document import HAS_LEFT, Document, Finished, LifeState, Training
from orch_core.contracts.ids import PlaceId, ViewNumber, WorkerId, place_and_life
from orch_core.contracts.status import Phase, WorkerStatus
from orch_core.protocol.evidence import HEARTBEAT_S
from orch_core.protocol.member import (
    EVICTED,
    CloseGroup,
    Effect,
    Ended,
    Event,
    Exit,
    FormedSeen,
    Greet,
    Greeted,
    GroupClosed,
    Hello,
    HelloReceived,
    Leave,
    LinkBroken,
    Member,
    OpenGroup,
    SendStatus,
    StateHeld,
    Tick,
    ViewSeen,
)
from orch_core.testing.simulator.coordinator import Client
from orch_core.testing.simulator.follow import Feeds, Following, Label, Shared, Wish
from orch_core.testing.simulator.script import Group, Script
from orch_core.testing.simulator.world import Connection, Process, Violation

if TYPE_CHECKING:
    from orch_core.testing.simulator.simulation import Simulation

TRAINING = Training(epochs=1, samples=1, batch_size=1)


class Worker(Client):
    def __init__(self, simulation: "Simulation", worker: WorkerId, pid: int) -> None:
        self.place: PlaceId = place_and_life(worker)[0]
        super().__init__(simulation, worker, str(self.place))
        self.id = worker
        self.pid = pid
        self.member = Member(worker, simulation.swarm.shards, simulation.swarm.min_workers)
        self.script = Script(self)
        self.feeds = Feeds(self)
        self.following = Following(self)
        self.document: Document | None = None
        self.group: Group | None = None  # the mailbox from keeper to script
        self.stop_asked = False
        self.end_at: int | None = None
        self.ended = False
        self.busy = False  # frozen, but its agent sees a running process
        self.exit_code: int | None = None
        self.links: dict[tuple[ViewNumber, WorkerId, bool], Connection] = {}  # (view, peer, dialled by me)
        self._life = self.script.life()
        self._blocked = False  # the script waits to be woken
        self._woken = False
        self._events: deque[Event] = deque()
        self._handling = False
        self._hello: Hello | None = None  # the one with which peers are dialled
        self._armed: float | None = None
        self._sequence = 0
        self._revision = -1

    def start(self) -> None:
        self.uplink.start()
        self.later(0.0, self._resume)
        self.later(HEARTBEAT_S * self.world.rng.random(), self._heartbeat)

    # the script's thread

    def hop(self, action: Any, *args: Any) -> None:
        """From the script's thread to the keeper's loop."""
        self.later(self.swarm_hop(), action, *args)

    def swarm_hop(self) -> float:
        return 0.00005 + 0.0003 * self.world.rng.random()

    def wake(self) -> None:
        if self._blocked and not self._woken:
            self._woken = True
            self.later(self.swarm_hop(), self._resume)

    def _resume(self) -> None:
        self._woken = False
        self._blocked = False
        wait = next(self._life, None)
        if wait is None:
            self._blocked = True
        else:
            self.later(wait, self._resume)

    # the leader

    def report(self) -> None:
        self.point("status")
        self.uplink.send(self._status())
        self.point("status sent")

    def state_held(self, view: ViewNumber) -> None:
        self.feed(StateHeld(view))

    def _heartbeat(self) -> None:
        self.uplink.send(self._status())
        self.later(HEARTBEAT_S, self._heartbeat)

    def _status(self) -> WorkerStatus:
        member, script = self.member, self.script
        self._sequence += 1
        view = member.view
        return WorkerStatus(
            worker=self.id,
            sequence=self._sequence,
            pid=self.pid,
            host=self.host,
            address=self.id,
            phase=self._phase(),
            view=view.number if view is not None else None,
            opened=member.opened,
            opened_step=member.opened_step,
            applied=script.position().applied,
            entered=script.entered,
            computing=script.computing,
            broken=member.broken,
            broken_peers=member.broken_peers,
            unreachable=member.unreachable,
            leaving=member.leaving,
            done=self._done() if script.phase is Phase.DONE else None,
        )

    def _phase(self) -> Phase:
        follows = self.following.begun and not self.following.level and self.member.view is None
        return Phase.FOLLOWING if follows and self.script.phase is Phase.READY else self.script.phase

    def ready(self) -> None:
        """The script is: whether it follows is known before the leader hears of it."""
        self.begin_following()
        self.report()

    def begin_following(self) -> None:
        if self.simulation.swarm.follow and self.document is not None:
            self.following.look(self.document)

    def _done(self) -> Finished:
        script = self.script
        assert script.applied is not None
        return Finished(script.applied + 1, str(script.state), str(script.state), {}, TRAINING)

    def receive(self, connection: Connection, payload: Any) -> None:
        if connection is self.uplink.connection:
            self._hear(payload)
        elif isinstance(payload, Hello):
            self._greeted_by(connection, payload)
        elif isinstance(payload, Wish):
            self.feeds.wish(connection, payload)
        elif isinstance(payload, Shared):
            self.following.hear(connection, payload)
        else:
            connection.frames.append(payload)
            self.wake()

    def lost(self, connection: Connection) -> None:
        if connection is self.uplink.connection:
            self.uplink.lost()
        elif isinstance(connection.label, Label):
            (self.following if connection.label.follower == self.id else self.feeds).lost(connection)
        elif isinstance(connection.label, tuple):
            view, peer, _ = key = self._key(connection)
            if self.links.get(key) is connection:
                del self.links[key]
                self.feed(LinkBroken(view, peer))

    def _key(self, connection: Connection) -> tuple[ViewNumber, WorkerId, bool]:
        view, dialler, answerer = connection.label
        return (view, answerer, True) if dialler == self.id else (view, dialler, False)

    def _hear(self, document: Document) -> None:
        if document.revision <= self._revision:
            return
        self._revision = document.revision
        self.document = document
        if self.script.phase is Phase.READY:
            self.begin_following()
        self.end_at = document.end_at
        self.stop_asked = bool(document.stop)
        state = next((p.state for p in document.places if p.worker == self.id), None)
        if any(p.state is LifeState.GONE and p.worker == self.id and p.why != HAS_LEFT for p in document.places):
            self.exit(EVICTED)
            return
        if state is LifeState.LEAVING and self.member.view is not None:
            self.terminate()
        if document.view is not None:
            self.feed(ViewSeen(document.view))
        if document.formed is not None:
            self.feed(FormedSeen(document.formed))
        if state is LifeState.GONE:
            self.exit(0 if self.member.leaving else EVICTED)
        if state is LifeState.LEAVING:
            self.terminate()
        if document.finished is None:
            return
        if self.script.phase is Phase.DONE and self.member.view is not None:
            self.ended = True
            self.feed(Ended())
            self.wake()
        elif document.ended:
            self.exit(0)  # the job is over, and it has no final state

    # the machine

    def terminate(self) -> None:
        """SIGTERM, or told so by the document."""
        if self.script.phase is not Phase.DONE and not self.member.leaving:
            self.feed(Leave())

    def feed(self, event: Event) -> None:
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                for effect in self.member.handle(self._events.popleft(), self.world.now):
                    self._perform(effect)
        finally:
            self._handling = False
        deadline = self.member.deadline
        if deadline is not None and deadline != self._armed:
            self.world.at(deadline, self, self._tick, deadline)
        self._armed = deadline

    def _tick(self, deadline: float) -> None:
        if self.member.deadline == deadline:
            self._armed = None
            self.feed(Tick())

    def _perform(self, effect: Effect) -> None:
        match effect:
            case CloseGroup():
                self._close_group()
            case Greet(hello, peers):
                self._hello = hello
                self.simulation.checks.hello(self, hello)
                for peer in peers:
                    self._dial_after(0.0, hello, peer)
            case OpenGroup(plan):
                self._open_group(OpenGroup(plan))
            case SendStatus():
                self.report()
            case Exit(code, reason):
                self.world.say(f"{self.name} exits {code}: {reason}")
                if code == 2:
                    raise Violation(reason)
                self.exit(code)
            case _:
                assert_never(effect)

    def exit(self, code: int) -> None:
        self.exit_code = code
        self.simulation.exited(self)
        self.point("exit")

    # groups and links

    def _close_group(self) -> None:
        if self.group is not None:
            self.group.closed = True
            self.group = None
            self.wake()
        self._hello = None
        view = self.member.view
        if view is None:
            return
        self.following.stop()
        limit = view.number if self.member.broken == view.number or self._is_over else view.number - 1
        for key in [k for k in self.links if k[0] <= limit]:
            self.links.pop(key).close(self)
        position = self.script.position()
        delay = self.simulation.swarm.freeze_s * self.world.rng.random()
        if delay:
            self.later(delay, self._group_closed, view.number, position)
        else:
            self._events.append(GroupClosed(position))

    def _group_closed(self, view: ViewNumber, position: Any) -> None:
        if self.member.view is not None and self.member.view.number == view:
            self.feed(GroupClosed(position))

    @property
    def _is_over(self) -> bool:
        return self.ended or self.exit_code is not None

    def _dial_after(self, delay: float, hello: Hello, peer: WorkerId) -> None:
        self.later(delay + self.world.latency(), self._dial, hello, peer)

    def _dial(self, hello: Hello, peer: WorkerId) -> None:
        if self._hello is not hello:
            return
        answers: Process | None = self.simulation.workers.get(peer)
        assert answers is not None
        number = hello.view.number
        connection = self.world.connect(self, answers, (number, self.id, peer))
        if connection is None:
            self._dial_after(0.05 + 0.1 * self.world.rng.random(), hello, peer)
            return
        self.links[number, peer, True] = connection
        self.point("hello")
        connection.send(self, hello)
        self.point("hello sent")
        self.feed(Greeted(number, peer))

    def _greeted_by(self, connection: Connection, hello: Hello) -> None:
        number = hello.view.number
        if not self._wants(number):
            connection.close(self)
            return
        key = (number, hello.sender, False)
        before = self.links.get(key)
        if before is not None:
            before.close(self)
        self.links[key] = connection
        self.feed(HelloReceived(hello))
        if self.links.get(key) is connection and not self._wants(number):
            self.links.pop(key).close(self)

    def _wants(self, number: ViewNumber) -> bool:
        view = self.member.view
        if self._is_over:
            return False
        return view is None or number > view.number or (number == view.number and self.member.broken != number)

    def _open_group(self, effect: OpenGroup) -> None:
        plan = effect.plan
        number = plan.view.number
        others = [w for w in plan.view.workers if w != self.id]
        missing = [w for w in others for mine in (True, False) if (number, w, mine) not in self.links]
        if missing:
            raise Violation(f"{self.name} opens view {number} without its links to {missing}")
        outgoing = {w: self.links[number, w, True] for w in others}
        incoming = {w: self.links[number, w, False] for w in others}
        self.group = Group(plan, outgoing, incoming)
        self.simulation.checks.opened(self, plan)
        self.point("opened")
        self.wake()
