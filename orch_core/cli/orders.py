"""How a person's order reaches a running job."""

from collections.abc import Mapping
from pathlib import Path

from orch_core.contracts.errors import ConfigurationError


def running(job: str | None) -> Path:
    """The folder of the job `--job`. Raises ConfigurationError if nothing runs there."""
    from orch_core.agent import folder

    path = folder.find(folder.home(), job)
    if not folder.is_living(path):
        raise ConfigurationError(f"job {path.name} is not running")
    return path


def order(path: Path, name: str, args: Mapping[str, str]) -> None:
    """Returns when it is part of the committed document."""
    from orch_core.agent import folder
    from orch_core.rpc import client

    described = folder.read_description(path)
    client.command([c.address for c in described.coordinators], described.token, name, args)


def life(path: Path, worker: str) -> str:
    """The present life of a place: `w2` is `w2.3`, so that an order that arrives twice means the same one."""
    from orch_core.agent import folder
    from orch_core.rpc import client

    described = folder.read_description(path)
    status = client.inspect([c.address for c in described.coordinators], described.token)
    known = [str(row["id"]) for row in status.get("workers", ())]
    return next((name for name in known if name.rpartition(".")[0] == worker), worker)
