"""``decide``: the one pure function that turns what the leader has heard into the next document.

It runs on every status and every deadline, and each run is a short chain of rules:

1. take in what processes say about themselves (``lives.take_in``);
2. a failure ends the job, and so does the common end of training (``_finish``);
3. otherwise the present view stays, or is replaced by number + 1 with a reason (``views.next_view``);
4. a view whose members all hold the state is formed (``views.form``).

What makes it safe is one invariant: *a view keeps a member of the formed one, or is a counted restart after certain
death.* Ids never return, so that member has been in every view since, and a step is applied only with everybody's
barrier part: nobody outside can be further.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orch_core.contracts.document import Document, Failure, LifeState, Place
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import Step, Term, WorkerId
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import Phase, ProcessState, Progress, WorkerProgress, WorkerStatus
from orch_core.protocol import orders
from orch_core.protocol.evidence import Heard, Observed, hear
from orch_core.protocol.lives import places, stop, take_in
from orch_core.protocol.views import form, next_view

__all__ = ["Decision", "Heard", "Observed", "command", "decide", "first_document", "hear", "progress", "took_over"]


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
    return _bump(document, changed.told(wall, "leader", f"a new leader has taken over in term {term}"))


def command(document: Document, name: str, args: Mapping[str, str], wall: float) -> Document:
    """What a person asked for. Raises ConfigurationError for what makes no sense; carried out twice it is done once."""
    match name:
        case "stop":
            how = args.get("how", "stopped")
            return document if document.stop else _bump(document, stop(document, how, wall))
        case "scale" | "drain" | "evict":
            changed = orders.carry_out(document, name, args)
            if changed is None:
                return document
            new, text = changed
            return _bump(document, new.told(wall, name, text))
    raise ConfigurationError(f"{name!r} is no command of this job")


def decide(document: Document, observed: Observed, now: float, wall: float) -> Decision:
    """The next document, if there is a reason for one. `now`: the judge's clock, `wall`: Unix time; seconds."""
    if document.status.final:
        return Decision(None)
    new = take_in(document, observed, wall)
    again: float | None = None
    if new.failure is not None:
        new = replace(new, status=JobStatus.FAILED).told(wall, "failed", new.failure.message, new.failure.worker)
    elif new.finished is not None or _all_done(new, observed):
        new = _finish(new, observed, wall)
    else:
        new, again = next_view(new, observed, now, wall)
        new = form(new, observed, wall)
        new = _disagreement(new, observed)
    new = replace(new, status=_status(new), places=places(new, observed))
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
        document = replace(document, finished=result).told(
            wall,
            "finished",
            f"training ended after {result.steps} steps",
        )
    if document.finished is not None and not document.ended and all(w in document.dead for w in view.workers):
        # Nobody holds the end any more; who runs has started too late for it.
        steps = document.finished.steps
        again = replace(document, finished=None, end_at=steps)
        return again.told(wall, "restart", f"every worker died after the end: trains again, exactly {steps} steps")
    running = {r.worker for r, _ in observed.reports() if r.state is not ProcessState.EXITED}
    if running or not document.ended or not any(True for _ in observed.reports()):
        return document
    how = {"interrupted": JobStatus.INTERRUPTED, "stopped": JobStatus.STOPPED}.get(document.stop, JobStatus.FINISHED)
    return replace(document, status=how).told(wall, "ended", f"the job is {how}")


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


def _status(document: Document) -> JobStatus:
    if document.status.final:
        return document.status
    view = document.view
    if view is None:
        return JobStatus.STARTING
    living = [w for w in view.workers if w not in document.dead]
    return JobStatus.RUNNING if len(living) >= max(1, document.job.min_workers) else JobStatus.WAITING


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
        pass_ms=0.0 if status is None or gone else status.pass_ms,
    )


def _bump(old: Document, new: Document) -> Document:
    return replace(new, revision=old.revision + 1)
