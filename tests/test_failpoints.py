"""Failpoints kill exactly where they are told to, once, and cost nothing when they are not armed."""

import ast
import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch_core import failpoints
from orch_core.contracts.errors import ConfigurationError
from orch_core.failpoints import POINTS, FailpointRaised, arm, disarm, reach

TREE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    disarm()
    yield
    disarm()


def test_nothing_happens_unless_armed() -> None:
    for point in POINTS:
        reach(point, 3)


def test_an_unarmed_point_costs_far_less_than_a_microsecond() -> None:
    best = min(timeit.repeat(lambda: reach("applied", 3), number=10_000, repeat=20)) / 10_000
    assert best < 1e-6  # about 40 ns; the bound only says that nothing is parsed or looked up


def test_it_fires_at_its_point_and_step_once() -> None:
    arm("applied:3:raise")
    reach("applied", 2)
    reach("outer-body", 3)
    with pytest.raises(FailpointRaised, match="applied"):
        reach("applied", 3)
    reach("applied", 3)


def test_a_star_means_the_first_step_that_comes() -> None:
    arm("applied:*:raise")
    with pytest.raises(FailpointRaised):
        reach("applied", 17)
    reach("applied", 18)


def test_several_entries_of_one_point_fire_in_turn() -> None:
    arm("applied:3:raise, applied:5:raise,outer-body:3:raise")
    for point, step in (("applied", 3), ("outer-body", 3), ("applied", 5)):
        with pytest.raises(FailpointRaised):
            reach(point, step)


@pytest.mark.parametrize(
    ("who", "prefix", "fires"),
    [
        ("w1.1", "w1.1", True),
        ("w1.1", "w1", True),
        ("w1.2", "w1.1", False),
        ("w10.1", "w1", False),
        ("w1.12", "w1.1", False),
        ("c0", "c0", True),
        ("c0", "w1", False),
    ],
)
def test_a_prefix_names_whole_parts_of_an_id(who: str, prefix: str, fires: bool) -> None:
    arm(f"applied:*:raise@{prefix}", who)
    if fires:
        with pytest.raises(FailpointRaised):
            reach("applied", 0)
    else:
        reach("applied", 0)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("applied", "point:step:action"),
        ("aplied:3:kill", "no point 'aplied'"),
        ("applied:x:kill", "a number or"),
        ("applied:3:explode", "should be kill, stop, raise, exit:N or sleep:MS"),
        ("applied:3:exit", "should be kill, stop, raise, exit:N or sleep:MS"),
        ("applied:3:kill:9", "should be kill, stop, raise, exit:N or sleep:MS"),
        ("applied:3:exit:soon", "'soon'"),
        ("applied:3:exit:1:2", "point:step:action"),
    ],
)
def test_a_misspelt_failpoint_is_an_error_and_not_a_test_that_tests_nothing(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        arm(f"applied:1:kill,{spec}@w1", "w2.1")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("action", "code"), [("kill", -9), ("exit:17", 17), ("sleep:1", 0)])
def test_actions(action: str, code: int) -> None:
    program = f"from orch_core.failpoints import arm, reach; arm('send:4:{action}', 'c0'); reach('send', 4)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == code


def test_the_points_are_exactly_those_that_the_code_reaches() -> None:
    files = [*TREE.glob("orch_core/**/*.py"), *TREE.glob("plugins/*/orch_*/*.py")]
    assert {name for path in files for name in _reached(path)} == set(POINTS)


def _reached(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function == "reach":
            yield str(node.args[0].value)


def test_the_environment_is_not_read_here() -> None:
    assert "environ" not in Path(failpoints.__file__).read_text()
