"""``decide``: the one pure function that turns what the leader has heard into the next document.

It runs on every status and every deadline, and each run is a short chain of rules, top to bottom:

1. take in what processes say about themselves: lives, deaths, failures, results (``_take_in``);
2. a failure ends the job, and so does the common end of training (``_finish``);
3. otherwise the present view stays, or is replaced by number + 1 with a reason (``_next_view``);
4. a view whose members all hold the state is formed (``_form``).

What makes it safe is one invariant: *a view keeps a member of the formed one, or is a counted restart after certain
death.* Ids never return, so that member has been in every view since, and a step is applied only with everybody's
barrier part: nobody outside can be further.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orch_core.contracts.document import (
    EVENTS_KEPT,
    HAS_LEFT,
    RECOVERIES_KEPT,
    VIEWS_KEPT,
    Cause,
    Death,
    Document,
    Event,
    Failure,
    LifeState,
    Place,
    View,
    ViewMember,
)
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import (
    BEFORE_FIRST_STEP,
    Shard,
    Step,
    Term,
    ViewNumber,
    WorkerId,
    place_and_life,
    worker_order,
)
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import Phase, ProcessReport, ProcessState, Progress, WorkerProgress, WorkerStatus
from orch_core.protocol import orders
from orch_core.protocol.evidence import (
    SILENCE_S,
    Heard,
    Observed,
    broken_pairs,
    doubtful_until,
    hear,
    holds_state,
    is_stale,
    silent_at,
)
from orch_core.protocol.member import EVICTED

__all__ = ["Decision", "Heard", "Observed", "command", "decide", "first_document", "hear", "progress", "took_over"]

START_PATIENCE_S = 10.0  # view 1 goes on without the rest, this long after the last worker became ready
BLAMELESS_S = 0.02  # a broken view with nobody to blame is replaced after this long; doubled each time in a row
BLAMELESS_MAX_S = 1.0
POISON_DEATHS = 3
REACHED_EVERY_S = 1.0  # progress is committed this often: what a new leader may miss of `lost_steps`
DEATHS_KEPT = 32


@dataclass(frozen=True, slots=True)
class Decision:
    """A new document to commit, or nothing; and when to look again even if nothing is heard."""

    document: Document | None
    look_again_at: float | None = None


def first_document(spec: JobSpec, wall: float) -> Document:
    """The document of a job that has just been started."""
    return Document(job=spec, started_at=wall, wanted=spec.workers)


def took_over(document: Document, term: Term, wall: float) -> Document:
    """The first thing a new leader writes."""
    if document.term == 0:
        return replace(document, term=term, revision=document.revision + 1)
    changed = replace(document, term=term, leader_changes=document.leader_changes + 1)
    return _bump(document, _say(changed, wall, "leader", f"a new leader has taken over in term {term}"))


def command(document: Document, name: str, args: Mapping[str, str], wall: float) -> Document:
    """What a person asked for. Raises ConfigurationError for what makes no sense; carried out twice it is done once."""
    match name:
        case "stop":
            how = args.get("how", "stopped")
            return document if document.stop else _bump(document, _stop(document, how, wall))
        case "scale" | "drain" | "evict":
            changed = orders.carry_out(document, name, args)
            if changed is None:
                return document
            new, text = changed
            return _bump(document, _say(new, wall, name, text))
    raise ConfigurationError(f"{name!r} is no command of this job")


def decide(document: Document, observed: Observed, now: float, wall: float) -> Decision:
    """The next document, if there is a reason for one. `now`: the judge's clock, `wall`: Unix time; seconds."""
    if document.status.final:
        return Decision(None)
    new = _take_in(document, observed, wall)
    again: float | None = None
    if new.failure is not None:
        new = _say(replace(new, status=JobStatus.FAILED), wall, "failed", new.failure.message, new.failure.worker)
    elif new.finished is not None or _all_done(new, observed):
        new = _finish(new, observed, wall)
    else:
        new, again = _next_view(new, observed, now, wall)
        new = _form(new, observed, wall)
        new = _disagreement(new, observed)
    new = replace(new, status=_status(new), places=_places(new, observed))
    gone = {p.worker for p in new.places if p.state is LifeState.GONE}
    new = replace(new, draining=tuple(w for w in new.draining if w not in gone))
    return Decision(_bump(document, new) if new != document else None, again)


