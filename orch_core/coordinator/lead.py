"""What the leader does: take the document over, then hear, decide, commit, publish, again and again.

One loop, one commit in flight, and nothing is published before its commit. Statuses and commands are posted by the
gRPC handlers and taken in between two commits. What was heard belongs to one leadership and is dropped with it:
whoever lives says it again.

The judge's clock
    Silence must not be blamed on others by who was stalled (SIGSTOP, a starved host). So the clock by which `decide`
    judges advances at most 100 ms each time the loop wakes up. After a stall of any length, everybody's statuses
    wait in the sockets, and are heard long before the clock has caught up with what it had missed.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orch_core import failpoints, telemetry
from orch_core.contracts import codec
from orch_core.contracts.consensus import Consensus, Leadership
from orch_core.contracts.document import Document
from orch_core.contracts.errors import ConfigurationError, LeadershipLost
from orch_core.contracts.ids import AgentId, WorkerId, place_and_life
from orch_core.contracts.job import JobSpec
from orch_core.contracts.status import AgentStatus, WorkerStatus
from orch_core.coordinator.elections import Elections
from orch_core.coordinator.publish import Board
from orch_core.protocol import cluster
from orch_core.protocol.cluster import Heard, Observed
from orch_core.rpc.wire import Status

JUDGE_LIMIT_S = 0.1  # the judge's clock advances by no more than this per wake-up
PENDING_S = 0.05  # the loop wakes up this often while `decide` waits for something
IDLE_S = 0.1
SHORTEST_S = 0.001
PROGRESS_S = 0.1  # progress is published at most this often
SIGN_OF_LIFE_S = 0.5  # ... and this often even if nothing has changed
COMMANDS_LIMIT = 16
HEARD_LIMIT = 1024  # processes

Clock = Callable[[], float]
Decide = Callable[[Document, Observed, float, float], cluster.Decision]

logger = logging.getLogger(__name__)


class JudgeClock:
    """Seconds that this process was awake to see."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.now = 0.0
        self._clock = clock
        self._last = clock()

    def wake(self) -> float:
        present = self._clock()
        self.now += min(max(present - self._last, 0.0), JUDGE_LIMIT_S)
        self._last = present
        return self.now


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    args: Mapping[str, str]
    revision: asyncio.Future[int]  # of the document that it is part of


class Leader:
    """Leads whenever consensus says so. `post` and `command` do nothing useful while the board is closed."""

    def __init__(
        self,
        consensus: Consensus,
        spec: JobSpec,
        board: Board,
        elections: Elections,
        *,
        started_at: float,
        wall: Clock = time.time,
        clock: Clock = time.monotonic,
        decide: Decide = cluster.decide,
    ) -> None:
        self._consensus = consensus
        self._spec = spec
        self._board = board
        self._elections = elections
        self._started_at = started_at
        self._wall = wall
        self._clock = clock
        self._decide = decide
        self._reign: _Reign | None = None

    async def run(self) -> None:
        while True:
            leadership = await self._consensus.lead()
            began_ns = self._elections.began_ns
            logger.info("event=leading term=%d", leadership.term)
            reign = _Reign(leadership, self._board, self._clock, self._wall, self._decide)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_until_lost(leadership), name="until-lost")
                    document = await reign.begin(self._spec, self._started_at)
                    telemetry.past_span(telemetry.ELECTION, began_ns, time.time_ns(), term=leadership.term)
                    self._reign = reign
                    self._board.open(leadership.term, document)
                    await reign.go_on()
            except* LeadershipLost as lost:
                logger.warning("event=leadership-lost term=%d why=%r", leadership.term, str(lost.exceptions[0]))
            finally:
                self._reign = None
                self._board.close()
                self._elections.began_ns = time.time_ns()
                reign.end()

    def post(self, status: Status) -> None:
        """Something was heard. The newest status of each process counts."""
        if self._reign is not None:
            self._reign.post(status)

    async def command(self, name: str, args: Mapping[str, str]) -> int:
        """The revision of the committed document that the command is part of.

        Raises LeadershipLost, or ConfigurationError for a command that makes no sense.
        """
        if self._reign is None:
            raise LeadershipLost("this replica does not lead")
        return await self._reign.command(name, args)


