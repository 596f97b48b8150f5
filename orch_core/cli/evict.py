"""`orch evict --dead`: the operator's word that a worker is certainly dead."""

import click

from orch_core.cli.options import job_option
from orch_core.cli.orders import life, order, running


@click.command("evict")
@click.argument("worker")
@click.option("--dead", is_flag=True, help="Yes, it is certainly dead, and whatever state it held is lost.")
@job_option
def command(worker: str, dead: bool, job: str | None) -> None:
    """Declare WORKER dead (w1: its present life, or w1.2), when its host is gone and nobody else can say so.

    The others go on without it, even if it was the last one that held the state: then they begin at the newest state
    that is left. A worker that lives after all is killed. To send a healthy worker away use `orch drain`.
    """
    if not dead:
        raise click.UsageError(
            f"evict takes --dead, your word that {worker} is dead; orch drain sends a living one away"
        )
    path = running(job)
    which = life(path, worker)
    order(path, "evict", {"worker": which})
    click.echo(f"job {path.name} goes on without {which}")
