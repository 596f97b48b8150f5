"""`orch drain`: let one worker leave."""

import click

from orch_core.cli.options import job_option
from orch_core.cli.orders import life, order, running


@click.command("drain")
@click.argument("worker")
@click.option("--replace", "replaced", is_flag=True, help="Start a new life of its place: as many workers as before.")
@job_option
def command(worker: str, replaced: bool, job: str | None) -> None:
    """Let WORKER leave at the next view; it ends with exit code 0. WORKER: w1 (its present life), or w1.2.

    Its place stays empty, so there is one worker less, until `orch scale` asks for more. With --replace a new life
    starts there, which is what SIGTERM to a worker does, too.
    """
    path = running(job)
    which = life(path, worker)
    order(path, "drain", {"worker": which, "replace": "yes" if replaced else "no"})
    click.echo(f"{which} leaves job {path.name}" + (" and is replaced" if replaced else ""))
