"""The strategy that has everything: state of shards and of the job, two kinds of dice, several rounds, losses."""

import sys
from pathlib import Path

import pytest
import torch

from orch_core.plugins import Plugins
from orch_core.testing.sync import SyncSuite, even

sys.path.insert(0, str(Path(__file__).parent))
from orch_sync_residual.strategy import TopK

sys.path.pop(0)  # the others' tests are to see what is installed, and no more


class TestTopK(SyncSuite):
    def make(self) -> TopK:
        return TopK(0.1)

    def test_residuals_move_with_their_shards(self) -> None:
        cluster = self.cluster(2)
        cluster.train(even(2, 6))
        assert [engine.state_shards for engine in cluster.engines] == [(0, 1, 2), (3, 4, 5)]
        cluster.train([[0, 5], [1, 2, 3, 4]])
        assert [engine.state_shards for engine in cluster.engines] == [(0, 5), (1, 2, 3, 4)]
        assert not cluster.reset

    def test_a_lost_residual_is_told_to_everybody(self) -> None:
        cluster = self.cluster(2)
        cluster.train(even(2, 6))
        cluster.kill(1)
        cluster.train([range(6)])
        assert cluster.reset == (3, 4, 5)

    def test_a_death_before_any_state_loses_none(self) -> None:
        cluster = self.cluster(2)
        cluster.train_through_death(even(2, 6), 1, lambda _: [range(6)])
        assert not cluster.reset

    def test_a_member_without_shards_keeps_the_state_of_the_job(self) -> None:
        cluster = self.cluster(2)
        cluster.train([range(6), []])
        left, right = (engine.export_state() for engine in cluster.engines)
        assert left.header == right.header
        assert all(torch.equal(mine, other) for mine, other in zip(left.tensors, right.tensors, strict=True))
        assert cluster.engines[1].state_shards == ()


def test_it_is_a_plugin_with_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    made = Plugins.installed().make_sync("residual", {"fraction": "0.25"})
    assert isinstance(made, TopK)
    assert made.fraction == 0.25
