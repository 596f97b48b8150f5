"""The loader: what is installed is known without importing it, and whatever is wrong is one clear sentence."""

import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

from orch_core.contracts.errors import ConfigurationError, PluginError
from orch_core.plugins import Plugins

Install = Callable[..., None]

SYNC = """
    from orch_core.contracts.options import Option
    from orch_core.hookspecs import hookimpl

    @hookimpl
    def orch_add_options():
        return [
            Option("ratio", float, 0.01, "share of the entries that travel"),
            Option("warm-up", int, 10, "steps before"),
            Option("momentum", bool, False, "correct the momentum"),
            Option("wire", str, "float32", "dtype", choices=("float32", "bfloat16")),
        ]

    @hookimpl
    def orch_make_sync(options):
        return ("made", dict(options))
"""
PLAIN = """
    from orch_core.hookspecs import hookimpl

    @hookimpl
    def orch_make_sync(options):
        return ("plain", dict(options))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lay a distribution with one plugin module out as pip would."""

    def lay_out(
        dist: str, module: str, source: str, *, name: str, kind: str = "sync", requires: tuple[str, ...] = ()
    ) -> None:
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        folder = site / f"{dist.replace('-', '_')}-1.2.dist-info"
        folder.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n{needs}")
        (folder / "entry_points.txt").write_text(f"[orch.{kind}]\n{name} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return lay_out


def scan(site: Path, core_version: str = "0.1.0") -> Plugins:
    found = [entry for dist in distributions(path=[str(site)]) for entry in dist.entry_points]
    return Plugins(found, core_version)


def test_what_is_installed_is_listed_without_importing_it(install: Install, site: Path) -> None:
    install("orch-sync-broken", "t_listed", "raise RuntimeError('imported')", name="broken")
    [row] = scan(site).available()
    assert (row.kind, row.name, row.dist, row.version, row.value) == (
        "sync",
        "broken",
        "orch-sync-broken",
        "1.2",
        "t_listed",
    )
    assert "t_listed" not in sys.modules


def test_only_the_chosen_plugin_is_imported(install: Install, site: Path) -> None:
    install("orch-sync-one", "t_one", PLAIN, name="one")
    install("orch-sync-two", "t_two", PLAIN, name="two")
    assert scan(site).make_sync("one", {}) == ("plain", {})
    assert "t_one" in sys.modules
    assert "t_two" not in sys.modules


def test_two_plugins_of_one_kind_can_live_in_one_process(install: Install, site: Path) -> None:
    install("orch-sync-one", "t_first", PLAIN, name="one")
    install("orch-sync-two", "t_second", SYNC, name="two")
    plugins = scan(site)
    assert plugins.make_sync("one", {})[0] == "plain"
    assert plugins.make_sync("two", {})[0] == "made"
    assert plugins.make_sync("one", {})[0] == "plain"


def test_the_same_name_in_two_groups_is_two_plugins(install: Install, site: Path) -> None:
    install("orch-sync-local", "t_sync_local", PLAIN, name="local")
    store = PLAIN.replace("orch_make_sync(options)", "orch_make_checkpoint_store(url)").replace("dict(options)", "url")
    install("orch-checkpoint-local", "t_checkpoint_local", store, name="local", kind="checkpoint")
    plugins = scan(site)
    assert plugins.make_sync("local", {}) == ("plain", {})
    assert plugins.make_checkpoint_store("/some/folder") == ("plain", "/some/folder")
    assert plugins.make_checkpoint_store("local://x") == ("plain", "local://x")


def test_an_unknown_name_suggests_near_ones_and_the_package(install: Install, site: Path) -> None:
    install("orch-sync-allreduce", "t_near", PLAIN, name="allreduce")
    with pytest.raises(PluginError, match=r"'allreduc'; did you mean allreduce\?.*pip install orch-sync-allreduc"):
        scan(site).load("sync", "allreduc")
    with pytest.raises(PluginError, match=r"'zzz' \(installed: allreduce\).*pip install orch-sync-zzz"):
        scan(site).load("sync", "zzz")


def test_two_plugins_of_one_name_are_an_error_that_names_both_dists(install: Install, site: Path) -> None:
    install("orch-sync-topk", "t_mine", PLAIN, name="topk")
    install("their-topk", "t_theirs", PLAIN, name="topk")
    with pytest.raises(PluginError, match="'topk', from orch-sync-topk and their-topk: uninstall one"):
        scan(site).load("sync", "topk")


@pytest.mark.parametrize("needs", ["orch-core>=0.2", "orch_core (<0.1)", "Orch.Core==7"])
def test_a_plugin_for_another_core_is_refused_before_it_is_imported(install: Install, site: Path, needs: str) -> None:
    install("orch-sync-new", "t_new", "raise RuntimeError('imported')", name="new", requires=("numpy", needs))
    with pytest.raises(PluginError, match=r"orch-sync-new 1\.2.* needs orch-core .*but this is 0\.1\.0"):
        scan(site).load("sync", "new")


def test_a_plugin_for_this_core_is_loaded(install: Install, site: Path) -> None:
    needs = ("orch-core>=0.1,<0.2", "orch-core>=9; extra == 'future'")
    install("orch-sync-fit", "t_fit", PLAIN, name="fit", requires=needs)
    assert scan(site, "0.1.3.dev1").make_sync("fit", {}) == ("plain", {})


def test_a_misspelt_hook_is_an_error_that_suggests_the_right_one(install: Install, site: Path) -> None:
    install("orch-sync-typo", "t_typo", PLAIN.replace("orch_make_sync", "orch_make_synch"), name="typo")
    with pytest.raises(PluginError, match=r"orch-sync-typo.*orch_make_synch.*did you mean orch_make_sync\?"):
        scan(site).load("sync", "typo")


def test_a_misspelt_argument_is_an_error(install: Install, site: Path) -> None:
    install("orch-sync-argument", "t_argument", PLAIN.replace("(options)", "(option)"), name="argument")
    with pytest.raises(PluginError, match=r"orch-sync-argument.*wrong hook.*option"):
        scan(site).load("sync", "argument")


def test_a_failed_load_leaves_the_loader_usable(install: Install, site: Path) -> None:
    install("orch-sync-typo", "t_typo_again", PLAIN.replace("orch_make_sync", "orch_make_synch"), name="typo")
    install("orch-sync-good", "t_good", PLAIN, name="good")
    plugins = scan(site)
    for _ in range(2):
        with pytest.raises(PluginError, match="wrong hook"):
            plugins.load("sync", "typo")
    assert plugins.make_sync("good", {}) == ("plain", {})


def test_a_plugin_without_its_factory_is_an_error(install: Install, site: Path) -> None:
    install("orch-sync-bare", "t_bare", "def orch_make_sync(options): ...", name="bare")
    with pytest.raises(PluginError, match="does not implement orch_make_sync: the @hookimpl is missing"):
        scan(site).load("sync", "bare")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise RuntimeError('no GPU here\\nmore')", "RuntimeError: no GPU here"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_plugin_that_raises_while_loading_is_named_with_its_cause(
    install: Install, site: Path, source: str, cause: str
) -> None:
    install("orch-sync-bad", "t_bad", source, name="bad")
    with pytest.raises(PluginError, match=f"sync plugin 'bad'.*orch-sync-bad 1.2.*cannot be loaded.*{cause}") as caught:
        scan(site).load("sync", "bad")
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value, ConfigurationError)


