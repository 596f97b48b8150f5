"""Options that several verbs share."""

import click

job_option = click.option(
    "--job", metavar="NAME", default=None, help="Which job; default: the newest one that still has a living agent."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
