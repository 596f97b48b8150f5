"""What `orch run` understands, read in two phases.

Phase one finds where orch's own options end: at SCRIPT, at `-m MODULE` or at `--`. Nothing behind that is looked at,
so a script may have flags of any name. Phase two gives the front part to click, exact names only, and then asks the
chosen plugins whether their options are right. Everything wrong is one sentence with the wrong value, and exit 2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from orch_core import plugins
from orch_core.cli import run_checks as checks
from orch_core.contracts.errors import PluginError
from orch_core.contracts.ids import JobName
from orch_core.contracts.job import DEFAULT_CHECK_EVERY, DEFAULT_SHARDS, JobSpec

DEFAULT_SYNC = "allreduce"
DEFAULT_CONSENSUS = "raft"
DEFAULT_COORDINATORS = 3
DEFAULT_MAX_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One checked `orch run` command line, defaults filled in."""

    script: str  # a path as typed, or a module's name
    module: bool = False  # `-m MODULE`
    args: tuple[str, ...] = ()  # the script's own
    workers: int = 1
    min_workers: int = 1
    max_workers: int = 1
    shards: int = DEFAULT_SHARDS
    seed: int = 0
    sync: str = DEFAULT_SYNC
    sync_options: Mapping[str, str] = field(default_factory=dict)
    coordinators: int = DEFAULT_COORDINATORS
    consensus: str = DEFAULT_CONSENSUS
    max_restarts: int = DEFAULT_MAX_RESTARTS
    check_every: int = DEFAULT_CHECK_EVERY
    deal: str = "fluid"
    job: str | None = None  # None: the agent makes a name up
    summary: Path | None = None  # absolute

    def spec(self, name: str) -> JobSpec:
        """The part that is stored with the job."""
        return JobSpec(
            name=JobName(name),
            seed=self.seed,
            shards=self.shards,
            workers=self.workers,
            min_workers=self.min_workers,
            max_workers=self.max_workers,
            max_restarts=self.max_restarts,
            check_every=self.check_every,
            deal=self.deal,
            sync=self.sync,
            sync_options=self.sync_options,
            consensus=self.consensus,
            script=self.script,
            module=self.module,
            args=self.args,
        )


@dataclass(frozen=True, slots=True)
class Split:
    """The three parts of a command line."""

    own: tuple[str, ...]
    script: str | None
    module: bool
    args: tuple[str, ...]


def run_command(execute: Callable[[RunOptions], int]) -> click.Command:
    """The verb `run`: `execute` gets checked options and returns the exit code."""
    return RunCommand(execute)


def parse_run(argv: Sequence[str]) -> RunOptions:
    """The words behind `orch run`. Raises click.UsageError, PluginError, and click's Exit for `--help`."""
    seen: list[RunOptions] = []

    def keep(options: RunOptions) -> int:
        seen.append(options)
        return 0

    run_command(keep).main(list(argv), prog_name="orch run", standalone_mode=False)
    if not seen:
        raise click.exceptions.Exit(0)
    return seen[0]


class RunCommand(click.Command):
    """`orch run [OPTIONS] SCRIPT [ARGS]...`, where nothing behind SCRIPT is orch's."""

    def __init__(self, execute: Callable[[RunOptions], int]) -> None:
        super().__init__(
            "run",
            params=_params(),
            callback=lambda **_: None,
            help="Run SCRIPT on workers of this host, through failures. Everything after SCRIPT is the script's.",
            options_metavar="[OPTIONS]",
            context_settings={
                "help_option_names": ["-h", "--help"],
                "token_normalize_func": _with_dashes,
                "max_content_width": 120,
            },
        )
        self._execute = execute

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split = split_run(args, _takes_value(self.params))
        ctx.meta["split"] = split
        try:
            super().parse_args(ctx, list(split.own))
        except click.BadParameter as error:
            if error.param is not None and error.param.envvar and _value_of(error.param.opts[0], split.own) is None:
                checks.refuse(f"{error.param.envvar} in the environment is wrong: {error.message}")
            raise
        return []

    def checked(self, ctx: click.Context) -> RunOptions:
        return _checked(ctx, ctx.meta["split"])

    def invoke(self, ctx: click.Context) -> int:
        return self._execute(self.checked(ctx))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "SCRIPT | -m MODULE", "[ARGS]..."]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        name = _value_of("--sync", ctx.meta["split"].own) or DEFAULT_SYNC
        try:
            declared = plugins.installed().options("sync", name)
        except PluginError:
            return  # help must always come
        if declared:
            with formatter.section(f"Options of --sync {name}, as --sync-opt NAME=VALUE"):
                formatter.write_dl([(option.name, f"{option.help}  [{option.default}]") for option in declared])


def split_run(argv: Sequence[str], takes_value: frozenset[str]) -> Split:
    """Phase one. `takes_value`: the options whose value may be the next word."""
    at = 0
    while at < len(argv):
        word = argv[at]
        if word == "-m" or (word.startswith("-m") and not word.startswith("--")):
            rest = argv[at + 1 :] if word == "-m" else [word[2:], *argv[at + 1 :]]
            return Split(tuple(argv[:at]), rest[0] if rest else None, True, tuple(rest[1:]))
        if word == "--":
            rest = argv[at + 1 :]
            return Split(tuple(argv[:at]), rest[0] if rest else None, False, tuple(rest[1:]))
        if not word.startswith("-") or word == "-":
            return Split(tuple(argv[:at]), word, False, tuple(argv[at + 1 :]))
        at += 2 if _with_dashes(word) in takes_value else 1
    return Split(tuple(argv), None, False, ())


