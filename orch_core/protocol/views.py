"""The next view: who stays, who goes and why, who joins; and when a view is formed.

The keep rule, on which no lost step rests:

* while a formed member of the present view lives, the next view keeps one;
* if all of them are certainly dead, it keeps one that says it holds the state, if any does;
* if none does, it keeps everybody who is not certainly dead (of a pair that cannot reach each other, one that has
  spoken in this view may go), and is *fresh*: it starts from State(0), a counted restart, unless a hello has a state.

Silence and unreachability evict only as far as that rule allows. A view is formed when each of its members was formed
before or has said, in this view, that it holds the state; and somebody has said so in it, for those who leave.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orch_core.contracts.document import VIEWS_KEPT, Cause, Document, LifeState, View, ViewMember
from orch_core.contracts.ids import BEFORE_FIRST_STEP, Step, ViewNumber, WorkerId, place_and_life, worker_order
from orch_core.contracts.job import JobStatus
from orch_core.contracts.status import Phase, WorkerStatus
from orch_core.protocol.evidence import (
    SILENCE_S,
    Observed,
    broken_pairs,
    death_of,
    doubtful_until,
    holds_state,
    is_stale,
    leaves,
    reached_step,
    silent_at,
)

START_PATIENCE_S = 10.0  # view 1 goes on without the rest, this long after the last worker became ready
BLAMELESS_S = 0.02  # a broken view with nobody to blame is replaced after this long; doubled each time in a row
BLAMELESS_MAX_S = 1.0


def next_view(document: Document, observed: Observed, now: float, wall: float) -> tuple[Document, float | None]:
    view = document.view
    ready = _ready(document, observed)
    if view is None:
        if document.stop:
            how = JobStatus.INTERRUPTED if document.stop == "interrupted" else JobStatus.STOPPED
            return replace(document, status=how), None
        return _start(document, ready, observed, now, wall, "the first view")
    change = _removals(document, view, observed, now)
    stay = [m for m in view.members if m.worker not in change.out]
    if not stay and document.stop:
        how = JobStatus.INTERRUPTED if document.stop == "interrupted" else JobStatus.STOPPED
        return replace(document, status=how), None
    if change.restart and (back := _on_their_way(document, view, observed)):
        stay = [*back, *stay]  # whoever in there is further will be heard, and they give way: see `_removals`
        change = replace(change, out={**change.out, **{m.worker: f"{m.worker} has not left yet" for m in back}})
    if not stay:
        return _start(document, ready, observed, now, wall, "every member is dead")
    room = document.wanted - sum(not leaves(m.worker, document, observed) for m in stay)
    joiners = ready[: max(0, room)]
    reasons = list(change.out.values())
    cause = change.cause
    if cause is None and joiners and document.formed == view.number:
        cause = Cause.JOIN
    if cause is None:
        return document, change.again
    reasons += [f"{m.worker} joins" for m in joiners]
    if cause is Cause.BROKEN:
        reasons.insert(0, "a link broke and nobody is to blame")
    members, joined = (*stay, *joiners), len(joiners)
    reason = "; ".join(reasons)
    return _install(document, members, cause, reason, observed, wall, fresh=change.restart, joined=joined), change.again


@dataclass(frozen=True, slots=True)
class _Change:
    """Members that stay, those who leave and why, and the most serious cause."""

    out: Mapping[WorkerId, str]
    cause: Cause | None
    restart: bool = False  # nobody is known to hold a state
    again: float | None = None


def _on_their_way(document: Document, view: View, observed: Observed) -> list[ViewMember]:
    """Who was left out and has not gone: the view without it is not formed, so it still has its state."""
    return [
        ViewMember(p.worker, s.address if (s := observed.status(p.worker)) else p.address)
        for p in document.places
        if p.state is LifeState.LEAVING and p.worker not in view.workers and p.worker not in document.dead
    ]


def _ready(document: Document, observed: Observed) -> list[ViewMember]:
    """Living workers that wait to be taken in, in the order of their places.

    Who follows is taken in once it is level: nobody waits for a state to be copied then. Where nobody goes on that it
    could follow, it is taken in as it is.
    """
    if document.ended or document.finished is not None:
        return []
    view = document.view
    present = view.workers if view else ()
    goes_on = sum(w not in document.dead for w in present) >= max(1, document.job.min_workers)
    waiting = (Phase.READY,) if goes_on else (Phase.READY, Phase.FOLLOWING)
    found = []
    for place in document.places:
        status = observed.status(place.worker)
        waits = status is not None and status.phase in waiting and not leaves(place.worker, document, observed)
        fine = place.worker not in document.dead and place.worker not in present and place.state is not LifeState.GONE
        if status is not None and waits and fine:
            found.append(ViewMember(place.worker, status.address))
    return found


def _start(
    document: Document, ready: list[ViewMember], observed: Observed, now: float, wall: float, reason: str
) -> tuple[Document, float | None]:
    """A view without a past: when all are ready, or enough of them and nobody new for a while."""
    if not ready:
        return document, None
    if len(ready) < document.wanted:
        patience = max(observed.workers[m.worker].phase_since for m in ready) + START_PATIENCE_S
        if now < patience or len(ready) < document.job.min_workers:
            return document, patience if now < patience else None
    first = document.view is None
    cause = Cause.START if first else Cause.RESTART
    members = tuple(ready[: document.wanted])
    return _install(document, members, cause, reason, observed, wall, fresh=True), None


def _has_successor(worker: WorkerId, document: Document) -> bool:
    """Whether a new life of its place follows. If all who hold the state leave, one waits for a new life that takes it
    over; and a place has one life at a time, so that must not be the one for whose next life it would wait."""
    return place_and_life(worker)[0] in document.seats


def _removals(document: Document, view: View, observed: Observed, now: float) -> _Change:
    """Who must leave the present view, and why: the keep rule at the top of this file."""
    out: dict[WorkerId, str] = {w: death_of(w, observed) for w in view.workers if w in document.dead}
    cause = Cause.DEATH if out else None
    living = [w for w in view.workers if w not in out]
    # In a view in which one that was leaving is back being a formed member proves nothing, until it is formed.
    leavers = {p.worker for p in document.places if p.state is LifeState.LEAVING}
    anew = document.begins_anew and not leavers.isdisjoint(living)
    keepers = {w for w in living if w in document.formed_members and not anew}
    restart = False
    if not keepers:
        keepers = _furthest({w for w in living if holds_state(w, observed)}, observed)
        if not keepers:
            restart, keepers = True, set(living)
    silent = [w for w in living if now >= silent_at(w, observed)]
    # Who has spoken in this view without a state has none. Who has not may hold the last one, or the newest, and stays.
    heard_in = {w for w in living if (s := observed.status(w)) and s.view == view.number}
    unheard = set(living) - heard_in if anew else set()
    kept_silent = set(silent) if restart or not keepers - set(silent) else set()
    for worker in silent:
        if worker not in kept_silent | unheard:
            out[worker] = f"{worker} was silent for {SILENCE_S:.0f} s"
            cause = cause or Cause.SILENCE
    keepers -= set(out)
    pairs, judged_at = _ripe(
        {p for p in broken_pairs(view, observed, out) if not p & (kept_silent | unheard)}, observed, now
    )
    may_go = heard_in if restart else set(living)
    for loser, reason in _pair_losers(pairs, view, keepers, may_go, observed, now):
        out[loser] = reason
        keepers.discard(loser)
        cause = cause or Cause.UNREACHABLE
    replaced = {w for w in keepers if leaves(w, document, observed) and _has_successor(w, document)}
    for worker in () if restart or anew else living:
        status = observed.status(worker)
        others = keepers - {worker} - (set() if worker in replaced else replaced)
        if worker not in out and status is not None and status.leaving and others:
            out[worker] = f"{worker} leaves"
            keepers.discard(worker)
            cause = cause or Cause.LEAVE
    again = min((silent_at(w, observed) for w in living if w not in out and w not in silent), default=None)
    again = min((t for t in (again, judged_at) if t is not None), default=None)
    if cause is None:
        cause, blameless = _blameless(document, view, observed, now)
        again = min((t for t in (again, blameless) if t is not None), default=None)
    return _Change(out, cause, restart and cause is not None, again)


def _furthest(holders: set[WorkerId], observed: Observed) -> set[WorkerId]:
    """Those of them that are at most one step behind the most advanced."""
    applied = {w: s.applied for w in holders if (s := observed.status(w)) and s.applied is not None}
    return {w for w, step in applied.items() if step >= max(applied.values()) - 1}


def _ripe(
    pairs: set[frozenset[WorkerId]], observed: Observed, now: float
) -> tuple[set[frozenset[WorkerId]], float | None]:
    """The pairs that can be judged now, and when to look at the others.

    Who has just missed a heartbeat gets the time to become stale or to speak: a judge that was stalled itself hears the
    accuser's newest word first, and would send the healthy one away. Who was away and is back gets the time to be
    greeted: what is said of it is from when it was away.
    """
    waits = {w: t for pair in pairs for w in pair if (t := doubtful_until(w, observed, now)) is not None}
    return {p for p in pairs if not p & waits.keys()}, min(waits.values(), default=None)


def _pair_losers(
    pairs: set[frozenset[WorkerId]],
    view: View,
    keepers: set[WorkerId],
    may_go: set[WorkerId],
    observed: Observed,
    now: float,
) -> Iterable[tuple[WorkerId, str]]:
    """One of each pair that cannot reach each other: the stopped or stale one, then the one in most broken pairs,
    then the shortest membership. One whose loss leaves no keeper stays, and the next in order goes; unless the one that
    stays is stale: then its pairs wait until it speaks or is silent, for nothing is gained while it does not answer."""
    seniority = {w: i for i, w in enumerate(view.workers)}
    keepers = set(keepers)
    pairs = {p for p in pairs if not any(is_stale(w, observed, now) and not keepers - {w} for w in p)}
    while pairs:
        involved = {w for pair in pairs for w in pair}
        order = sorted(
            involved,
            key=lambda w: (not is_stale(w, observed, now), -sum(w in p for p in pairs), -seniority[w]),
        )
        loser = next((w for w in order if w in may_go and keepers - {w}), None)
        if loser is None:
            return
        others = sorted({w for p in pairs if loser in p for w in p} - {loser}, key=worker_order)
        keepers.discard(loser)
        pairs = {p for p in pairs if loser not in p}
        yield loser, f"{loser} and {', '.join(others)} cannot reach each other"


def _blameless(document: Document, view: View, observed: Observed, now: float) -> tuple[Cause | None, float | None]:
    """A view that broke without anybody to blame is replaced by one with the same members, ever more patiently."""
    since = [
        heard.broken_since
        for w in view.workers
        if (heard := observed.workers.get(w)) and heard.status.broken == view.number and heard.broken_since is not None
    ]
    if not since:
        return None, None
    in_a_row = 0
    for earlier in reversed(document.views):
        if earlier.cause is not Cause.BROKEN or earlier.at_step != view.at_step:
            break
        in_a_row += 1
    due = min(since) + min(BLAMELESS_S * 2**in_a_row, BLAMELESS_MAX_S)
    return (Cause.BROKEN, None) if now >= due else (None, due)


def _install(
    document: Document,
    members: tuple[ViewMember, ...],
    cause: Cause,
    reason: str,
    observed: Observed,
    wall: float,
    *,
    fresh: bool,
    joined: int = 0,
) -> Document:
    number = ViewNumber(document.view.number + 1 if document.view else 1)
    step = reached_step(document, observed)
    workers = tuple(m.worker for m in members)
    origin = workers if number == 1 else () if fresh else document.view.origin if document.view else ()
    view = View(
        number=number,
        members=members,
        cause=Cause.RESTART if fresh and number > 1 else cause,
        reason=reason,
        at_step=step,
        at_s=round(wall - document.started_at, 3),
        fresh=fresh,
        origin=origin,
        joined=joined,
    )
    document = replace(
        document,
        views=(*document.views, view)[-VIEWS_KEPT:],
        views_total=document.views_total + 1,
        reached=step,
    )
    text = f"view {number}: {', '.join(workers)} ({reason})"
    return document.told(wall, "view", text, view=number, step=step)


def form(document: Document, observed: Observed, wall: float) -> Document:
    view = document.view
    if view is None or document.formed == view.number:
        return document
    statuses = {w: observed.status(w) for w in view.workers}
    first = view.number == 1
    if not first and not any(s is not None and s.opened == view.number for s in statuses.values()):
        return document  # who leaves waits for somebody's word that the others have the state
    for worker in view.workers:
        status = statuses[worker]
        reported = status is not None and status.opened == view.number
        if not (first or reported or (not view.fresh and worker in document.formed_members)):
            return document
    lost, reached = 0, document.reached
    if view.fresh and not first:
        begins = min((_begins(s, view) for s in statuses.values() if s is not None), default=Step(0))
        lost, reached = max(0, reached - begins), begins
    document = replace(
        document,
        formed=view.number,
        formed_members=view.workers,
        lost_steps=document.lost_steps + lost,
        reached=reached,
    )
    if lost:
        text = f"every worker that held the state is dead: {lost} steps are lost and computed again"
        document = document.told(wall, "lost", text, view=view.number)
    return document.told(wall, "formed", f"view {view.number} is formed", view=view.number)


def _begins(status: WorkerStatus, view: View) -> Step:
    """The step with which a member has begun a view; what it has applied since then, if it does not say."""
    if status.opened == view.number and status.opened_step is not None:
        return status.opened_step
    return Step((BEFORE_FIRST_STEP if status.applied is None else status.applied) + 1)
