"""One name chain per plugin: folder, distribution, package, entry point and flag all say the same."""

import tomllib
from pathlib import Path

import pytest

from orch_core import __version__
from orch_core.plugins import FACTORIES

PLUGINS = sorted(path.parent for path in (Path(__file__).parents[1] / "plugins").glob("*/pyproject.toml"))


@pytest.fixture(params=PLUGINS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_there_are_plugins() -> None:
    assert {"consensus_raft", "sync_allreduce"} <= {folder.name for folder in PLUGINS}


def test_folder_dist_package_and_entry_point_are_one_name(folder: Path) -> None:
    kind, _, name = folder.name.partition("_")
    assert kind in FACTORIES
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"orch-{kind}-{name}"
    assert (folder / f"orch_{kind}_{name}" / "__init__.py").is_file()
    assert project["entry-points"] == {f"orch.{kind}": {name: f"orch_{kind}_{name}.plugin"}}


def test_a_plugin_says_which_core_it_is_for(folder: Path) -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    [core] = [r for r in map(Requirement, project["dependencies"]) if r.name == "orch-core"]
    assert core.specifier.contains(__version__)
    assert not core.specifier.contains("99")


def test_a_plugin_has_a_readme_tests_and_types(folder: Path) -> None:
    assert (folder / "README.md").is_file()
    assert list((folder / "tests").glob("test_*.py"))
    assert (folder / f"orch_{folder.name}" / "py.typed").is_file()


def test_the_import_rules_cover_every_plugin() -> None:
    rules = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["importlinter"]
    packages = {f"orch_{folder.name}" for folder in PLUGINS}
    assert packages <= set(rules["root_packages"])
    for contract in rules["contracts"]:
        if contract["id"] in ("core", "plugins", "strangers"):
            listed = {"core": "forbidden_modules", "plugins": "source_modules", "strangers": "modules"}[contract["id"]]
            assert packages <= set(contract[listed]), contract["id"]
