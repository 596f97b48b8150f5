"""The summary of a job, as `--summary FILE` writes it. Names are fixed; later issues add to them."""

from collections.abc import Mapping
from dataclasses import dataclass

from orch_core.contracts.document import Recovery
from orch_core.contracts.ids import JobName, Step, ViewNumber, WorkerId
from orch_core.contracts.job import JobStatus


@dataclass(frozen=True, slots=True)
class ViewSummary:
    number: ViewNumber
    members: tuple[WorkerId, ...]
    reason: str
    at_step: Step
    at_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    job: JobName
    status: JobStatus
    steps: int
    epochs: int
    samples: int  # trained on: steps * batch size
    fill: int  # how many samples of the last step come from the next epoch's order
    shards: int
    seed: int
    bit_exact: bool
    weights_sha256: str | None
    final: Mapping[str, float | None]
    wall_s: float
    first_step_s: float | None
    steps_per_s: float
    lost_steps: int
    views: tuple[ViewSummary, ...]
    recoveries: tuple[Recovery, ...]
    restarts: int
    leader_changes: int
    version: int = 1
