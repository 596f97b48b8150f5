"""`orch plugins`: what is installed, read from the distributions' metadata. Imports none of it."""

import json

import click

from orch_core import plugins
from orch_core.cli.options import json_option

FIELDS = ("kind", "name", "dist", "version", "value")


@click.command("plugins")
@json_option
def command(as_json: bool) -> None:
    """List the plugins that are installed, without importing them."""
    rows = [{field: str(getattr(found, field)) for field in FIELDS} for found in plugins.installed().available()]
    if as_json:
        click.echo(json.dumps({"version": 1, "plugins": rows}, indent=2))
    elif rows:
        click.echo(_table([["KIND", "NAME", "PACKAGE", "VERSION", "MODULE"], *(list(row.values()) for row in rows)]))
    else:
        click.echo("no plugins are installed; a job needs two: pip install orch-consensus-raft orch-sync-allreduce")


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
