"""`orch run`: orch's own options end at the script, and what is wrong is one sentence with the wrong value."""

import os
from pathlib import Path

import click
import pytest

from orch_core import plugins
from orch_core.cli import run_checks
from orch_core.cli.run_options import RunOptions, parse_run, split_run
from orch_core.contracts.errors import PluginError
from orch_core.contracts.job import JobSpec
from orch_core.contracts.options import Option
from orch_core.plugins import Plugins


class FakePlugins(Plugins):
    """allreduce without options, topk with two, raft; none of them needs to be installed."""

    def load(self, kind: str, name: str) -> object:  # type: ignore[override]
        if name not in {"consensus": ["raft"], "sync": ["allreduce", "topk"]}[kind]:
            return super().load(kind, name)
        return self

    def options(self, kind: str, name: str) -> tuple[Option, ...]:
        self.load(kind, name)
        return (Option("ratio", float, 0.01, "share that travels"),) if name == "topk" else ()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ORCH_SEED", "ORCH_SHARDS", "ORCH_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(plugins, "installed", FakePlugins)
    (tmp_path / "train.py").write_text("")


def refused(*argv: str) -> str:
    with pytest.raises((click.UsageError, PluginError)) as caught:
        parse_run(argv)
    return caught.value.format_message() if isinstance(caught.value, click.UsageError) else str(caught.value)


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "gpus", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert parse_run(["train.py"]) == RunOptions(
        script="train.py",
        module=False,
        args=(),
        workers=4,
        min_workers=1,
        max_workers=12,
        shards=12,
        seed=0,
        sync="allreduce",
        sync_options={},
        coordinators=3,
        consensus="raft",
        max_restarts=3,
        check_every=100,
        job=None,
        summary=None,
    )


def test_a_job_may_be_scaled_to_as_many_workers_as_there_are_shards() -> None:
    assert parse_run(["--workers", "2", "--shards", "6", "train.py"]).max_workers == 6
    assert parse_run(["--workers", "8", "--shards", "6", "train.py"]).max_workers == 8


def test_workers_default_to_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "gpus", lambda: 8)
    assert parse_run(["train.py"]).workers == 8
    assert parse_run(["--max-workers", "2", "train.py"]).workers == 2


def test_a_host_without_gpus_has_one_worker_per_core_up_to_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "gpus", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert parse_run(["train.py"]).workers == 2
    assert parse_run(["--min-workers", "3", "train.py"]).workers == 3


def test_everything_given(tmp_path: Path) -> None:
    argv = "--workers 3 --min-workers 2 --max-workers 5 --shards 6 --seed 7 --sync topk --sync-opt ratio=0.5"
    argv += " --coordinators 1 --consensus raft --max-restarts 0 --check-every 1 --job a.b-c_1 --summary s.json"
    options = parse_run([*argv.split(), "train.py", "x"])
    assert options == RunOptions(
        script="train.py",
        args=("x",),
        workers=3,
        min_workers=2,
        max_workers=5,
        shards=6,
        seed=7,
        sync="topk",
        sync_options={"ratio": "0.5"},
        coordinators=1,
        max_restarts=0,
        check_every=1,
        job="a.b-c_1",
        summary=tmp_path / "s.json",
    )
    assert options.spec("a.b-c_1") == JobSpec(
        name=JobSpec.__annotations__["name"]("a.b-c_1"),
        seed=7,
        shards=6,
        workers=3,
        min_workers=2,
        max_workers=5,
        max_restarts=0,
        check_every=1,
        sync="topk",
        sync_options={"ratio": "0.5"},
        script="train.py",
        args=("x",),
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--min-workers", "2", "--workers", "3", "train.py"],
        ["--min_workers", "2", "--workers", "3", "train.py"],
        ["--min-workers=2", "--workers=3", "train.py"],
        ["--min_workers=2", "--workers=3", "train.py"],
        ["--workers", "9", "--min_workers=2", "--workers=3", "--", "train.py"],
    ],
)
def test_dashes_and_underscores_equals_and_space_all_work(argv: list[str]) -> None:
    options = parse_run(argv)
    assert (options.min_workers, options.workers, options.script) == (2, 3, "train.py")


