"""`orch scale`: another number of workers, while the job runs."""

import click

from orch_core.cli.options import job_option
from orch_core.cli.orders import order, running


@click.command("scale")
@click.argument("workers", metavar="N", type=int)
@job_option
def command(workers: int, job: str | None) -> None:
    """Change the number of workers to N, between --min-workers and --max-workers of `orch run`.

    New workers join as they become ready; of too many, those of the highest places leave. Neither stops training or
    changes its result. Returns at once: `orch status` shows who comes and goes.
    """
    path = running(job)
    order(path, "scale", {"workers": str(workers)})
    click.echo(f"job {path.name} is scaled to {workers} worker{'' if workers == 1 else 's'}")
