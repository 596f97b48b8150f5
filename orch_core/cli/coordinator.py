"""`orch coordinator`: one replica of a job on several hosts, in the foreground.

Every coordinator is started with the same replicas, options and script; only `--id` differs. It ends with the job, or
on Ctrl-C and SIGTERM, and takes up its log again when it is started once more.
"""

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

import click

from orch_core.cli.run_options import RunCommand, RunOptions
from orch_core.cli.several import check_addresses, option, token, token_options
from orch_core.contracts.address import joined, split
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import CoordinatorId, JobName
from orch_core.contracts.job import CoordinatorAddress, JobFile

ELSEWHERE = ("coordinators", "summary")  # options of `orch run` that --replica and `orch agent` have
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class CoordinatorCommand(RunCommand):
    """The options of `orch run`, for the job that all hosts work on, and where its replicas are."""

    def __init__(self) -> None:
        super().__init__(lambda _: 0)
        self.name = "coordinator"
        self.help = "Run one coordinator of a job on several hosts. Workers are started there by `orch agent`."
        self.params = [param for param in self.params if param.name not in ELSEWHERE]
        self.params += [
            option("--id", metavar="ID", help="Which of the replicas this one is."),
            option(
                "--replica",
                multiple=True,
                metavar="ID=HOST:PORT,PORT",
                help="Each coordinator: its address, and its port for the other ones. Once for each of them.",
            ),
            *token_options(),
        ]

    def invoke(self, ctx: click.Context) -> int:
        given: dict[str, Any] = ctx.params
        options = self.checked(ctx)
        replicas = [_replica(text) for text in given["replica"]]
        ids = [replica.id for replica in replicas]
        if len(set(ids)) < len(ids) or len(replicas) % 2 == 0 < len(replicas):
            raise ConfigurationError(
                f"the replicas are {', '.join(ids)}: give each once, and an odd number of them: an even one survives "
                f"no more deaths than the odd one below it"
            )
        if given["id"] not in ids:
            known = ", ".join(ids) or "none"
            raise ConfigurationError(
                f"--id {given['id']} is not one of the replicas ({known}): give --replica ID=HOST:PORT,PORT for each, "
                f"and --id of this one"
            )
        if options.job is None:
            raise ConfigurationError("a job on several hosts needs a name: give --job NAME, the same everywhere")
        check_addresses([replica.address for replica in replicas], insecure=given["insecure"])
        secret = token(given["token_file"], make=True)
        return _serve(options, CoordinatorId(given["id"]), tuple(replicas), secret, insecure=given["insecure"])


def _replica(text: str) -> CoordinatorAddress:
    name, equals, addresses = text.partition("=")
    address, comma, peer_port = addresses.partition(",")
    if not (name and equals and comma and peer_port.isdigit()):
        raise ConfigurationError(f"--replica {text} is wrong: it should look like c0=10.0.0.5:4711,4712")
    host, _ = split(address)
    return CoordinatorAddress(CoordinatorId(name), address, joined(host, int(peer_port)))


def _serve(
    options: RunOptions, me: CoordinatorId, replicas: tuple[CoordinatorAddress, ...], secret: str, *, insecure: bool
) -> int:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from orch_core import failpoints
    from orch_core.agent.folder import home, write_atomically
    from orch_core.contracts import codec
    from orch_core.coordinator.main import run_replica
    from orch_core.rpc.priority import raise_priority

    assert options.job is not None
    job = JobFile(JobName(options.job), 0, replicas, secret, options.spec(options.job), time.time(), insecure)
    folder = home() / f"{options.job}@{me}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / "job.json", codec.encode(job), mode=0o600)
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} cannot be used: {error.strerror or error}") from error
    logging.basicConfig(filename=folder / "coordinator.log", level=logging.INFO, format=LOG_FORMAT)
    click.echo(f"orch: coordinator {me} of job {options.job}, in {folder}", err=True)
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""), me)
    raise_priority(inherit=True)
    asyncio.run(run_replica(job, me, Path(folder) / "replica"))
    return 0


command = CoordinatorCommand()
