"""Which processes of a job should run on this host: ``plan(wanted, observed) -> actions``, as a reconciler.

The agent calls it on every hint and every heartbeat; it is idempotent, so a hint too many costs nothing. Each place
has one life at a time; a process that starts again is a new life. What the end of a life means:

======================  ================================================================================
exit code 75            evicted: a new life, not counted
a signal, another code  a new life, counted: more than `max_restarts` within 10 minutes end the job
a failure record        the script or its configuration is wrong: the leader ends the job, nobody is restarted
0 after "finished"      the place is through
0 of who has left       no failure: a new life if the place is still wanted
0 otherwise             an error that names the worker, unless a leader explains it within some seconds
======================  ================================================================================

Counts start anew when a life of the place has been a member for 100 steps. A process that the document shows as gone
is on its way out by itself and is killed if it takes longer than a second; a frozen one cannot know, so it gets the
time in which most of them thaw. A member that should leave learns it from the document; a life that is none yet is
asked by SIGTERM, and killed if it does not go.
"""

import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeAlias

from orch_core.contracts.document import HAS_LEFT, Document, Failure, LifeState
from orch_core.contracts.ids import PlaceId, Step, WorkerId, place_and_life, worker_id
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.protocol.member import EVICTED

WINDOW_S = 600.0  # restarts are counted within this time
FORGIVING_STEPS = 100  # of training by a life of the place: its earlier deaths are forgotten
FAST_S = 5.0  # a life shorter than this makes the next one wait
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 10.0
DOOMED_S = 1.0  # from "gone" in the document to SIGKILL
FROZEN_S = 10.0  # the same for a process that is stopped
TERM_S = 3.0  # from SIGTERM to SIGKILL, when the job is over
EXPLAIN_S = 5.0  # an exit code 0 may be ahead of the document that explains it


class Order(Enum):
    """What the agent was told from outside the document."""

    RUN = auto()
    DRAIN = auto()  # somebody asked for the end: nobody is started any more
    END = auto()  # SIGTERM, and SIGKILL after TERM_S
    KILL = auto()


@dataclass(frozen=True, slots=True)
class Process:
    """One life, as its agent knows it. Times are seconds of the agent's clock."""

    worker: WorkerId
    pid: int
    started_at: float
    exited_at: float | None = None
    exit_code: int | None = None  # as in subprocess: negative means a signal
    failed: bool = False  # it left a failure record
    stopped: bool = False  # SIGSTOP, a debugger, a frozen cgroup
    joined: Step | None = None  # where training stood when it became a member
    steps: int = 0  # for which it was a member
    left: bool = False  # on purpose
    doomed_at: float | None = None  # since when the document shows it as gone, although it lives
    asked_at: float | None = None  # it got SIGTERM

    @property
    def alive(self) -> bool:
        return self.exited_at is None

    @property
    def counts(self) -> bool:
        """Whether its end uses up a restart."""
        if self.alive or self.doomed_at is not None or self.asked_at is not None:
            return False
        return self.exit_code not in (0, EVICTED)


@dataclass(frozen=True, slots=True)
class Start:
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Signal:
    """Ask it to end."""

    pid: int
    signal: int


@dataclass(frozen=True, slots=True)
class Kill:
    pid: int