def progress(document: Document, observed: Observed) -> Progress:
    """What is worth showing and not worth a commit."""
    statuses = [h.status for w, h in observed.workers.items() if w not in document.dead]
    members = document.view.workers if document.view else ()
    ahead = max(
        (s for s in statuses if s.applied is not None), key=lambda s: (s.applied, s.worker in members), default=None
    )
    step = Step(ahead.applied + 1) if ahead is not None and ahead.applied is not None else Step(0)
    if document.finished is not None:
        step = Step(document.finished.steps)
    by_worker = {s.worker: s for s in statuses}
    return Progress(
        step=step,
        epoch=ahead.epoch if ahead else 0,
        means=ahead.means if ahead else {},
        samples_per_s=ahead.samples_per_s if ahead else 0.0,
        steps_per_s=ahead.steps_per_s if ahead else 0.0,
        first_step_at=document.first_step_at,
        workers=tuple(_worker_progress(p, by_worker.get(p.worker)) for p in document.filled),
        training=next((s.training for s in statuses if s.training is not None), None),
    )


# ---------------------------------------------------------------- 1. what processes say about themselves


def _take_in(document: Document, observed: Observed, wall: float) -> Document:
    document = _bury(document, observed, wall)  # before a later life takes the place, which would only prove a death
    document = _lives(document, observed, wall)
    document = _bury(document, observed, wall)
    document = _asked_to_stop(document, observed, wall)
    if document.failure is None:
        failures = [r.failure for r, _ in observed.reports() if r.failure]
        failures += [h.status.failure for h in observed.workers.values() if h.status.failure]
        failures += [h.status.failure for h in observed.agents.values() if h.status.failure]
        failures += list(_poison(document))
        if failures:
            document = replace(document, failure=min(failures, key=lambda f: f.at))
    if document.first_step_at is None:
        firsts = [h.status.first_step_at for h in observed.workers.values() if h.status.first_step_at is not None]
        document = replace(document, first_step_at=min(firsts, default=None))
    reached = _reached(document, observed)
    if reached > document.reached and wall - document.reached_at >= REACHED_EVERY_S:
        document = replace(document, reached=reached, reached_at=wall)
    return _recoveries(document, observed)


def _lives(document: Document, observed: Observed, wall: float) -> Document:
    """The newest life of each place; it proves the earlier ones dead."""
    newest = {p.id: p for p in document.places}
    dead, restarts = list(document.dead), document.restarts
    seen = [h.status.worker for h in observed.workers.values()] + [r.worker for r, _ in observed.reports()]
    for worker in sorted(set(seen), key=worker_order):
        place, life = place_and_life(worker)
        known = newest.get(place)
        if known is not None and place_and_life(known.worker)[1] >= life:
            continue
        if known is not None:
            if known.worker not in dead and known.worker in _relevant(document):
                dead.append(known.worker)
            restarts += not _uncounted(known, observed)
        newest[place] = Place(place, worker, LifeState.STARTING)
    places = tuple(sorted(newest.values(), key=lambda p: worker_order(p.worker)))
    return replace(document, places=places, dead=tuple(dead), restarts=restarts)


def _uncounted(place: Place, observed: Observed) -> bool:
    found = observed.report(place.worker)
    code = found[0].exit_code if found else None
    return code in (0, EVICTED) or place.why == HAS_LEFT or place.why.startswith("evicted")


def _relevant(document: Document) -> set[WorkerId]:
    """Whose death still matters: members of the formed and of the present view, and present lives."""
    view = document.view
    return {*document.formed_members, *(view.workers if view else ()), *(p.worker for p in document.places)}


def _bury(document: Document, observed: Observed, wall: float) -> Document:
    """Deaths, on an agent's word."""
    dead, deaths, ended = list(document.dead), list(document.deaths), list(document.ended)
    for report, _ in observed.reports():
        if report.state is not ProcessState.EXITED or report.worker in ended:
            continue
        members = document.view.workers if document.view is not None else ()
        if report.exit_code == 0 and document.finished is not None and report.worker in members:
            ended.append(report.worker)  # others never had the end
        if report.worker in dead or report.worker not in _relevant(document):
            continue
        dead.append(report.worker)
        expected = report.exit_code == 0 or _was_sent_away(report.worker, document)
        kind = "exited" if expected else "died"
        document = _say(document, wall, kind, f"{report.worker} {_end_of(report)}", report.worker)
        if report.exit_code is not None and report.exit_code < 0 and report.note is not None:
            deaths.append(Death(report.worker, report.note.step, report.note.shard))
    relevant = _relevant(document)
    return replace(
        document,
        dead=tuple(w for w in dead if w in relevant),
        deaths=tuple(deaths[-DEATHS_KEPT:]),
        ended=tuple(ended),
    )


