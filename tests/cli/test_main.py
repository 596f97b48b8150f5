"""The command itself: fast, light, and with exit codes that mean something."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from orch_core import __version__
from orch_core.cli import main as cli
from orch_core.contracts.errors import ConfigurationError, PluginError, ScriptFailed

HEAVY = ("torch", "numpy", "grpc", "google.protobuf", "opentelemetry", "panel", "rich", "asyncio")


def orch(*argv: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from orch_core.cli.main import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, timeout=60, check=False
    )


def loaded_by(*argv: str) -> set[str]:
    """Which heavy modules a command imports."""
    program = (
        "import sys; from orch_core.cli.main import _run; code = _run(sys.argv[1:]);"
        f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


def cpu_s(*argv: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert orch(*argv).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_takes_less_than_200_ms_of_cpu() -> None:
    assert min(cpu_s("--help") for _ in range(5)) < 0.2


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["plugins"], ["plugins", "--json"], ["nonsense"]])
def test_light_commands_load_nothing_heavy(argv: list[str]) -> None:
    assert not loaded_by(*argv)


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb != "plugins"])
def test_no_verbs_help_loads_torch(verb: str) -> None:
    assert "torch" not in loaded_by(verb, "--help")


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = f"import sys, orch_core; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_version() -> None:
    assert orch("--version").stdout == f"orch {__version__}\n"


def test_help_lists_each_verb_and_each_verb_has_help() -> None:
    shown = orch("--help").stdout
    for verb in cli.VERBS:
        assert f"  {verb}  " in shown
        assert orch(verb, "--help").returncode == 0


def test_no_command_shows_the_help_and_exits_2() -> None:
    done = orch()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


@pytest.mark.parametrize("argv", [["nonsense"], ["--nonsense"], ["plugins", "--nonsense"], ["run", "nope.py"], ["run"]])
def test_usage_errors_are_one_line_and_exit_2(argv: list[str]) -> None:
    done = orch(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("orch: ")
    assert "--help" in done.stderr


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigurationError("say this"), 2),
        (PluginError("say this"), 2),
        (ScriptFailed("say this"), 1),
        (click.UsageError("say this"), 2),
        (click.ClickException("say this"), 1),
    ],
)
def test_what_a_verb_raises_is_one_sentence_and_a_code(
    raised: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(cli.orch, "main", fail)
    assert cli._run([]) == code
    assert capsys.readouterr().err.startswith("orch: say this")


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_exits_130_without_a_traceback(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(cli.orch, "main", interrupt)
    assert cli._run([]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_a_verb_returns_its_exit_code(returned: int | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.orch, "main", lambda **_: returned)
    assert cli._run([]) == code


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "from orch_core.cli.main import main; main(['plugins', '--json'])"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writer)
    assert "Traceback" not in done.stderr


def test_only_linux_is_promised(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli._run(["--version"]) == 2
    assert "Linux only" in capsys.readouterr().err


def test_plugins_lists_the_installed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["plugins", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["version"] == 1
    rows = {(row["kind"], row["name"]): row for row in shown["plugins"]}
    assert rows["sync", "allreduce"]["dist"] == "orch-sync-allreduce"
    assert rows["consensus", "raft"]["value"] == "orch_consensus_raft.plugin"
    assert cli._run(["plugins"]) == 0
    assert "orch-consensus-raft" in capsys.readouterr().out