Action: TypeAlias = Start | Signal | Kill


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now, whether the job cannot go on, and when to ask again if nothing happens before."""

    actions: tuple[Action, ...] = ()
    failure: Failure | None = None
    next_look: float | None = None


def observe(processes: Iterable[Process], document: Document | None, step: Step, now: float) -> tuple[Process, ...]:
    """Write into each process what the document says about it. `step`: how far training is."""
    if document is None:
        return tuple(processes)
    return tuple(_observe(process, document, step, now) for process in processes)


def plan(
    document: Document | None,
    spec: JobSpec,
    processes: Sequence[Process],
    now: float,
    order: Order = Order.RUN,
    heard_at: float | None = None,
    mine: Collection[PlaceId] | None = None,
) -> Verdict:
    """One look. `processes`: every life that this agent has started, the dead ones included. `heard_at`: when a leader
    has spoken last. `mine`: the places that this agent fills; None: all."""
    living = [p for p in processes if p.alive]
    if order is Order.KILL:
        return Verdict(tuple(Kill(p.pid) for p in living))
    if order is Order.END or (document is not None and document.status.final) or _stopped_early(document, order):
        return _end(living, now)
    places = [place for place in _places(document, spec) if mine is None or place in mine]
    verdicts = [_place(place, document, spec, processes, now, order, heard_at) for place in places]
    verdicts += [_surplus(p, document, spec, now) for p in living]
    verdicts += [_doomed(p, now) for p in living]
    looks = [v.next_look for v in verdicts if v.next_look is not None]
    return Verdict(
        tuple(action for v in verdicts for action in v.actions),
        next((v.failure for v in verdicts if v.failure is not None), None),
        min(looks, default=None),
    )


def prune(processes: Sequence[Process], now: float) -> tuple[Process, ...]:
    """Forget lives that no rule asks for any more: a job may run for months."""
    newest = dict(sorted(place_and_life(p.worker) for p in processes))

    def is_needed(process: Process) -> bool:
        place, life = place_and_life(process.worker)
        return process.exited_at is None or life == newest[place] or now - process.exited_at < WINDOW_S

    return tuple(p for p in processes if is_needed(p))


def _observe(process: Process, document: Document, step: Step, now: float) -> Process:
    if not process.alive:
        explained = not process.left and process.exit_code == 0 and _has_left(process.worker, document)
        return replace(process, left=True) if explained else process
    mine = next((p for p in document.places if p.worker == process.worker), None)
    if mine is not None and mine.state in (LifeState.MEMBER, LifeState.LEAVING):
        joined = step if process.joined is None else process.joined
        process = replace(process, joined=joined, steps=max(process.steps, step - joined))
    if not process.left and _has_left(process.worker, document):
        process = replace(process, left=True)
    if process.doomed_at is None and _is_gone(process.worker, document):
        process = replace(process, doomed_at=now)
    return process


def _has_left(worker: WorkerId, document: Document) -> bool:
    mine = next((p for p in document.places if p.worker == worker), None)
    if mine is None:
        return False
    return mine.state is LifeState.LEAVING or (mine.state is LifeState.GONE and mine.why == HAS_LEFT)


def _is_gone(worker: WorkerId, document: Document) -> bool:
    place, life = place_and_life(worker)
    mine = next((p for p in document.places if p.id == place), None)
    if mine is not None and place_and_life(mine.worker)[1] > life:
        return True
    return worker in document.dead or (mine is not None and mine.worker == worker and mine.state is LifeState.GONE)


def _stopped_early(document: Document | None, order: Order) -> bool:
    """Asked to end while nobody trains: there is no step to finish."""
    asked = order is Order.DRAIN or (document is not None and bool(document.stop))
    idle = document is None or document.view is None or document.status is JobStatus.WAITING
    return asked and idle and (document is None or document.finished is None)


def _end(living: Sequence[Process], now: float) -> Verdict:
    actions: list[Action] = []
    looks: list[float] = []
    for process in living:
        if process.asked_at is None:
            actions.append(Signal(process.pid, signal.SIGTERM))
            looks.append(now + TERM_S)
        elif now >= process.asked_at + TERM_S:
            actions.append(Kill(process.pid))
            looks.append(now + TERM_S)
        else:
            looks.append(process.asked_at + TERM_S)
    return Verdict(tuple(actions), next_look=min(looks, default=None))


def _places(document: Document | None, spec: JobSpec) -> list[PlaceId]:
    return [PlaceId(f"w{i}") for i in range(spec.workers)] if document is None else list(document.seats)


def _place(
    place: PlaceId,
    document: Document | None,
    spec: JobSpec,
    processes: Sequence[Process],
    now: float,
    order: Order,
    heard_at: float | None,
) -> Verdict:
    lives = sorted((p for p in processes if place_and_life(p.worker)[0] == place), key=lambda p: p.started_at)
    if any(p.alive for p in lives):
        return Verdict()
    last = lives[-1] if lives else None
    if last is not None and last.failed and last.exit_code not in (0, EVICTED):
        return Verdict()  # the leader ends the job
    if document is not None and document.finished is not None:
        return Verdict()
    if last is not None and last.exit_code == 0 and not last.left:
        return _exit_zero(last, document, order, now, heard_at)
    unheard = last is not None and last.exited_at is not None and heard_at is not None and heard_at < last.exited_at
    if last is not None and last.exit_code == 0 and unheard:
        return Verdict()  # it may have gone through everything: the end may be committed, and nobody has told us yet
    used = _used_restarts(lives, now)
    if last is not None and used > spec.max_restarts:
        return Verdict(failure=_used_up(last, spec))
    if order is not Order.RUN or (document is not None and document.stop):
        return Verdict()
    due = _due(lives)
    if now < due:
        return Verdict(next_look=due)
    return Verdict((Start(worker_id(place, _next_life(place, lives, document))),))


def _exit_zero(last: Process, document: Document | None, order: Order, now: float, heard_at: float | None) -> Verdict:
    if order is not Order.RUN or (document is not None and document.stop):
        return Verdict()
    assert last.exited_at is not None
    due = last.exited_at + EXPLAIN_S
    if heard_at is None or heard_at < due:  # without a leader nobody can explain anything: its word is a hint
        return Verdict(next_look=due if now < due else None)
    message = (
        f"{last.worker} ended with exit code 0 before training was finished: every worker must go through all of its "
        "batches; to end training early, call run.stop() or leave the loop after the same step on all workers"
    )
    return Verdict(failure=Failure(last.worker, "exit", message, exit_code=1))


def _used_restarts(lives: Sequence[Process], now: float) -> int:
    used = 0
    for process in lives:
        if process.steps >= FORGIVING_STEPS:
            used = 0
        if process.counts and process.exited_at is not None and now - process.exited_at < WINDOW_S:
            used += 1
    return used


def _used_up(last: Process, spec: JobSpec) -> Failure:
    many = {0: "no restart is allowed", 1: "its one restart is used up"}
    rest = many.get(spec.max_restarts, f"its {spec.max_restarts} restarts within 10 minutes are used up")
    return Failure(last.worker, "exit", f"worker {last.worker} {how_it_ended(last.exit_code)}, and {rest}", exit_code=1)


def how_it_ended(exit_code: int | None) -> str:
    """ "ended with exit code 17", "was killed by SIGSEGV": the end of a sentence that begins with who."""
    if exit_code is None:
        return "has ended"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _due(lives: Sequence[Process]) -> float:
    """When the next life may start: at once after one short life, later and later after several in a row. Who was sent
    away is no sign that lives of this place cannot last."""
    in_a_row = 0
    lives = [p for p in lives if not p.left and p.asked_at is None]
    for process in reversed(lives):
        if process.exited_at is None or process.exited_at - process.started_at >= FAST_S:
            break
        in_a_row += 1
    if in_a_row < 2 or lives[-1].exited_at is None:
        return float("-inf")
    return lives[-1].exited_at + min(FIRST_DELAY_S * 2.0 ** min(in_a_row - 2, 16), LONGEST_DELAY_S)


def _next_life(place: PlaceId, lives: Sequence[Process], document: Document | None) -> int:
    known = [place_and_life(p.worker)[1] for p in lives]
    if document is not None:
        known += [place_and_life(p.worker)[1] for p in document.places if p.id == place]
    return max(known, default=0) + 1


def _surplus(process: Process, document: Document | None, spec: JobSpec, now: float) -> Verdict:
    """A life that is told to leave before it is a member. Nobody waits for it."""
    if document is None:
        away, member = place_and_life(process.worker)[0] not in _places(None, spec), False
    else:
        mine = next((p for p in document.places if p.worker == process.worker), None)
        away = document.sends_away(process.worker)
        member = mine is not None and mine.state not in (LifeState.STARTING, LifeState.READY)
    if not away or member:
        return Verdict()
    if process.asked_at is None:
        return Verdict((Signal(process.pid, signal.SIGTERM),), next_look=now + TERM_S)
    due = process.asked_at + TERM_S
    return Verdict(next_look=due) if now < due else Verdict((Kill(process.pid),), next_look=now + TERM_S)


def _doomed(process: Process, now: float) -> Verdict:
    if process.doomed_at is None:
        return Verdict()
    due = process.doomed_at + (FROZEN_S if process.stopped else DOOMED_S)
    if now < due:
        return Verdict(next_look=due)
    return Verdict((Kill(process.pid),), next_look=now + DOOMED_S)
