import torch

from orch_core.plugins import Plugins
from orch_core.testing.sync import SyncSuite, random_gradients
from orch_sync_allreduce.strategy import AllReduce


class TestAllReduce(SyncSuite):
    def make(self) -> AllReduce:
        return AllReduce()

    def test_it_is_the_mean_of_all_shards(self) -> None:
        [first, *_] = self.alone()
        draw = random_gradients(self.shapes)
        shards = [torch.cat([grad.reshape(-1) for grad in reversed(draw(0, v)) if grad is not None]) for v in range(6)]
        torch.testing.assert_close(torch.cat(first), torch.stack(shards).mean(0))

    def test_it_has_no_state(self) -> None:
        cluster = self.cluster(1)
        cluster.train([range(6)])
        assert not cluster.engines[0].has_shard_state
        assert not cluster.engines[0].export_state().tensors


def test_it_is_found_by_its_name() -> None:
    assert isinstance(Plugins.installed().make_sync("allreduce", {}), AllReduce)
