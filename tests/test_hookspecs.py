"""The hooks and what is written about them cannot drift apart."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pluggy
import pytest

from orch_core import hookspecs
from orch_core.plugins import BROADCASTS, FACTORIES

PAGE = Path(__file__).parents[1] / "docs" / "hooks.md"
HOOKS = [function for name, function in vars(hookspecs).items() if name.startswith("orch_") and callable(function)]


@pytest.fixture(params=HOOKS, ids=lambda hook: hook.__name__)
def hook(request: pytest.FixtureRequest) -> Callable[..., object]:
    return request.param  # type: ignore[no-any-return]


def signature(hook: Callable[..., object]) -> str:
    return f"{hook.__name__}({', '.join(inspect.signature(hook).parameters)})"


def test_every_hook_stands_in_the_docs_with_its_exact_signature(hook: Callable[..., object]) -> None:
    assert f"### `{signature(hook)}`" in PAGE.read_text()


def test_the_docs_name_no_hook_that_is_not_there() -> None:
    documented = {line[5:-1] for line in PAGE.read_text().splitlines() if line.startswith("### `")}
    assert documented == {signature(hook) for hook in HOOKS}


def test_every_hook_says_when_it_is_called_and_what_its_result_means(hook: Callable[..., object]) -> None:
    text = inspect.getdoc(hook) or ""
    assert len(text) > 80
    assert "None" in text or "ignored" in text


def test_the_loader_knows_every_hook() -> None:
    assert {hook.__name__ for hook in HOOKS} == {*FACTORIES.values(), "orch_add_options", *BROADCASTS}


def test_factories_take_the_first_result_and_broadcasts_all() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    first = {
        name: bool(caller.spec and caller.spec.opts["firstresult"])
        for name, caller in vars(manager.hook).items()
        if name.startswith("orch_")
    }
    assert {name for name, is_first in first.items() if not is_first} == set(BROADCASTS)
    assert all(caller.spec is None or not caller.spec.opts["historic"] for caller in vars(manager.hook).values())
