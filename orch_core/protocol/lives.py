"""Lives and deaths: what processes say about themselves, and what the document keeps of it.

Each place of a job is filled by one life after another. A later life proves the earlier one dead; an agent's word that
it has reaped a process does, too. Who died while it computed a shard is remembered: three in turn are poison.
"""

from collections.abc import Iterable
from dataclasses import replace

from orch_core.contracts.document import HAS_LEFT, RECOVERIES_KEPT, Death, Document, Failure, LifeState, Place
from orch_core.contracts.ids import Shard, Step, WorkerId, place_and_life, worker_order
from orch_core.contracts.status import Phase, ProcessState, WorkerStatus
from orch_core.protocol.evidence import Observed, death_of, end_of, leaves, reached_step
from orch_core.protocol.member import EVICTED

POISON_DEATHS = 3
DEATHS_KEPT = 32
GAVE_WAY = "evicted"  # how `Place.why` begins if the next life is no counted restart
REACHED_EVERY_S = 1.0  # progress is committed this often: what a new leader may miss of `lost_steps`


def take_in(document: Document, observed: Observed, wall: float) -> Document:
    """With what statuses say: lives, deaths, the first failure, what was asked for, progress and recoveries."""
    document = _bury(document, observed, wall)  # before a later life takes the place, which would only prove a death
    document = _lives(document, observed)
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
    reached = reached_step(document, observed)
    if reached > document.reached and wall - document.reached_at >= REACHED_EVERY_S:
        document = replace(document, reached=reached, reached_at=wall)
    return _recoveries(document, observed)


def _lives(document: Document, observed: Observed) -> Document:
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
    return code in (0, EVICTED) or place.why == HAS_LEFT or place.why.startswith(GAVE_WAY)


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
        expected = report.exit_code == 0 or was_sent_away(report.worker, document)
        kind = "exited" if expected else "died"
        document = document.told(wall, kind, f"{report.worker} {end_of(report)}", report.worker)
        if report.exit_code is not None and report.exit_code < 0 and report.note is not None:
            deaths.append(Death(report.worker, report.note.step, report.note.shard))
    relevant = _relevant(document)
    return replace(
        document,
        dead=tuple(w for w in dead if w in relevant),
        deaths=tuple(deaths[-DEATHS_KEPT:]),
        ended=tuple(ended),
    )


def was_sent_away(worker: WorkerId, document: Document) -> bool:
    """Told to leave before it was a member: whatever ends it then is no failure."""
    waits = (LifeState.STARTING, LifeState.READY)
    return document.sends_away(worker) and any(p.worker == worker and p.state in waits for p in document.places)


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
    return stop(document, asked, wall) if asked else document


def stop(document: Document, how: str, wall: float) -> Document:
    return replace(document, stop=how).told(wall, "stop", f"asked to end at the next step ({how})")


def _recoveries(document: Document, observed: Observed) -> Document:
    known = {r.view for r in document.recoveries}
    recoveries = list(document.recoveries)
    for worker in sorted(observed.workers, key=worker_order):
        recovery = observed.workers[worker].status.recovery
        if recovery is not None and recovery.view not in known and recovery.cause.is_failure:
            known.add(recovery.view)
            recoveries.append(recovery)
    return replace(document, recoveries=tuple(recoveries[-RECOVERIES_KEPT:]))


def places(document: Document, observed: Observed) -> tuple[Place, ...]:
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
        away = was_sent_away(place.worker, document)
        why = HAS_LEFT if away else death_of(place.worker, observed)
        if found is not None and found[0].exit_code == EVICTED:
            why = f"{GAVE_WAY}: {why}"  # its agent says so only until it has read this
        return replace(place, state=LifeState.GONE, why=why)
    if place.state in (LifeState.MEMBER, LifeState.LEAVING) and place.worker not in members:
        if not (place.state is LifeState.LEAVING or (status is not None and status.leaving)):
            return replace(place, state=LifeState.GONE, why=f"{GAVE_WAY} from the view")
        if document.view is not None and document.formed != document.view.number:
            return replace(place, state=LifeState.LEAVING)  # until it is sure that the others have the state
        return replace(place, state=LifeState.GONE, why=HAS_LEFT)
    if place.worker in members:
        goes = place.state is LifeState.LEAVING or leaves(place.worker, document, observed)
        state = LifeState.LEAVING if goes else LifeState.MEMBER
    elif status is not None and status.phase is Phase.READY:
        state = LifeState.READY
    else:
        state = LifeState.STARTING
    return replace(place, state=state, host=host, pid=pid, address=address)
