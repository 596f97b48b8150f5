"""What a person asks of a running job: another number of workers, a worker less, the word that one is dead.

Each order changes the document and says so in one sentence, or changes nothing because it is done already: a command
may arrive twice. What follows from it is `cluster.decide`'s and `children.plan`'s business.

===================  =================================================================================================
scale N              lives of the highest places leave; or the lowest empty places are wanted, drained ones included
drain W              this life leaves and its place stays empty: one worker less, until `scale` asks for more
drain W (replace)    this life leaves and a new one takes its place
evict W              it is certainly dead, whatever its agent says: no view waits for it, and its state counts as lost
===================  =================================================================================================
"""

from collections.abc import Mapping
from dataclasses import replace

from orch_core.contracts.document import Document, LifeState, Place
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import PlaceId, WorkerId, place_and_life, worker_order

Changed = tuple[Document, str]


def carry_out(document: Document, name: str, args: Mapping[str, str]) -> Changed | None:
    """The changed document and what to say; None if that is so already. Raises ConfigurationError."""
    if document.finished is not None or document.status.final:
        raise ConfigurationError(f"training is over: it is too late to {name}")
    if document.stop and name != "evict":
        raise ConfigurationError(f"the job ends after this step: it is too late to {name}")
    match name:
        case "scale":
            return _scale(document, args.get("workers", ""))
        case "drain":
            return _drain(document, args.get("worker", ""), replaced=args.get("replace") == "yes")
        case "evict":
            return _evict(document, args.get("worker", ""))
    raise ConfigurationError(f"{name!r} is no order")


def _scale(document: Document, text: str) -> Changed | None:
    try:
        wanted = int(text)
    except ValueError as error:
        raise ConfigurationError(f"scale to a number of workers, not to {text!r}") from error
    low, high = document.job.min_workers, document.job.max_workers
    if wanted < low:
        raise ConfigurationError(f"{wanted} is less than the job's --min-workers {low}")
    if wanted > high:
        raise ConfigurationError(f"{wanted} is more than the job's --max-workers {high}")
    if wanted == document.wanted:
        return None
    seats = list(document.seats)[:wanted]
    lowest = (PlaceId(f"w{i}") for i in range(wanted + len(seats)))
    seats += [place for place in lowest if place not in seats][: wanted - len(seats)]
    return _seated(document, seats), f"scaled from {document.wanted} to {wanted}"


def _drain(document: Document, worker: str, *, replaced: bool) -> Changed | None:
    place = _find(document, worker)
    if place is None or place.state is LifeState.GONE or document.sends_away(place.worker):
        return None
    if _is_last_holder(document, place.worker):
        raise ConfigurationError(f"{place.worker} is the only member that holds the state, so it cannot leave")
    if replaced:
        changed = replace(document, draining=(*document.draining, place.worker))
        return changed, f"{place.worker} is drained, and replaced"
    left, low = document.wanted - 1, document.job.min_workers
    if left < low:
        raise ConfigurationError(
            f"without {place.worker} there would be {left} workers, and the job's --min-workers is {low}; "
            "with --replace a new life takes its place"
        )
    return _seated(document, [s for s in document.seats if s != place.id]), f"{place.worker} is drained"


def _evict(document: Document, worker: str) -> Changed | None:
    place = _find(document, worker)
    if place is None or place.state is LifeState.GONE or place.worker in document.dead:
        return None
    return replace(document, dead=(*document.dead, place.worker)), f"{place.worker} is declared dead"


def _find(document: Document, name: str) -> Place | None:
    """The place whose life this is; None for a life that a later one has followed. Raises for what never was."""
    for place in document.places:
        if name in (place.id, place.worker):
            return place
        if _is_earlier(name, place):
            return None
    known = ", ".join(p.worker for p in document.places if p.state is not LifeState.GONE) or "none yet"
    raise ConfigurationError(f"there is no worker {name!r}; there are: {known}")


def _is_earlier(name: str, place: Place) -> bool:
    try:
        place_id, life = place_and_life(WorkerId(name))
    except ValueError:
        return False
    return place_id == place.id and 0 < life < place_and_life(place.worker)[1]


def _is_last_holder(document: Document, worker: WorkerId) -> bool:
    view = document.view
    present = () if view is None else view.workers
    holders = [w for w in document.formed_members if w in present and w not in document.dead]
    staying = [w for w in holders if not document.sends_away(w)]
    return worker in holders and staying in ([], [worker])


def _seated(document: Document, seats: list[PlaceId]) -> Document:
    """`seats`: the places that should be filled. Present lives of other places are told to leave by name, so that they
    go even if their place is wanted again before they have gone."""
    highest = max((_index(place) for place in seats), default=-1)
    drained = tuple(PlaceId(f"w{i}") for i in range(highest + 1) if f"w{i}" not in seats)
    leaving = [p.worker for p in document.places if p.id not in seats and p.state is not LifeState.GONE]
    draining = sorted({*document.draining, *leaving}, key=worker_order)
    return replace(document, wanted=len(seats), drained=drained, draining=tuple(draining))


def _index(place: PlaceId) -> int:
    return int(place[1:])
