import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import Shard, Step
from orch_core.protocol.order import check_batch, epoch_of, epoch_order, first_step, shard_samples

sizes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))  # samples, shards, samples per shard


def read(samples, batch_size, shards, step, seed=3):
    def order(epoch):
        return epoch_order(seed, epoch, samples)

    return [
        shard_samples(order, Step(step), Shard(v), samples=samples, batch_size=batch_size, shards=shards)
        for v in range(shards)
    ]


@given(sizes, st.integers(1, 3))
def test_every_sample_is_read_once_per_epoch(size, epochs):
    samples, shards, share = size
    batch_size = shards * share
    steps = -(-epochs * samples // batch_size)
    seen = np.concatenate([part for step in range(steps) for part in read(samples, batch_size, shards, step)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@given(sizes, st.integers(0, 20))
def test_all_shards_are_equally_large(size, step):
    samples, shards, share = size
    assert {len(part) for part in read(samples, shards * share, shards, step)} == {share}


@given(sizes, st.integers(0, 9))
def test_an_epoch_begins_with_its_first_step(size, epoch):
    samples, shards, share = size
    batch_size = shards * share
    step = first_step(epoch, samples=samples, batch_size=batch_size)
    assert step * batch_size >= epoch * samples
    assert step == 0 or (step - 1) * batch_size < epoch * samples
    assert epoch_of(step, samples=samples, batch_size=batch_size) >= epoch


def test_the_order_is_the_same_for_ever():
    assert epoch_order(7, 0, 8).tolist() == GOLDEN_7_0
    assert epoch_order(7, 1, 8).tolist() == GOLDEN_7_1


def test_epochs_and_seeds_have_orders_of_their_own():
    assert epoch_order(1, 0, 50).tolist() != epoch_order(1, 1, 50).tolist()
    assert epoch_order(1, 0, 50).tolist() != epoch_order(2, 0, 50).tolist()


def test_a_negative_seed_is_a_seed():
    assert sorted(epoch_order(-1, 0, 5)) == [0, 1, 2, 3, 4]


def test_without_shuffling_samples_come_in_order():
    assert epoch_order(7, 3, 4, shuffle=False).tolist() == [0, 1, 2, 3]


def test_a_batch_may_straddle_two_epochs():
    first, second = read(3, 4, 2, 0)
    assert sorted([*first, second[0]]) == [0, 1, 2]
    assert second[1] == epoch_order(3, 1, 3)[0]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [((0, 4, 2), "empty"), ((5, 0, 2), "at least 1"), ((50, 10, 4), "multiple of 4"), ((50, 1, 4), "4 say")],
)
def test_sizes_that_cannot_be_cut_are_refused_with_what_to_do(sizes, words):
    with pytest.raises(ConfigurationError, match=words):
        check_batch(*sizes)


def test_sizes_that_can_be_cut_are_fine():
    check_batch(50, 12, 4)


GOLDEN_7_0 = [4, 1, 6, 3, 2, 7, 5, 0]
GOLDEN_7_1 = [3, 1, 6, 2, 5, 4, 0, 7]
