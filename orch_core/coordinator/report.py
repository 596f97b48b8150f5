"""What `orch status --json` prints, as one replica sees it. Pure."""

from collections.abc import Sequence
from typing import Any

from orch_core.contracts import codec
from orch_core.contracts.consensus import ConsensusStatus
from orch_core.contracts.document import Document, LifeState, Place
from orch_core.contracts.job import CoordinatorAddress, JobFile
from orch_core.contracts.status import Progress, WorkerProgress

EVENTS_SHOWN = 10


def status_json(
    job: JobFile, pid: int, consensus: ConsensusStatus, document: Document | None, progress: Progress | None
) -> dict[str, Any]:
    """`progress` None: this replica does not lead, and what it shows may be old."""
    shown = _document(document) if document is not None else _nothing()
    live = _progress(progress) if progress is not None else {}
    return {
        "version": 1,
        "job": job.job,
        "by": consensus.id,
        **shown,
        **live,
        "leader": consensus.leader,
        "term": consensus.term,
        "quorum": consensus.quorum,
        "stale": progress is None or not consensus.quorum,
        "coordinators": [_coordinator(row, pid, consensus) for row in job.coordinators],
    }


def _coordinator(row: CoordinatorAddress, pid: int, consensus: ConsensusStatus) -> dict[str, Any]:
    """Each replica knows only itself for sure; who asks all of them puts the rows together."""
    if row.id == consensus.id:
        return {"id": row.id, "pid": pid, "address": row.address, "role": consensus.role}
    role = "leader" if row.id == consensus.leader else "unknown"
    return {"id": row.id, "pid": None, "address": row.address, "role": role}


def _nothing() -> dict[str, Any]:
    return {"status": "starting", "step": 0, "view": None, "workers": [], "checkpoints": [], "revision": 0}


def _document(document: Document) -> dict[str, Any]:
    view = document.view
    step = document.finished.steps if document.finished else view.at_step if view else 0
    return {
        "status": document.status.value,
        "step": step,
        "view": codec.to_json(view),
        "workers": [codec.to_json(_worker(place)) for place in document.filled],
        "checkpoints": list(document.checkpoints),
        "revision": document.revision,
        "started_at": document.started_at,
        "wanted": document.wanted,
        "min_workers": document.job.min_workers,
        "max_workers": document.job.max_workers,
        "formed": document.formed,
        "views": document.views_total,
        "restarts": document.restarts,
        "leader_changes": document.leader_changes,
        "lost_steps": document.lost_steps,
        "stop": document.stop,
        "finished": codec.to_json(document.finished),
        "failure": codec.to_json(document.failure),
        "events": codec.to_json(document.events[-EVENTS_SHOWN:]),
    }


def _progress(progress: Progress) -> dict[str, Any]:
    live = {
        name: codec.to_json(getattr(progress, name))
        for name in ("step", "epoch", "means", "samples_per_s", "steps_per_s", "first_step_at", "training")
    }
    return {**live, "workers": _rows(progress.workers)}


def _rows(workers: Sequence[WorkerProgress]) -> list[Any]:
    return [codec.to_json(worker) for worker in workers]


def _worker(place: Place) -> WorkerProgress:
    pid = None if place.state is LifeState.GONE else place.pid
    return WorkerProgress(place.worker, pid, place.host, place.state.value, shards=(), step=None)
