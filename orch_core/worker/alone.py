"""A job of one, under plain ``python train.py``: the same engine, and a summary of its own."""

import os
import time
from pathlib import Path

from orch_core.contracts.document import Cause, Document, Finished, View, ViewMember
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import Step, ViewNumber
from orch_core.contracts.job import JobStatus
from orch_core.protocol.deal import Position
from orch_core.protocol.member import make_plan
from orch_core.protocol.outcome import summarize, summary_json
from orch_core.worker.handover import Handover, Offer
from orch_core.worker.setting import Setting

REASON = "a job of one"


def handover_alone(setting: Setting) -> Handover:
    """A plan that is never replaced, and an end that needs nobody's word."""
    view, me = _view(setting), setting.worker
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


def _view(setting: Setting) -> View:
    me = setting.worker
    members = (ViewMember(me, ""),)
    return View(ViewNumber(1), members, Cause.START, REASON, at_step=Step(0), at_s=0.0, fresh=True, origin=(me,))


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
        views = (_view(self._setting),)
        document = Document(spec, self._began, first_step_at=first_step_at, views=views, finished=finished)
        summary = summarize(spec, document, None, status, self._began, time.time())
        _write_atomically(path, summary_json(summary))


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.orch-tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
