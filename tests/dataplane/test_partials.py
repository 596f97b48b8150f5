import random

import pytest
import torch

from orch_core.contracts.errors import StrategyError
from orch_core.contracts.ids import Shard
from orch_core.dataplane.partials import Partials
from orch_core.protocol.tree import Place


def values(shards: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    return [torch.randn(50, generator=source) * 10**shard for shard in range(shards)]


@pytest.mark.parametrize("way", ["kept", "reused", "given"])
def test_the_order_of_contributions_does_not_matter(way: str) -> None:
    given = values(12)
    expected = None
    for seed in range(20):
        order = list(range(12))
        random.Random(seed).shuffle(order)
        partials, buffer = Partials(12), torch.empty(50)
        for shard in order:
            value = buffer.copy_(given[shard]) if way == "reused" else given[shard].clone()
            partials.add(Shard(shard), value, reused=way == "reused", given=way == "given")
        [(place, total)] = partials.sums.items()
        assert place == Place(0, 12)
        expected = total.clone() if expected is None else expected
        assert torch.equal(total, expected)


def test_contributions_are_not_written_to() -> None:
    given = values(8)
    copies = [value.clone() for value in given]
    partials = Partials(8)
    for shard, value in enumerate(given):
        partials.add(Shard(shard), value)
    assert all(torch.equal(value, copy) for value, copy in zip(given, copies, strict=True))


def test_siblings_are_added_at_once() -> None:
    partials = Partials(12)
    for shard, value in enumerate(values(12)[:7]):
        partials.add(Shard(shard), value)
    assert list(partials.sums) == [Place(0, 4), Place(4, 6), Place(6, 7)]


def test_integers_are_exact() -> None:
    partials = Partials(3)
    for shard in range(3):
        partials.add(Shard(shard), torch.tensor([2**53 + shard]))
    assert partials.sums[Place(0, 3)].item() == 3 * 2**53 + 3


def test_whole_places_can_be_forgotten_and_parts_cannot() -> None:
    partials = Partials(8)
    for shard in (0, 1, 4):
        partials.add(Shard(shard), torch.ones(1))
    partials.keep([Shard(0), Shard(1)])
    assert list(partials.sums) == [Place(0, 2)]
    with pytest.raises(StrategyError, match="dealt to two members"):
        partials.keep([Shard(0)])