def test_a_factory_that_raises_or_makes_nothing_is_named(install: Install, site: Path) -> None:
    install("orch-sync-raise", "t_raise", PLAIN.replace("return", "raise ValueError('odd') #"), name="raises")
    install("orch-sync-none", "t_none", PLAIN.replace("return", "return None #"), name="none")
    with pytest.raises(PluginError, match="orch-sync-raise.*failed in orch_make_sync: ValueError: odd"):
        scan(site).make_sync("raises", {})
    with pytest.raises(PluginError, match="orch-sync-none.*made nothing"):
        scan(site).make_sync("none", {})


def test_options_are_checked_converted_and_filled_in(install: Install, site: Path) -> None:
    install("orch-sync-topk", "t_options", SYNC, name="topk")
    plugins = scan(site)
    assert plugins.convert("sync", "topk", {}) == {"ratio": 0.01, "warm-up": 10, "momentum": False, "wire": "float32"}
    given = {"ratio": "0.5", "warm_up": "3", "momentum": "Yes", "wire": "bfloat16"}
    made = plugins.make_sync("topk", given)
    assert made == ("made", {"ratio": 0.5, "warm-up": 3, "momentum": True, "wire": "bfloat16"})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"ratoi": "1"}, "has no option 'ratoi'; did you mean ratio?"),
        ({"xyz": "1"}, "has no option 'xyz'; it has momentum, ratio, warm-up, wire"),
        ({"ratio": "much"}, "option ratio of the sync plugin 'topk' should be a number, not 'much'"),
        ({"warm-up": "1.5"}, "option warm-up of the sync plugin 'topk' should be an integer, not '1.5'"),
        ({"momentum": "maybe"}, "option momentum of the sync plugin 'topk' should be true or false, not 'maybe'"),
        ({"wire": "int8"}, "option wire of the sync plugin 'topk' should be one of float32, bfloat16, not 'int8'"),
    ],
)
def test_a_wrong_option_is_one_sentence(install: Install, site: Path, given: dict[str, str], sentence: str) -> None:
    install("orch-sync-topk", "t_wrong_option", SYNC, name="topk")
    with pytest.raises(PluginError) as caught:
        scan(site).convert("sync", "topk", given)
    assert sentence in str(caught.value)


def test_a_plugin_without_options_refuses_any(install: Install, site: Path) -> None:
    install("orch-sync-plain", "t_plain", PLAIN, name="plain")
    with pytest.raises(PluginError, match="'plain' has no options, so 'k' means nothing to it"):
        scan(site).convert("sync", "plain", {"k": "1"})


LISTENER = (
    PLAIN
    + """
    heard = []

    @hookimpl
    def orch_view_changed(view):
        heard.append(view)
"""
)


def test_a_raising_listener_is_reported_quarantined_and_silences_nobody(
    install: Install, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raising = LISTENER.replace("heard.append(view)", "heard.append(view); raise RuntimeError('deaf')")
    install("orch-sync-before", "t_before", LISTENER, name="before")
    install("orch-sync-raises", "t_raises", raising, name="raises")
    install("orch-sync-after", "t_after", LISTENER, name="after")
    plugins = scan(site)
    modules = [plugins.load("sync", name) for name in ("before", "raises", "after")]
    with caplog.at_level(logging.WARNING):
        assert plugins.broadcast("orch_view_changed", view=1) == ["sync plugin 'raises'"]
        assert plugins.broadcast("orch_view_changed", view=2) == []
    assert [module.heard for module in modules] == [[1, 2], [1], [1, 2]]
    assert "raises" in caplog.text
    assert "deaf" in caplog.text


def test_the_loader_itself_loads_neither_torch_nor_grpc() -> None:
    code = (
        "import sys; from orch_core import plugins; plugins.installed().available();"
        "sys.exit(str([m for m in ('torch', 'grpc', 'numpy') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() in ("", "[]")