def test_everything_behind_the_script_is_the_scripts() -> None:
    theirs = ["--workers", "7", "--seed=99", "--job", "x y", "--resume", "--summary", "none", "-h0", "--", "--help"]
    options = parse_run(["--workers", "2", "--shards", "6", "--seed", "7", "train.py", *theirs])
    assert (options.workers, options.shards, options.seed, options.job) == (2, 6, 7, None)
    assert options.args == tuple(theirs)


def test_odd_arguments_arrive_unchanged(tmp_path: Path) -> None:
    (tmp_path / "süb dir").mkdir()
    (tmp_path / "süb dir" / "my träin.py").write_text("")
    theirs = ["a b", "", "$HOME", "*.py", "-x=ü", "it's"]
    options = parse_run(["süb dir/my träin.py", *theirs])
    assert (options.script, options.args) == ("süb dir/my träin.py", tuple(theirs))


@pytest.mark.parametrize("argv", [["-m", "json.tool"], ["-mjson.tool"]])
def test_a_module_ends_the_options_as_a_script_does(argv: list[str]) -> None:
    options = parse_run(["--seed", "7", *argv, "--seed", "8", "-m", "x"])
    assert (options.script, options.module, options.seed) == ("json.tool", True, 7)
    assert options.args == ("--seed", "8", "-m", "x")


def test_a_module_beside_the_caller_is_found_and_not_imported(tmp_path: Path) -> None:
    (tmp_path / "pack_here").mkdir()
    (tmp_path / "pack_here" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "pack_here" / "train.py").touch()
    assert parse_run(["-m", "pack_here.train"]).script == "pack_here.train"


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("nosuch_pack.train", "there is no module 'nosuch_pack' here (-m nosuch_pack.train)"),
        ("json.nosuch", "there is no module 'json.nosuch' here (-m json.nosuch)"),
        ("outer.inner.nosuch", "there is no module 'outer.inner.nosuch' here (-m outer.inner.nosuch)"),
        ("json.tool.x", "'json.tool' is a module and no package, so there is no 'json.tool.x' in it"),
        ("json", "'json' is a package without a __main__.py; name a module in it"),
    ],
)
def test_a_module_that_is_not_there_is_refused_before_anything_starts(
    tmp_path: Path, module: str, sentence: str
) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "inner" / "train.py").touch()
    assert parse_run(["-m", "outer.inner.train"]).script == "outer.inner.train"  # without any __init__.py
    assert refused("-m", module) == sentence


def test_a_package_that_changes_its_own_path_may_have_any_module(tmp_path: Path) -> None:
    (tmp_path / "spread").mkdir()
    (tmp_path / "spread" / "__init__.py").write_text("__path__ = __import__('pkgutil').extend_path(__path__, __name__)")
    assert parse_run(["-m", "spread.train"]).script == "spread.train"


def test_a_value_that_looks_like_a_script_is_a_value(tmp_path: Path) -> None:
    assert parse_run(["--summary", "out.py", "train.py"]).summary == tmp_path / "out.py"


def test_a_value_may_begin_with_a_dash() -> None:
    assert refused("--workers", "-1", "train.py") == "--workers must be at least 1, not -1"


