"""What the processes of a job are called with: program and environment."""

import sys
from collections.abc import Mapping, Sequence

from orch_core.agent import guardian
from orch_core.agent.folder import JobFolder
from orch_core.contracts.ids import WorkerId
from orch_core.contracts.job import JobFile, JobSpec

#: A rank in the environment would be believed by scripts, and would be a lie.
FOREIGN_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"),
    *("TORCHELASTIC_USE_AGENT_STORE", "ORCH_SUMMARY"),
)

NURSERY = WorkerId("nursery" + "." * 25)
COLD_START = "ORCH_COLD_START"  # set: no worker is forked; for measuring, and for scripts that cannot be forked


def worker_program(spec: JobSpec) -> Sequence[str]:
    script = ["-m", spec.script] if spec.module else [_as_path(spec.script)]
    return [sys.executable, "-P", "-m", "orch_core.worker.main", *script, *spec.args]


def nursery_program(spec: JobSpec, agent: int, control: int) -> Sequence[str]:
    """`control`: the number of a socket that it inherits."""
    executable, safe, _, _, *target = worker_program(spec)
    return [executable, safe, "-m", "orch_core.worker.nursery", str(agent), str(control), *target]


def nursery_environment(shared: Mapping[str, str], spec: JobSpec) -> dict[str, str]:
    """A worker's, with room for any worker's id."""
    return worker_environment(shared, spec, NURSERY)


def _as_path(script: str) -> str:
    return f"./{script}" if script.startswith("-") else script


def environment(base: Mapping[str, str], job: JobFile, folder: JobFolder) -> dict[str, str]:
    """What all processes of a job find in their environment, whatever the user's has."""
    env = {k: v for k, v in base.items() if k not in FOREIGN_VARIABLES}
    env.update(
        ORCH_JOB=job.job,
        ORCH_HOME=str(folder.path.parent),
        ORCH_COORDINATORS=",".join(c.address for c in job.coordinators),
        PYTHONUNBUFFERED="1",
        PYTHONUTF8="1",
        PYTHONIOENCODING="utf-8:backslashreplace",
        GRPC_ENABLE_FORK_SUPPORT="0",  # a worker's data loaders fork beside gRPC's threads and never touch gRPC
    )
    env.pop(guardian.WORKER_MARKER, None)
    return env


def worker_environment(shared: Mapping[str, str], spec: JobSpec, worker: WorkerId) -> dict[str, str]:
    threads = str(spec.threads)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **shared,
        guardian.WORKER_MARKER: worker,
        "PYTHONHASHSEED": str(spec.seed % 2**32),
    }
