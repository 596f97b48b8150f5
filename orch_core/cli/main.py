"""The command `orch`: finds the verb, runs it, and turns what it raises into one sentence and an exit code.

A verb's module is imported when the verb is used: `orch --help` must take less than 200 ms of CPU. Each one defines
``command``, whose callback returns the exit code (None means 0).
"""

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from orch_core import __version__
from orch_core.contracts.errors import ConfigurationError, OrchError

VERBS: Mapping[str, tuple[str, str]] = {  # verb -> module, what `orch --help` says
    "run": ("orch_core.cli.run", "Train: run a script on workers of this host, through failures."),
    "status": ("orch_core.cli.status", "Show how a job is doing."),
    "scale": ("orch_core.cli.scale", "Change the number of workers while a job runs."),
    "drain": ("orch_core.cli.drain", "Let a worker leave: nobody waits for anybody."),
    "evict": ("orch_core.cli.evict", "Declare a worker dead that nobody can reach."),
    "stop": ("orch_core.cli.stop", "End a job after the step it is at."),
    "logs": ("orch_core.cli.logs", "Show what workers have printed."),
    "coordinator": ("orch_core.cli.coordinator", "Run one coordinator of a job on several hosts."),
    "agent": ("orch_core.cli.agent", "Run workers of a job on several hosts, on this one."),
    "plugins": ("orch_core.cli.plugins", "List the plugins that are installed."),
}
FAILED, USAGE, INTERRUPTED = 1, 2, 130


class Verbs(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(VERBS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, about) for verb, (_, about) in VERBS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, "--version", "-V", prog_name="orch", message="%(prog)s %(version)s")
def orch() -> None:
    """Train PyTorch models on machines that fail.

    orch run --workers 3 train.py
    """


def main(argv: Sequence[str] | None = None) -> None:
    """The console script. Exits 0 (fine), 1 (failed), 2 (the user must change something) or 130 (interrupted)."""
    sys.exit(_run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> int:
    if sys.platform != "linux":
        return _complain("orch runs on Linux only", USAGE)
    try:
        return _exit_code(orch.main(args=argv, prog_name="orch", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "orch"
        return _complain(f"{_sentence(error.format_message())} (see {where} --help)", USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except ConfigurationError as error:
        return _complain(str(error), USAGE)
    except OrchError as error:
        return _complain(str(error), FAILED)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError as error:  # `orch logs | head`
        _silence_stdout()
        return FAILED if error.errno == errno.EPIPE else USAGE


def _exit_code(returned: Any) -> int:
    return returned if isinstance(returned, int) else 0


def _complain(sentence: str, code: int) -> int:
    click.echo(f"orch: {sentence}", err=True)
    return code


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")


def _silence_stdout() -> None:
    """The reader has gone: what is still buffered must not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