def test_the_environment_gives_seed_shards_and_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCH_SEED", "5")
    monkeypatch.setenv("ORCH_SHARDS", "4")
    monkeypatch.setenv("ORCH_SUMMARY", "s.json")
    options = parse_run(["train.py"])
    assert (options.seed, options.shards, options.summary) == (5, 4, tmp_path / "s.json")
    assert parse_run(["--seed", "6", "train.py"]).seed == 6


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("ORCH_SEED", "often", ["'often'"]),
        ("ORCH_SEED", "-4", ["-4"]),
        ("ORCH_SHARDS", "0", ["not 0"]),
        ("ORCH_SUMMARY", "no/such/s.json", ["no/such"]),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, parts: list[str]) -> None:
    monkeypatch.setenv(name, value)
    sentence = refused("train.py")
    assert all(part in sentence for part in [name, *parts])


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--workers", "0", "train.py"], ["--workers", "0"]),
        (["--workers", "two", "train.py"], ["--workers", "'two'"]),
        (["--workers", "3", "--min-workers", "5", "train.py"], ["--min-workers 5", "--workers 3"]),
        (["--workers", "3", "--max-workers", "1", "train.py"], ["--max-workers 1", "--workers 3"]),
        (["--min-workers", "3", "--max-workers", "2", "train.py"], ["--min-workers 3", "--max-workers 2"]),
        (["--min-workers", "0", "train.py"], ["--min-workers", "0"]),
        (["--shards", "0", "train.py"], ["--shards", "0"]),
        (["--seed", "1.5", "train.py"], ["--seed", "'1.5'"]),
        (["--seed", "-1", "train.py"], ["--seed", "-1"]),
        (["--seed", str(2**63), "train.py"], ["--seed", str(2**63)]),
        (["--coordinators", "2", "train.py"], ["--coordinators", "odd", "2"]),
        (["--coordinators", "0", "train.py"], ["--coordinators", "0"]),
        (["--max-restarts", "-1", "train.py"], ["--max-restarts", "-1"]),
        (["--check-every", "0", "train.py"], ["--check-every", "0"]),
        (["--job", "x y", "train.py"], ["--job", "'x y'"]),
        (["--job", "../up", "train.py"], ["--job", "'../up'"]),
        (["--job", "", "train.py"], ["--job", "''"]),
        (["--sync-opt", "ratio", "train.py"], ["'ratio'", "NAME=VALUE"]),
        (["--sync-opt", "=3", "train.py"], ["'=3'", "NAME=VALUE"]),
        (["--sync-opt", "k=3", "train.py"], ["'allreduce' has no options", "'k'"]),
        (["--sync", "topk", "--sync-opt", "raito=3", "train.py"], ["'raito'", "did you mean ratio"]),
        (["--sync", "topk", "--sync-opt", "ratio=x", "train.py"], ["ratio", "a number", "'x'"]),
        (["--sync", "none-such", "train.py"], ["'none-such'", "pip install orch-sync-none-such"]),
        (["--consensus", "paxos", "train.py"], ["'paxos'", "pip install orch-consensus-paxos"]),
        (["--summary", "no/such/s.json", "train.py"], ["--summary", "no/such"]),
        (["--summary", ".", "train.py"], ["--summary", "folder"]),
        (["nope.py"], ["'nope.py'"]),
        (["trian.py"], ["'trian.py'", "did you mean 'train.py'?"]),
        (["."], ["'.'", "folder"]),
        (["train.py/x"], ["'train.py/x'"]),
        (["a" * 5000], ["cannot be read"]),
        ([], ["SCRIPT"]),
        (["--workers", "2"], ["SCRIPT"]),
        (["--workers"], ["--workers"]),
        (["-m"], ["-m"]),
        (["-m", "no_such_module.train"], ["'no_such_module'"]),
    ],
)
def test_each_wrong_command_line_is_one_sentence_with_the_wrong_value(argv: list[str], parts: list[str]) -> None:
    sentence = refused(*argv)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("option", ["--work", "--min", "--sum", "--s"])
def test_no_abbreviations(option: str) -> None:
    assert f"'{option}'" in refused(option, "3", "train.py")


@pytest.mark.parametrize("option", ["--checkpoint", "--resume", "--dashboard", "--nnodes"])
def test_no_option_for_what_is_not_there(option: str) -> None:
    assert "No such option" in refused(option, "train.py")


def test_an_unreadable_script_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("train.py"))  # root may read everything
    assert "cannot be read: permission denied" in refused("train.py")


def test_help_lists_every_option_and_those_of_the_chosen_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        parse_run(["--sync", "topk", "--help", "train.py"])
    shown = capsys.readouterr().out
    for option in (
        "--workers",
        "--min-workers",
        "--shards",
        "--seed",
        "--sync-opt",
        "--coordinators",
        "--summary",
        "-m",
    ):
        assert option in shown
    assert "share that travels" in shown
    assert "SCRIPT | -m MODULE" in shown


def test_help_comes_even_if_the_plugin_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        parse_run(["--sync=none-such", "--help"])
    assert "--workers" in capsys.readouterr().out


def test_the_first_phase_needs_only_to_know_which_options_take_a_value() -> None:
    split = split_run(["--a", "1", "--flag", "s.py", "--a", "2"], frozenset({"--a"}))
    assert (split.own, split.script, split.args) == (("--a", "1", "--flag"), "s.py", ("--a", "2"))


@pytest.mark.parametrize(("visible", "gpus"), [(None, 4), ("", 0), ("-1", 0), ("0,2", 2), ("0,1,2,3,4,5", 4)])
def test_gpus_are_counted_without_torch(monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: int) -> None:
    monkeypatch.setattr(os, "listdir", lambda path: ["a", "b", "c", "d"])
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run_checks.gpus() == gpus
