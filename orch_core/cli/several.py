"""What the verbs for several hosts share: the token, addresses, and where the processes of one job find each other."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orch_core.contracts.address import split
from orch_core.contracts.errors import ConfigurationError
from orch_core.rpc.network import check_heard

TOKEN = "ORCH_TOKEN"


def option(*names: str, **more: Any) -> click.Option:
    return click.Option(list(names), **more)


def token_options() -> list[click.Parameter]:
    return [
        option(
            "--token-file",
            metavar="FILE",
            type=click.Path(path_type=Path, dir_okay=False),
            help=f"The job's token, the same on every host. Default: {TOKEN} in the environment.",
        ),
        option("--insecure", is_flag=True, help="Listen and dial off loopback without TLS: others can read along."),
    ]


def token(file: Path | None, *, make: bool) -> str:
    """`make`: write a new one if the file is not there. Raises ConfigurationError."""
    if file is None:
        found = os.environ.get(TOKEN, "")
        if not found:
            raise ConfigurationError(
                f"the job's token is missing: give --token-file FILE, or {TOKEN} in the environment"
            )
        return found
    try:
        if make and not file.exists():
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as made:
                made.write(secrets.token_hex(16) + "\n")
            click.echo(f"orch: a new token is in {file}: copy the file to the other hosts", err=True)
        found = file.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"the token in {file} cannot be read: {error.strerror or error}") from error
    if not found:
        raise ConfigurationError(f"{file} is empty: it should hold the job's token")
    return found


def check_addresses(addresses: Sequence[str], *, insecure: bool) -> None:
    """Raises ConfigurationError."""
    check_heard([split(address)[0] for address in addresses], insecure=insecure)
    if insecure:
        click.echo("orch: --insecure: token, gradients and weights travel unencrypted", err=True)
