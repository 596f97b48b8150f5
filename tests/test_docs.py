"""Documentation that cannot rot: the plugin of docs/writing-a-sync-plugin.md is built from the page and tested."""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from torch import Tensor

from orch_core.contracts.sync import GradientSync
from orch_core.plugins import Plugins
from orch_core.testing.sync import SyncSuite

TREE = Path(__file__).parents[1]
PAGE = TREE / "docs" / "writing-a-sync-plugin.md"
PAGES = [*TREE.glob("*.md"), *TREE.glob("docs/*.md"), *TREE.glob("plugins/*/*.md"), *TREE.glob("examples/*/*.md")]


def blocks(page: Path) -> dict[str, str]:
    """File name -> content, of each block that opens with its file's name."""
    found = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugins]:
    """The page's plugin, laid out as pip would."""
    site, files = tmp_path_factory.mktemp("site"), blocks(PAGE)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    (site / "orch_sync_topk").mkdir()
    for name in ("orch_sync_topk/plugin.py", "orch_sync_topk/strategy.py"):
        (site / name).write_text(files[name])
    (site / "orch_sync_topk" / "__init__.py").write_text("")
    info = site / "orch_sync_topk-0.1.0.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n{needs}")
    [(group, entries)] = project["entry-points"].items()
    lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    sys.path.insert(0, str(site))
    yield Plugins([entry for dist in distributions(path=[str(site)]) for entry in dist.entry_points])
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.startswith("orch_sync_topk")]:
        del sys.modules[name]


class TestTheDocumentedStrategy(SyncSuite):
    @pytest.fixture(autouse=True)
    def _documented(self, plugins: Plugins) -> None:
        self.plugins = plugins

    def make(self) -> GradientSync[Tensor]:
        return self.plugins.make_sync("topk", {"ratio": "0.05"})


def test_its_options_are_those_of_the_page(plugins: Plugins) -> None:
    assert plugins.convert("sync", "topk", {}) == {"ratio": 0.01}
    assert plugins.find("sync", "topk").dist == "orch-sync-topk"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
