"""`orch agent`: fills some places of a job on several hosts with workers of this one.

What the job is it learns from its coordinators. It does what `orch run` does on one host, in the same classes, with the
same exit codes; places that it is not given are another agent's.
"""

import asyncio
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orch_core.cli.several import check_addresses, option, token, token_options
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import CoordinatorId, PlaceId

if TYPE_CHECKING:
    from orch_core.contracts.document import Document

ANSWER_S = 60.0  # for a leader to be found
LOOPBACK = "127.0.0.1"


def execute(
    join: str,
    places: str,
    host: str,
    name: str | None,
    token_file: Path | None,
    insecure: bool,
    script: str | None,
    summary: Path | None,
) -> int:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    addresses = [address.strip() for address in join.split(",") if address.strip()]
    if not addresses:
        raise ConfigurationError("--join names no coordinator: give HOST:PORT, several with commas")
    mine = _places(places)
    check_addresses([*addresses, f"[{host}]:0" if ":" in host else f"{host}:0"], insecure=insecure)
    secret = token(token_file, make=False)
    own_name = name or socket.gethostname()
    document = asyncio.run(_ask(addresses, secret, f"agent-{own_name}"))
    return _run(document, addresses, secret, mine, own_name, host, script, summary, insecure=insecure)


def _places(text: str) -> frozenset[PlaceId]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or any(re.fullmatch(r"w\d+", name) is None for name in names):
        raise ConfigurationError(f"--places {text} is wrong: it should name places of the job, w0,w1 say")
    return frozenset(PlaceId(name) for name in names)


async def _ask(addresses: Sequence[str], secret: str, who: str) -> "Document":
    """The document of the job, as soon as somebody leads it."""
    from orch_core.contracts import codec
    from orch_core.contracts.document import Document
    from orch_core.rpc.stream import LeaderStream

    click.echo(f"orch: asks {', '.join(addresses)} for the job", err=True)
    try:
        async with asyncio.timeout(ANSWER_S), LeaderStream(addresses, secret, who) as stream:
            async for update in stream.updates():
                if update.document is not None:
                    return codec.decode(Document, update.document)
    except TimeoutError as error:
        raise ConfigurationError(
            f"no coordinator at {', '.join(addresses)} leads within {ANSWER_S:.0f} s: are most of them started, and is "
            f"the token the same?"
        ) from error
    raise AssertionError("the stream ended by itself")


def _run(
    document: "Document",
    addresses: Sequence[str],
    secret: str,
    mine: frozenset[PlaceId],
    name: str,
    host: str,
    script: str | None,
    summary: Path | None,
    *,
    insecure: bool,
) -> int:
    from dataclasses import replace

    from orch_core import failpoints
    from orch_core.agent import folder
    from orch_core.agent.host import Part
    from orch_core.cli.run import log_to, run_agent
    from orch_core.contracts.job import CoordinatorAddress, JobFile

    spec = document.job if script is None else replace(document.job, script=script, module=False)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""), "agent")
    claimed = folder.claim(folder.home(), spec.name)
    try:
        rows = tuple(CoordinatorAddress(CoordinatorId(f"at {address}"), address) for address in addresses)
        job = JobFile(spec.name, os.getpid(), rows, secret, spec, document.started_at, insecure)
        claimed.write(job)
        with log_to(claimed.path / "agent.log"):
            return run_agent(claimed, job, summary, Part(name, mine, host))
    finally:
        claimed.close()


command = click.Command(
    "agent",
    callback=execute,
    params=[
        option("--join", required=True, metavar="HOST:PORT,...", help="The job's coordinators, or some of them."),
        option("--places", required=True, metavar="w0,w1,...", help="The places that this host fills."),
        option("--host", default=LOOPBACK, metavar="ADDRESS", help="Where workers of other hosts reach this one's."),
        option("--name", metavar="NAME", help="This host's name in the job, different from the others'."),
        *token_options(),
        option(
            "--summary",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Write a summary of the job to FILE, as JSON.",
        ),
        click.Argument(["script"], required=False),
    ],
    help="Run workers of a job on several hosts, on this one. SCRIPT: where the job's script is here, if not there.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