def _was_sent_away(worker: WorkerId, document: Document) -> bool:
    """Told to leave before it was a member: whatever ends it then is no failure."""
    waits = (LifeState.STARTING, LifeState.READY)
    return document.sends_away(worker) and any(p.worker == worker and p.state in waits for p in document.places)


def _end_of(report: ProcessReport) -> str:
    code = report.exit_code
    if code is None:
        return "has ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _poison(document: Document) -> Iterable[Failure]:
    by_shard: dict[tuple[Step, Shard], list[WorkerId]] = {}
    for death in document.deaths:
        by_shard.setdefault((death.step, death.shard), []).append(death.worker)
    for (step, shard), workers in by_shard.items():
        if len(workers) >= POISON_DEATHS:
            yield Failure(
                worker=workers[-1],
                kind="poison",
                message=(
                    f"shard {shard} of step {step} has killed {len(workers)} workers in turn ({', '.join(workers)}): "
                    "look at its samples and at the memory that they need"
                ),
                step=step,
                shard=shard,
            )


def _asked_to_stop(document: Document, observed: Observed, wall: float) -> Document:
    if document.stop:
        return document
    asked = next((h.status.stop for h in observed.agents.values() if h.status.stop), "")
    return _stop(document, asked, wall) if asked else document


def _stop(document: Document, how: str, wall: float) -> Document:
    return _say(replace(document, stop=how), wall, "stop", f"asked to end at the next step ({how})")


def _recoveries(document: Document, observed: Observed) -> Document:
    known = {r.view for r in document.recoveries}
    recoveries = list(document.recoveries)
    for worker in sorted(observed.workers, key=worker_order):
        recovery = observed.workers[worker].status.recovery
        if recovery is not None and recovery.view not in known and recovery.cause.is_failure:
            known.add(recovery.view)
            recoveries.append(recovery)
    return replace(document, recoveries=tuple(recoveries[-RECOVERIES_KEPT:]))


# ---------------------------------------------------------------- 2. the end


def _all_done(document: Document, observed: Observed) -> bool:
    """Every member of the present view has left its last step."""
    view = document.view
    if view is None or any(w in document.dead for w in view.workers):
        return False
    done = [s.done if (s := observed.status(w)) and s.phase is Phase.DONE else None for w in view.workers]
    steps = {d.steps if d else None for d in done}
    return None not in steps and len(steps) == 1


def _finish(document: Document, observed: Observed, wall: float) -> Document:
    view = document.view
    assert view is not None
    if document.finished is None:
        statuses = [s for w in view.workers if (s := observed.status(w)) is not None]
        results = {s.worker: s.done for s in statuses if s.done is not None}
        first, result = next(iter(results.items()))
        for worker, other in results.items():
            if other.digest != result.digest:
                return _drifted(document, first, worker, Step(result.steps), wall)
        document = _say(
            replace(document, finished=result),
            wall,
            "finished",
            f"training ended after {result.steps} steps",
        )
    if document.finished is not None and not document.ended and all(w in document.dead for w in view.workers):
        # Nobody holds the end any more; who runs has started too late for it.
        steps = document.finished.steps
        again = replace(document, finished=None, end_at=steps)
        return _say(again, wall, "restart", f"every worker died after the end: trains again, exactly {steps} steps")
    running = {r.worker for r, _ in observed.reports() if r.state is not ProcessState.EXITED}
    if running or not document.ended or not any(True for _ in observed.reports()):
        return document
    how = {"interrupted": JobStatus.INTERRUPTED, "stopped": JobStatus.STOPPED}.get(document.stop, JobStatus.FINISHED)
    return _say(replace(document, status=how), wall, "ended", f"the job is {how}")


def _drifted(document: Document, one: WorkerId, other: WorkerId, step: Step, wall: float) -> Document:
    failure = Failure(
        worker=other,
        kind="drift",
        message=(
            f"{one} and {other} ended with different states after step {step - 1}: a decision by local loss, clock or "
            "counter makes workers differ; run with --check-every 1 to find the first step and tensor"
        ),
        step=step,
        at=wall,
    )
    return replace(document, failure=failure, status=JobStatus.FAILED)


