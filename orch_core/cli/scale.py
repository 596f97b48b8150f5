"""`orch scale`: another number of workers, while the job runs."""

import re

import click

from orch_core.cli.options import job_option
from orch_core.cli.orders import order, running
from orch_core.cli.run_checks import refuse


class Scale(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """A negative number is a number, and no option that nobody has heard of."""
        for arg in args:
            if re.fullmatch(r"-\d+", arg):
                refuse(f"scale to at least 1 worker, not to {arg}")
        return super().parse_args(ctx, args)


@click.command("scale", cls=Scale)
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
