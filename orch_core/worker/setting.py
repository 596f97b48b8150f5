"""Where this process stands: a worker of a job, or plain Python, which is a job of one. Read once, by ``init()``."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orch_core.contracts import codec
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import JobName, PlaceId, WorkerId, place_and_life, worker_id
from orch_core.contracts.job import DEFAULT_SHARDS, JobFile, JobSpec

SOLO_NAME = JobName("solo")
SOLO_WORKER = worker_id(PlaceId("w0"), 1)
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Setting:
    spec: JobSpec
    worker: WorkerId = SOLO_WORKER
    folder: Path | None = None  # the job's; None: plain Python
    coordinators: tuple[str, ...] = ()  # host:port
    token: str = ""
    host: str = LOOPBACK  # to listen on
    summary: Path | None = None  # plain Python writes its own
    started_at: float = field(default_factory=time.time)

    @property
    def alone(self) -> bool:
        return self.folder is None

    @property
    def place(self) -> int:
        return int(place_and_life(self.worker)[0][1:])


def read_setting(environment: Mapping[str, str] = os.environ) -> Setting:
    """Raises ConfigurationError."""
    if "ORCH_WORKER" not in environment:
        return _alone(environment)
    try:
        worker = WorkerId(environment["ORCH_WORKER"])
        place_and_life(worker)
        folder = Path(environment["ORCH_JOB_FOLDER"])
        job = codec.decode(JobFile, (folder / "job.json").read_bytes())
    except (KeyError, ValueError, OSError, MalformedMessage) as error:
        raise ConfigurationError(
            f"ORCH_WORKER is set, but this worker cannot find its job ({error}): workers are started by `orch run`; "
            f"for plain Python unset ORCH_WORKER"
        ) from error
    told = [address for address in environment.get("ORCH_COORDINATORS", "").split(",") if address]
    return Setting(
        spec=job.spec,
        worker=worker,
        folder=folder,
        coordinators=tuple(told or [coordinator.address for coordinator in job.coordinators]),
        token=job.token,
        host=environment.get("ORCH_WORKER_HOST", LOOPBACK),
        started_at=job.started_at,
    )


def _alone(environment: Mapping[str, str]) -> Setting:
    summary = environment.get("ORCH_SUMMARY")
    spec = JobSpec(
        name=SOLO_NAME,
        seed=_integer(environment, "ORCH_SEED", 0),
        shards=_integer(environment, "ORCH_SHARDS", DEFAULT_SHARDS, least=1),
    )
    return Setting(spec=spec, summary=Path(summary) if summary else None)


def _integer(environment: Mapping[str, str], name: str, default: int, least: int | None = None) -> int:
    text = environment.get(name, "")
    try:
        value = int(text) if text else default
    except ValueError as error:
        raise ConfigurationError(f"{name} is {text!r}: it should be an integer") from error
    if least is not None and value < least:
        raise ConfigurationError(f"{name} is {value}: it should be at least {least}")
    return value