def _disagreement(document: Document, observed: Observed) -> Document:
    """One member left the outer loop, another is inside the next step: they would wait for each other for ever."""
    view = document.view
    if view is None or document.failure is not None:
        return document
    statuses = [s for w in view.workers if (s := observed.status(w)) and w not in document.dead]
    for gone in statuses:
        if gone.left is None:
            continue
        for other in statuses:
            if other.entered is not None and other.entered == gone.left + 1 and other.left is None:
                message = (
                    f"{gone.worker} left the loop over batches after step {gone.left}, but {other.worker} went on: "
                    "decide by run.step, batch.means or kept objects, equal on all workers, or call run.stop()"
                )
                failure = Failure(gone.worker, "configuration", message, step=gone.left, exit_code=2)
                return replace(document, failure=failure, status=JobStatus.FAILED)
    return document


# ---------------------------------------------------------------- 3. views


@dataclass(frozen=True, slots=True)
class _Change:
    """Members that stay, those who leave and why, and the most serious cause."""

    out: Mapping[WorkerId, str]
    cause: Cause | None
    restart: bool = False  # nobody is known to hold a state
    again: float | None = None


def _next_view(document: Document, observed: Observed, now: float, wall: float) -> tuple[Document, float | None]:
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
    room = document.wanted - sum(not _leaves(m.worker, document, observed) for m in stay)
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
    members = (*stay, *joiners)
    return _install(document, members, cause, "; ".join(reasons), observed, wall, fresh=change.restart), change.again


def _leaves(worker: WorkerId, document: Document, observed: Observed) -> bool:
    status = observed.status(worker)
    return document.sends_away(worker) or (status is not None and status.leaving)


def _on_their_way(document: Document, view: View, observed: Observed) -> list[ViewMember]:
    """Who was left out and has not gone: the view without it is not formed, so it still has its state."""
    return [
        ViewMember(p.worker, s.address if (s := observed.status(p.worker)) else p.address)
        for p in document.places
        if p.state is LifeState.LEAVING and p.worker not in view.workers and p.worker not in document.dead
    ]


def _ready(document: Document, observed: Observed) -> list[ViewMember]:
    """Living workers that wait to be taken in, in the order of their places."""
    if document.ended or document.finished is not None:
        return []
    present = document.view.workers if document.view else ()
    found = []
    for place in document.places:
        status = observed.status(place.worker)
        waits = status is not None and status.phase is Phase.READY and not _leaves(place.worker, document, observed)
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


def _removals(document: Document, view: View, observed: Observed, now: float) -> _Change:
    """Who must leave the present view, and why: the keep rule at the top of this file."""
    out: dict[WorkerId, str] = {w: _death_of(w, observed) for w in view.workers if w in document.dead}
    cause = Cause.DEATH if out else None
    living = [w for w in view.workers if w not in out]
    # In a view in which one that was leaving is back being a formed member proves nothing, until it is formed.
    leavers = {p.worker for p in document.places if p.state is LifeState.LEAVING}
    anew = view.fresh and document.formed != view.number and not leavers.isdisjoint(living)
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
    for worker in () if restart or anew else living:
        status = observed.status(worker)
        if worker not in out and status is not None and status.leaving and keepers - {worker}:
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


def _death_of(worker: WorkerId, observed: Observed) -> str:
    found = observed.report(worker)
    known = found is not None and found[0].state is ProcessState.EXITED
    return f"{worker} {_end_of(found[0]) if found and known else 'is dead'}"


def _ripe(
    pairs: set[frozenset[WorkerId]], observed: Observed, now: float
) -> tuple[set[frozenset[WorkerId]], float | None]:
    """The pairs that can be judged now, and when to look at the others.

    Who has just missed a heartbeat gets the time to become stale or to speak: a judge that was stalled itself hears the
    accuser's newest word first, and would send the healthy one away.
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
    then the shortest membership. One whose loss leaves no keeper stays, and the next in order goes."""
    seniority = {w: i for i, w in enumerate(view.workers)}
    keepers = set(keepers)
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
) -> Document:
    number = ViewNumber(document.view.number + 1 if document.view else 1)
    step = _reached(document, observed)
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
    )
    document = replace(
        document,
        views=(*document.views, view)[-VIEWS_KEPT:],
        views_total=document.views_total + 1,
        reached=step,
    )
    text = f"view {number}: {', '.join(workers)} ({reason})"
    return _say(document, wall, "view", text, view=number, step=step)


