"""`orch stop`: end a job after the step that it is at."""

import click

from orch_core.cli.options import job_option
from orch_core.cli.orders import order, running


@click.command("stop")
@job_option
def command(job: str | None) -> None:
    """End a job after the step it is at; `orch run` then ends with 0 and the status "stopped"."""
    path = running(job)
    order(path, "stop", {})
    click.echo(f"job {path.name} ends after the step it is at")