def _params() -> list[click.Parameter]:
    def option(name: str, metavar: str, help_text: str, **more: Any) -> click.Option:
        return click.Option([name], metavar=metavar, help=help_text, **more)

    return [
        option("--workers", "N", "Workers to train on. Default: the number of GPUs, else min(4, cores).", type=int),
        option("--min-workers", "N", "Pause with fewer than this.  [1]", type=int),
        option("--max-workers", "N", "`orch scale` goes no higher. Default: the number of shards.", type=int),
        option(
            "--shards",
            "V",
            f"Slices of every global batch; the weights depend on it, not on the workers.  [{DEFAULT_SHARDS}]",
            type=int,
            default=DEFAULT_SHARDS,
            envvar="ORCH_SHARDS",
        ),
        option("--seed", "S", "Seed of everything random.  [0]", type=int, default=0, envvar="ORCH_SEED"),
        option("--sync", "NAME", f"Gradient sync plugin.  [{DEFAULT_SYNC}]", default=DEFAULT_SYNC),
        option("--sync-opt", "K=V", "An option of the sync plugin; may be given several times.", multiple=True),
        option(
            "--coordinators",
            "N",
            f"Replicas of the cluster's state: 1, 3, 5, ...  [{DEFAULT_COORDINATORS}]",
            type=int,
            default=DEFAULT_COORDINATORS,
        ),
        option("--consensus", "NAME", f"Consensus plugin.  [{DEFAULT_CONSENSUS}]", default=DEFAULT_CONSENSUS),
        option(
            "--max-restarts",
            "N",
            f"Restarts of one place within 10 minutes before the job fails.  [{DEFAULT_MAX_RESTARTS}]",
            type=int,
            default=DEFAULT_MAX_RESTARTS,
        ),
        option(
            "--check-every",
            "N",
            f"Compare the members' states every N steps.  [{DEFAULT_CHECK_EVERY}]",
            type=int,
            default=DEFAULT_CHECK_EVERY,
        ),
        option(
            "--deal",
            "fluid|equal",
            "Whether a slow worker carries fewer shards. The weights are the same.  [fluid]",
            type=click.Choice(["fluid", "equal"]),
            default="fluid",
        ),
        option("--job", "NAME", "The job's name and its folder's. Default: one is made up."),
        option(
            "--summary",
            "FILE",
            "Write a summary of the job to FILE, as JSON.",
            type=click.Path(path_type=Path),
            envvar="ORCH_SUMMARY",
        ),
        click.Option(["-m", "module"], metavar="MODULE", help="Run a module, as in python -m.", expose_value=False),
    ]


def _checked(ctx: click.Context, split: Split) -> RunOptions:
    """Phase two, after click has converted the numbers."""
    given: dict[str, Any] = ctx.params
    shards = checks.at_least(_as_given(ctx, "shards"), given["shards"], 1)
    workers, low, high = checks.worker_numbers(given["workers"], given["min_workers"], given["max_workers"], shards)
    sync_options = checks.sync_options(given["sync_opt"])
    options = RunOptions(
        script=checks.script_to_run(split.script, module=split.module),
        module=split.module,
        args=split.args,
        workers=workers,
        min_workers=low,
        max_workers=high,
        shards=shards,
        seed=checks.seed(_as_given(ctx, "seed"), given["seed"]),
        sync=given["sync"],
        sync_options=sync_options,
        coordinators=checks.coordinators(given.get("coordinators", DEFAULT_COORDINATORS)),
        consensus=given["consensus"],
        max_restarts=checks.at_least("--max-restarts", given["max_restarts"], 0),
        check_every=checks.at_least("--check-every", given["check_every"], 1),
        deal=given["deal"],
        job=checks.job_name(given["job"]),
        summary=checks.summary_file(given.get("summary"), _as_given(ctx, "summary")),
    )
    installed = plugins.installed()
    installed.load("consensus", given["consensus"])
    installed.convert("sync", given["sync"], sync_options)
    return options


def _takes_value(params: Sequence[click.Parameter]) -> frozenset[str]:
    return frozenset(name for param in params if isinstance(param, click.Option) for name in param.opts)


def _value_of(option: str, own: Sequence[str]) -> str | None:
    found = None
    for at, word in enumerate(own):
        name, equals, value = word.partition("=")
        if _with_dashes(name) == option:
            found = value if equals else own[at + 1] if at + 1 < len(own) else None
    return found


def _as_given(ctx: click.Context, name: str) -> str:
    """The option, or the variable that it came from."""
    if ctx.get_parameter_source(name) is not click.core.ParameterSource.ENVIRONMENT:
        return f"--{name}"
    return f"ORCH_{name.upper()}"


def _with_dashes(name: str) -> str:
    return name.replace("_", "-")
