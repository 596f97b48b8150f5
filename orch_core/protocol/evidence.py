"""What the leader has heard, and what that proves: who is dead, who is silent, who cannot reach whom.

Three facts put a member out:

* *dead*: its agent has reaped it, or a later life of its place has spoken;
* *silent*: no status for SILENCE_S. While its agent answers and reports the process as running, a C call may simply
  hold the interpreter: then STALL_S. A new leader has heard nobody yet and waits a full period first;
* *unreachable*: a pair of members that failed to greet each other.

All times are seconds of the judge's clock, which advances at most 100 ms per wake-up: a leader that was stalled itself
accuses nobody.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orch_core.contracts.document import Document, View
from orch_core.contracts.ids import AgentId, Step, WorkerId
from orch_core.contracts.status import AgentStatus, Phase, ProcessReport, ProcessState, WorkerStatus

HEARTBEAT_S = 0.5
MISSED_S = 1.2 * HEARTBEAT_S
STALE_S = 2 * HEARTBEAT_S
GREET_S = HEARTBEAT_S  # from being back to having been greeted: peers dial again all the time
SILENCE_S = 2.0
STALL_S = 30.0
TICK_S = 0.001  # what is older than a limit is looked at this much later than the limit

S = TypeVar("S", bound=WorkerStatus | AgentStatus)


@dataclass(frozen=True, slots=True)
class Heard(Generic[S]):
    """The newest status of one process, and since when some things in it have been so."""

    status: S
    at: float
    first_at: float
    phase_since: float  # a worker's phase
    broken_since: float | None = None  # a worker's `broken` view
    back_at: float | None = None  # when it last spoke after it had missed a heartbeat


def hear(previous: Heard[S] | None, status: S, now: float) -> Heard[S] | None:
    """Take a status in; None if it is older than what is known."""
    broken = status.broken if isinstance(status, WorkerStatus) else None
    phase = status.phase if isinstance(status, WorkerStatus) else None
    if previous is None:
        return Heard(status, now, now, now, None if broken is None else now)
    old: WorkerStatus | AgentStatus = previous.status
    if status.sequence <= old.sequence:
        return None
    same_phase = isinstance(old, AgentStatus) or old.phase == phase
    same_broken = isinstance(old, WorkerStatus) and old.broken == broken
    broken_since = None if broken is None else previous.broken_since if same_broken else now
    back_at = now if now - previous.at > MISSED_S else previous.back_at
    return Heard(status, now, previous.first_at, previous.phase_since if same_phase else now, broken_since, back_at)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything the leader has heard since it leads. Lost with it: whoever lives says it again."""

    workers: Mapping[WorkerId, Heard[WorkerStatus]] = field(default_factory=dict)
    agents: Mapping[AgentId, Heard[AgentStatus]] = field(default_factory=dict)
    leading_since: float = 0.0

    def status(self, worker: WorkerId) -> WorkerStatus | None:
        heard = self.workers.get(worker)
        return heard.status if heard else None

    def reports(self) -> Iterator[tuple[ProcessReport, Heard[AgentStatus]]]:
        for heard in self.agents.values():
            for report in heard.status.processes:
                yield report, heard

    def report(self, worker: WorkerId) -> tuple[ProcessReport, Heard[AgentStatus]] | None:
        return next(((r, h) for r, h in self.reports() if r.worker == worker), None)

    @property
    def highest_applied(self) -> Step | None:
        applied = [h.status.applied for h in self.workers.values() if h.status.applied is not None]
        return max(applied) if applied else None


def silent_at(worker: WorkerId, observed: Observed) -> float:
    """When `worker` counts as silent, if nothing more is heard of it."""
    last = _last_word(worker, observed)
    found = observed.report(worker)
    if found is not None:
        report, agent = found
        # The agent's own word ages, too: it vouches for the process as long as it is not silent itself.
        if report.state is ProcessState.RUNNING:
            return min(last + STALL_S, max(last, agent.at) + SILENCE_S)
    return last + SILENCE_S


def is_stale(worker: WorkerId, observed: Observed, now: float) -> bool:
    """Its agent reports it as stopped, or its status is older than two heartbeats."""
    return _is_stopped(worker, observed) or now - _last_word(worker, observed) > STALE_S


def doubtful_until(worker: WorkerId, observed: Observed, now: float) -> float | None:
    """Until when nothing can be said of its links; None: now it can.

    It has missed a heartbeat, or a new leader has not heard it yet: until it is stale. It was away and is back: until
    the others have had the time to greet it.
    """
    if is_stale(worker, observed, now):
        return None
    heard = observed.workers.get(worker)
    last = _last_word(worker, observed)
    if heard is None or now - last > MISSED_S:
        return last + STALE_S + TICK_S
    if heard.back_at is not None and now < heard.back_at + GREET_S:
        return heard.back_at + GREET_S
    return None


def _last_word(worker: WorkerId, observed: Observed) -> float:
    heard = observed.workers.get(worker)
    return max(heard.at, observed.leading_since) if heard else observed.leading_since


def _is_stopped(worker: WorkerId, observed: Observed) -> bool:
    found = observed.report(worker)
    return found is not None and found[0].state is ProcessState.STOPPED


def broken_pairs(view: View, observed: Observed, gone: Iterable[WorkerId]) -> frozenset[frozenset[WorkerId]]:
    """Pairs of living members of `view` of which at least one says, in this view, that it cannot greet the other."""
    living = set(view.workers) - set(gone)
    pairs: set[frozenset[WorkerId]] = set()
    for worker in living:
        status = observed.status(worker)
        if status is not None and status.view == view.number:
            pairs.update(frozenset((worker, peer)) for peer in status.unreachable if peer in living and peer != worker)
    return frozenset(pairs)


def holds_state(worker: WorkerId, observed: Observed) -> bool:
    """It says that it holds a state of the training."""
    status = observed.status(worker)
    return status is not None and status.applied is not None and status.phase in (Phase.TRAINING, Phase.DONE)


def end_of(report: ProcessReport) -> str:
    code = report.exit_code
    if code is None:
        return "has ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def death_of(worker: WorkerId, observed: Observed) -> str:
    found = observed.report(worker)
    known = found is not None and found[0].state is ProcessState.EXITED
    return f"{worker} {end_of(found[0]) if found and known else 'is dead'}"


def leaves(worker: WorkerId, document: Document, observed: Observed) -> bool:
    status = observed.status(worker)
    return document.sends_away(worker) or (status is not None and status.leaving)


def reached_step(document: Document, observed: Observed) -> Step:
    """How far training has come, by all that was ever known: a new leader may not have heard of it yet.

    What a view that begins anew does before it is formed is no news: that is compared with what was reached before it.
    """
    if document.begins_anew:
        return document.reached
    members = {*document.formed_members, *(document.view.workers if document.view else ())}
    applied = [s.applied for w in members if (s := observed.status(w)) and s.applied is not None]
    return max([document.reached, *(Step(a + 1) for a in applied)])
