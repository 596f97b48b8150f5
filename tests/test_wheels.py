"""What is shipped: wheels that work outside this repository, with the same entry points as the editable installs."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1]
DISTS = [TREE, *sorted(path.parent for path in TREE.glob("plugins/*/pyproject.toml"))]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    for dist in DISTS:
        run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(dist), cwd=folder)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels in it, as pip installs them."""
    folder = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(folder), *map(str, wheels), cwd=folder)
    return folder


def run(*argv: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_one_wheel_per_distribution(wheels: list[Path]) -> None:
    assert len(wheels) == len(DISTS)


def test_wheels_hold_code_types_and_licence_and_nothing_else(wheels: list[Path]) -> None:
    for wheel in wheels:
        names = zipfile.ZipFile(wheel).namelist()
        package = wheel.name.split("-")[0]
        assert {name.split("/")[0].split("-")[0] for name in names} == {package}
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
        assert not [name for name in names if "/tests/" in name or name.endswith(".pyc")]
    [core] = [wheel for wheel in wheels if wheel.name.startswith("orch_core")]
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(core).namelist())


def test_wheels_give_the_entry_points_of_the_editable_installs(site: Path) -> None:
    def entry_points(path: list[str]) -> set[tuple[str, str, str, str]]:
        found = [dist for dist in distributions(path=path) if dist.name.startswith("orch-")]
        return {(dist.name, e.group, e.name, e.value) for dist in found for e in dist.entry_points}

    assert entry_points([str(site)]) == entry_points(sys.path)


def test_wheels_work_outside_the_repository(site: Path, tmp_path: Path) -> None:
    program = "import orch_core, orch_core.cli.main as cli; print(orch_core.__file__); cli.main(['plugins', '--json'])"
    where, _, shown = run("-c", program, cwd=tmp_path, PYTHONPATH=str(site)).partition("\n")
    assert Path(where).is_relative_to(site)
    names = {row["dist"] for row in json.loads(shown)["plugins"]}
    assert names == {f"orch-{dist.name.replace('_', '-')}" for dist in DISTS[1:]}


def test_the_plugins_of_the_wheels_load(site: Path, tmp_path: Path) -> None:
    program = """
import sys
from orch_core import plugins
for found in plugins.installed().available():
    module = plugins.installed().load(found.kind, found.name)
    print(found.name, module.__file__.startswith(sys.argv[1]), "torch" in sys.modules)
"""
    for line in run("-c", program, str(site), cwd=tmp_path, PYTHONPATH=str(site)).splitlines():
        assert line.split()[1:] == ["True", "False"], line