def _reached(document: Document, observed: Observed) -> Step:
    """How far training has come, by all that was ever known: a new leader may not have heard of it yet."""
    members = {*document.formed_members, *(document.view.workers if document.view else ())}
    applied = [s.applied for w in members if (s := observed.status(w)) and s.applied is not None]
    return max([document.reached, *(Step(a + 1) for a in applied)])


# ---------------------------------------------------------------- 4. formed


def _form(document: Document, observed: Observed, wall: float) -> Document:
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
        document = _say(document, wall, "lost", text, view=view.number)
    return _say(document, wall, "formed", f"view {view.number} is formed", view=view.number)


def _begins(status: WorkerStatus, view: View) -> Step:
    """The step with which a member has begun a view; what it has applied since then, if it does not say."""
    if status.opened == view.number and status.opened_step is not None:
        return status.opened_step
    return Step((BEFORE_FIRST_STEP if status.applied is None else status.applied) + 1)


# ---------------------------------------------------------------- what follows from the rest


def _status(document: Document) -> JobStatus:
    if document.status.final:
        return document.status
    view = document.view
    if view is None:
        return JobStatus.STARTING
    living = [w for w in view.workers if w not in document.dead]
    return JobStatus.RUNNING if len(living) >= max(1, document.job.min_workers) else JobStatus.WAITING


def _places(document: Document, observed: Observed) -> tuple[Place, ...]:
    view = document.view
    members = view.workers if view else ()
    return tuple(_place(p, document, members, observed.status(p.worker), observed) for p in document.places)


def _place(
    place: Place, document: Document, members: tuple[WorkerId, ...], status: WorkerStatus | None, observed: Observed
) -> Place:
    found = observed.report(place.worker)
    host, address = (status.host, status.address) if status else (place.host, place.address)
    pid = status.pid if status else found[0].pid if found else place.pid
    if place.state is LifeState.GONE:
        return place
    if place.worker in document.dead:
        away = _was_sent_away(place.worker, document)
        return replace(place, state=LifeState.GONE, why=HAS_LEFT if away else _death_of(place.worker, observed))
    if place.state in (LifeState.MEMBER, LifeState.LEAVING) and place.worker not in members:
        if not (place.state is LifeState.LEAVING or (status is not None and status.leaving)):
            return replace(place, state=LifeState.GONE, why="evicted from the view")
        if document.view is not None and document.formed != document.view.number:
            return replace(place, state=LifeState.LEAVING)  # until it is sure that the others have the state
        return replace(place, state=LifeState.GONE, why=HAS_LEFT)
    if place.worker in members:
        leaves = place.state is LifeState.LEAVING or _leaves(place.worker, document, observed)
        state = LifeState.LEAVING if leaves else LifeState.MEMBER
    elif status is not None and status.phase is Phase.READY:
        state = LifeState.READY
    else:
        state = LifeState.STARTING
    return replace(place, state=state, host=host, pid=pid, address=address)


def _worker_progress(place: Place, status: WorkerStatus | None) -> WorkerProgress:
    step = None if status is None or status.applied is None else Step(status.applied + 1)
    doing = status.doing if status else "starting"
    if status is not None and status.computing is not None:
        doing = f"in shard {status.computing} of step {status.entered}"
    if place.state is LifeState.LEAVING:
        doing = "leaves when another member holds the state"
    gone = place.state is LifeState.GONE
    return WorkerProgress(
        id=place.worker,
        pid=None if gone else place.pid,  # by now it may be somebody else's
        host=place.host,
        state=place.state.value,
        shards=status.shards if status and not gone else (),
        step=step,
        doing=place.why if gone else doing,
    )


def _say(
    document: Document,
    wall: float,
    kind: str,
    text: str,
    worker: WorkerId | None = None,
    view: ViewNumber | None = None,
    step: Step | None = None,
) -> Document:
    events = (*document.events, Event(wall, kind, text, worker, view, step))[-EVENTS_KEPT:]
    return replace(document, events=events, events_total=document.events_total + 1)


def _bump(old: Document, new: Document) -> Document:
    return replace(new, revision=old.revision + 1)
