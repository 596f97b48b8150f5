"""What a job came to: the summary, by one rule for ``orch run`` and for a job of one under plain Python. Pure."""

import json

from orch_core.contracts import codec
from orch_core.contracts.document import Document
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import Progress
from orch_core.contracts.summary import Summary, ViewSummary


def summarize(
    spec: JobSpec,
    document: Document | None,
    progress: Progress | None,
    status: JobStatus,
    started_at: float,
    ended_at: float,
) -> Summary:
    """The job as `--summary` tells it, however it ended. Times are Unix seconds."""
    document = document or Document(job=spec, started_at=started_at)
    progress = progress or Progress()
    finished = document.finished
    training = finished.training if finished else progress.training
    steps = finished.steps if finished else int(progress.step)
    samples = steps * training.batch_size if training else 0
    wanted = training.epochs * training.samples if training else 0
    through = training is not None and steps >= training.steps
    epochs = 0 if training is None else training.epochs if through else samples // max(1, training.samples)
    first_at = document.first_step_at
    last_at = next((e.at for e in reversed(document.events) if e.kind == "finished"), ended_at)
    trained_s = last_at - first_at if first_at is not None else 0.0
    return Summary(
        job=spec.name,
        status=status,
        steps=steps,
        epochs=epochs,
        samples=samples,
        fill=max(0, samples - wanted) if through else 0,
        shards=spec.shards,
        seed=spec.seed,
        bit_exact=finished.bit_exact if finished else True,
        weights_sha256=finished.weights_sha256 if finished else None,
        final=finished.final if finished else progress.means,
        wall_s=round(ended_at - started_at, 3),
        first_step_s=round(first_at - started_at, 3) if first_at is not None else None,
        steps_per_s=round((steps - 1) / trained_s, 3) if steps > 1 and trained_s > 0 else 0.0,
        lost_steps=document.lost_steps,
        views=tuple(
            ViewSummary(view.number, view.workers, view.reason, view.at_step, view.at_s) for view in document.views
        ),
        recoveries=document.recoveries,
        restarts=document.restarts,
        leader_changes=document.leader_changes,
    )


def summary_json(summary: Summary) -> bytes:
    """The summary as strict JSON for people and programs."""
    told = {"version": summary.version, **codec.to_json(summary)}
    return (json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
