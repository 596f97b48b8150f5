from typing import Any

import pytest
import torch

from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Shard
from orch_core.dataplane.group import Blob
from orch_core.dataplane.strategystate import StateKey, StrategyState


def used() -> StrategyState:
    """Member with shards 0 and 1 of 3, after a step."""
    state = StrategyState(3)
    staged = {
        StateKey("residual", Shard(0), 0): torch.tensor([1.0]),
        StateKey("residual", Shard(1), 0): torch.tensor([2.0]),
        StateKey("velocity", None, 0): torch.tensor([3.0, 4.0]),
    }
    state.apply(staged.items(), {Shard(0), Shard(1)})
    return state


def test_before_anything_is_staged_everybody_holds_all_there_is() -> None:
    assert StrategyState(3).held == (0, 1, 2)
    assert not StrategyState(3).has_shard_state


def test_state_of_the_job_alone_binds_no_shards() -> None:
    state = StrategyState(3)
    state.apply([(StateKey("velocity", None, 0), torch.ones(1))], {Shard(0)})
    assert state.held == (0, 1, 2)


def test_a_joiner_learns_what_is_shared_and_that_shards_have_state() -> None:
    joiner = StrategyState(3)
    joiner.take(used().export(None))
    assert joiner.held == ()
    assert joiner.has_shard_state
    assert joiner.read("velocity", None, 0, None).tolist() == [3, 4]
    assert joiner.read("residual", Shard(2), 0, None).tolist() == [0], "a lost one starts from zeros"
    joiner.take(used().export(Shard(1)))
    assert joiner.held == (1,)
    assert joiner.read("residual", Shard(1), 0, None).tolist() == [2]


def test_what_others_carry_now_is_forgotten_when_the_step_is_applied() -> None:
    state = used()
    state.apply([], {Shard(1)})
    assert state.held == (1,)
    assert not state.export(Shard(0)).tensors
    assert state.read("residual", Shard(1), 0, None).tolist() == [2], "what was not staged again stays"


def test_bits_and_names_are_the_same_on_all_members() -> None:
    left, right = used().export(None), used().export(None)
    assert left.header == right.header
    assert left.header["keys"] == [["velocity", 0]]


@pytest.mark.parametrize(
    "header",
    [
        None,
        {},
        {"version": 2},
        {"version": 1, "shard": None, "keys": [["a", 0]]},
        {"version": 1, "shard": "x", "keys": []},
        {"version": 1, "shard": None, "keys": [], "kinds": [["a", 0, [1], "nothing"]]},
    ],
)
def test_nonsense_is_malformed(header: Any) -> None:
    with pytest.raises(MalformedMessage):
        StrategyState(3).take(Blob(header, []))