class _Reign:
    """One leadership, and everything that ends with it."""

    def __init__(self, leadership: Leadership, board: Board, clock: Clock, wall: Clock, decide: Decide) -> None:
        self._leadership = leadership
        self._board = board
        self._clock = clock
        self._wall = wall
        self._decide = decide
        self._judge = JudgeClock(clock)
        self._document: Document | None = None
        self._posted: dict[WorkerId | AgentId, Status] = {}
        self._commands: deque[_Command] = deque()
        self._workers: dict[WorkerId, Heard[WorkerStatus]] = {}
        self._agents: dict[AgentId, Heard[AgentStatus]] = {}
        self._observed = Observed()
        self._wake = asyncio.Event()
        self._again: float | None = None
        self._showed_at = float("-inf")
        self._news = True  # something has been heard or committed since progress was shown

    # ---------------------------------------------------------------------------------------- what others call

    def post(self, status: Status) -> None:
        sender = status.worker if isinstance(status, WorkerStatus) else status.agent
        if sender not in self._posted and len(self._posted) >= HEARD_LIMIT:
            logger.warning("event=status-dropped who=%s why=%r", sender, f"more than {HEARD_LIMIT} processes report")
            return
        self._posted[sender] = status
        self._wake.set()

    async def command(self, name: str, args: Mapping[str, str]) -> int:
        if len(self._commands) >= COMMANDS_LIMIT:
            raise ConfigurationError("the leader has too many commands to carry out: try again in a moment")
        command = _Command(name, args, asyncio.get_running_loop().create_future())
        self._commands.append(command)
        self._wake.set()
        return await command.revision

    def end(self) -> None:
        for command in self._commands:
            if not command.revision.done():
                command.revision.set_exception(LeadershipLost("this replica leads no more"))
        self._commands.clear()

    # ------------------------------------------------------------------------------------------------ the loop

    async def begin(self, spec: JobSpec, started_at: float) -> Document:
        """Take the document over, or create the first one, and commit that."""
        term, known = self._leadership.term, self._leadership.document
        document = cluster.first_document(spec, started_at) if known is None else codec.decode(Document, known)
        return await self._commit(cluster.took_over(document, term, self._wall()))

    async def go_on(self) -> None:
        assert self._document is not None
        while True:
            await self._wait()
            self._wake.clear()
            self._hear(self._judge.wake())
            await self._obey()
            while (decision := self._decided()).document is not None:
                await self._publish(decision.document)
                self._hear(self._judge.wake())
            self._again = decision.look_again_at
            self._show()

    async def _wait(self) -> None:
        timeout = IDLE_S
        if self._again is not None:
            timeout = max(SHORTEST_S, min(PENDING_S, self._again - self._judge.now))
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _hear(self, now: float) -> None:
        posted, self._posted = self._posted, {}
        for status in posted.values():
            self._news |= self._hear_one(status, now)
        self._observed = Observed(self._workers, self._agents, leading_since=0.0)

    def _hear_one(self, status: Status, now: float) -> bool:
        if isinstance(status, WorkerStatus):
            worker = cluster.hear(self._workers.get(status.worker), status, now)
            if worker is not None:
                if status.worker not in self._workers:
                    logger.info("event=worker-heard worker=%s pid=%d phase=%s", status.worker, status.pid, status.phase)
                self._workers[status.worker] = worker
            return worker is not None
        agent = cluster.hear(self._agents.get(status.agent), status, now)
        if agent is not None:
            self._agents[status.agent] = agent
        return agent is not None

    def _decided(self) -> cluster.Decision:
        assert self._document is not None
        return self._decide(self._document, self._observed, self._judge.now, self._wall())

    async def _obey(self) -> None:
        """Carry out the commands that wait, one commit each."""
        assert self._document is not None
        while self._commands:
            command = self._commands[0]
            try:
                document = cluster.command(self._document, command.name, command.args, self._wall())
            except ConfigurationError as error:
                if not command.revision.done():
                    command.revision.set_exception(error)
            else:
                if document.revision != self._document.revision:
                    await self._publish(document)
                logger.info("event=command name=%s args=%r", command.name, dict(command.args))
                if not command.revision.done():
                    command.revision.set_result(document.revision)
            self._commands.popleft()

    # -------------------------------------------------------------------------------------- commit and publish

    async def _publish(self, document: Document) -> None:
        self._board.put(await self._commit(document))
        self._news = True

    async def _commit(self, document: Document) -> Document:
        before = self._document
        ends = document.finished is not None and before is not None and before.finished is None
        if ends:
            failpoints.reach("before-end-commit")
        began = self._clock()
        await self._leadership.commit(codec.encode(document))
        took = self._clock() - began
        if ends:
            failpoints.reach("after-end-commit")
        self._document = document
        self._forget(document)
        telemetry.RAFT_COMMIT_DURATION.record(took)
        _tell(before, document, took)
        return document

    def _forget(self, document: Document) -> None:
        """Whose life is over for good has nothing left to say."""
        view = document.view
        present = {p.worker for p in document.places} | {*document.formed_members, *(view.workers if view else ())}
        known = {p.id for p in document.places}
        for worker in [w for w in self._workers if w not in present and place_and_life(w)[0] in known]:
            del self._workers[worker]

    def _show(self) -> None:
        now = self._clock()
        since = now - self._showed_at
        if since < (PROGRESS_S if self._news else SIGN_OF_LIFE_S):
            return
        assert self._document is not None
        self._showed_at, self._news = now, False
        self._board.show(cluster.progress(self._document, self._observed))
        for worker, heard in self._workers.items():
            telemetry.HEARTBEAT_AGE.set(self._judge.now - heard.at, {"orch.worker": worker})


async def _until_lost(leadership: Leadership) -> None:
    await leadership.lost()
    raise LeadershipLost("another replica leads, or a majority cannot be reached")


def _tell(before: Document | None, document: Document, took_s: float) -> None:
    """One line per event that is new in the document, and what of it is measured."""
    new = document.events_total - (before.events_total if before else document.events_total)
    for event in document.events[-new:] if new > 0 else ():
        logger.info("event=%s text=%r revision=%d", event.kind, event.text, document.revision)
    view = document.view
    if view is None or (before is not None and before.view is not None and before.view.number == view.number):
        return
    telemetry.VIEW_NUMBER.set(view.number)
    telemetry.VIEW_MEMBERS.set(len(view.members))
    end = time.time_ns()
    telemetry.past_span(
        telemetry.VIEW_CHANGE,
        end - int(took_s * 1e9),
        end,
        view=view.number,
        members=len(view.members),
        cause=view.cause.value,
        reason=view.reason,
    )
