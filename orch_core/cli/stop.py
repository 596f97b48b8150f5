"""`orch stop`: end a job after the step that it is at."""

import click

from orch_core.cli.options import job_option
from orch_core.contracts.errors import ConfigurationError


@click.command("stop")
@job_option
def command(job: str | None) -> None:
    """End a job after the step it is at; `orch run` then ends with 0 and the status "stopped"."""
    from orch_core.agent import folder
    from orch_core.rpc import client

    path = folder.find(folder.home(), job)
    if not folder.is_living(path):
        raise ConfigurationError(f"job {path.name} is not running")
    described = folder.read_description(path)
    client.command([c.address for c in described.coordinators], described.token, "stop", {})
    click.echo(f"job {path.name} ends after the step it is at")
