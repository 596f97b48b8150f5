"""A job of one, under plain ``python train.py``: the same engine, and a summary of its own."""

import os
import time
from pathlib import Path

from orch_core.contracts import codec
from orch_core.contracts.document import Cause, Finished, View, ViewMember
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import Step, ViewNumber
from orch_core.contracts.job import JobStatus
from orch_core.contracts.summary import Summary, ViewSummary
from orch_core.protocol.deal import Position
from orch_core.protocol.member import make_plan
from orch_core.worker.handover import Handover, Offer
from orch_core.worker.setting import Setting

REASON = "a job of one"


def handover_alone(setting: Setting) -> Handover:
    """A plan that is never replaced, and an end that needs nobody's word."""
    me = setting.worker
    view = View(
        number=ViewNumber(1),
        members=(ViewMember(me, ""),),
        cause=Cause.START,
        reason=REASON,
        at_step=Step(0),
        at_s=0.0,
        fresh=True,
        origin=(me,),
    )
    plan = make_plan(view, me, {me: Position()}, setting.spec.shards)
    assert plan is not None
    handover = Handover(setting.spec.shards)

    def end_if_done() -> None:
        if handover.read()[1].done is not None:
            handover.end()

    handover.wake = end_if_done
    handover.hear(job_runs=False)
    handover.offer(Offer(plan))
    return handover


class SummaryFile:
    """Written when training ends, or when the process does."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._began = time.time()
        self._written = False

    def check(self) -> None:
        """Raise ConfigurationError now rather than after hours of training."""
        path = self._setting.summary
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigurationError(f"ORCH_SUMMARY is {path}: there is no folder {path.absolute().parent}")

    def write(self, status: JobStatus, finished: Finished | None, first_step_at: float | None) -> None:
        path, spec = self._setting.summary, self._setting.spec
        if path is None or self._written:
            return
        self._written = True
        now = time.time()
        steps = finished.steps if finished is not None else 0
        training = finished.training if finished is not None else None
        samples = steps * training.batch_size if training is not None else 0
        since = now - first_step_at if first_step_at is not None else 0.0
        fill = max(0, samples - training.epochs * training.samples) if training is not None else 0
        summary = Summary(
            job=spec.name,
            status=status,
            steps=steps,
            epochs=training.epochs if training is not None else 0,
            samples=samples,
            fill=fill,
            shards=spec.shards,
            seed=spec.seed,
            bit_exact=finished.bit_exact if finished is not None else True,
            weights_sha256=finished.weights_sha256 if finished is not None else None,
            final=dict(finished.final) if finished is not None else {},
            wall_s=round(now - self._began, 3),
            first_step_s=None if first_step_at is None else round(first_step_at - self._began, 3),
            steps_per_s=round((steps - 1) / since, 3) if steps > 1 and since > 0 else 0.0,
            lost_steps=0,
            views=(ViewSummary(ViewNumber(1), (self._setting.worker,), REASON, Step(0), 0.0),),
            recoveries=(),
            restarts=0,
            leader_changes=0,
        )
        _write_atomically(path, codec.encode(summary) + b"\n")


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.orch-tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
