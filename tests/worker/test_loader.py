import os
import random
import signal
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, get_worker_info

from orch_core.contracts.ids import Shard, Step
from orch_core.protocol.order import epoch_order
from orch_core.worker.loader import Loader, draws_nothing
from orch_core.worker.pool import LoaderDied
from orch_core.worker.seeds import Generators, seed_all

Sample = namedtuple("Sample", "index noise")


class Noisy(Dataset):
    """Draws from every generator that people use."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        noise = torch.rand(2) + np.random.rand() + random.random()
        return Sample(i, noise)


class Broken(Noisy):
    def __getitem__(self, i):
        if i == 7:
            raise ValueError("this file is corrupt")
        return super().__getitem__(i)


class Deadly(Noisy):
    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


class Who(Noisy):
    def __getitem__(self, i):
        info = get_worker_info()
        return i, os.getpid(), -1 if info is None else info.id, torch.get_num_threads()


@pytest.fixture
def loader():
    made = []

    def make(dataset, batch_size=6, **options):
        made.append(Loader(dataset, batch_size, seed=7, shards=3, device=torch.device("cpu"), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def read(loader, steps=4):
    return [loader.load(loader.task(Step(step), Shard(shard))) for step in range(steps) for shard in range(3)]


@pytest.mark.parametrize("collate", [None, lambda items: torch.rand(1) + torch.stack([item.noise for item in items])])
def test_loader_processes_load_the_same_bits(loader, collate):
    here, there = loader(Noisy(), collate_fn=collate), loader(Noisy(), collate_fn=collate, num_workers=2)
    for mine, its in zip(read(here), read(there), strict=True):
        if collate is None:
            assert type(its) is Sample
            assert mine.index.equal(its.index)
            mine, its = mine.noise, its.noise
        assert mine.equal(its)


def test_augmentation_belongs_to_the_sample_and_the_epoch(loader):
    one = loader(Noisy(), batch_size=12)
    first, second = ({}, {})
    for shard in range(3):
        for table, step in ((first, 0), (second, 1)):
            sample = one.load(one.task(Step(step), Shard(shard)))
            table.update(zip(sample.index.tolist(), sample.noise.tolist(), strict=True))
    assert first.keys() == second.keys()
    assert all(first[index] != second[index] for index in first)
    again = loader(Subset(Noisy(), range(12)), batch_size=6).load(one.task(Step(0), Shard(1)))
    assert dict(zip(again.index.tolist(), again.noise.tolist(), strict=True)).items() <= first.items()


@pytest.mark.parametrize("processes", [0, 2])
def test_loading_leaves_the_generators_alone(loader, processes):
    one = loader(Noisy(), num_workers=processes)
    seed_all(3)
    before = Generators.now()
    read(one, 1)
    after = Generators.now()
    assert before.torch.equal(after.torch)
    assert before.python == after.python
    assert (before.numpy[1] == after.numpy[1]).all()


def test_tensors_are_cut_as_the_default_collate_would(loader):
    dataset = TensorDataset(torch.arange(12), torch.randn(12, 2, 3))
    fast, slow = loader(dataset), loader(Subset(dataset, range(12)))
    for mine, its in zip(read(fast), read(slow), strict=True):
        assert type(mine) is type(its) is list
        assert all(a.equal(b) and a.stride() == b.stride() for a, b in zip(mine, its, strict=True))


def test_the_order_is_the_jobs_and_can_be_switched_off(loader):
    dataset = TensorDataset(torch.arange(12))
    indices = torch.cat([batch for (batch,) in read(loader(dataset), 2)])
    assert indices.tolist() == epoch_order(7, 0, 12).tolist()
    plain = torch.cat([batch for (batch,) in read(loader(dataset, shuffle=False), 2)])
    assert plain.tolist() == list(range(12))


@pytest.mark.parametrize("processes", [0, 2])
def test_what_a_data_set_raises_comes_up_with_the_sample_and_its_traceback(loader, processes):
    one = loader(Broken(), num_workers=processes)
    with pytest.raises(ValueError, match="this file is corrupt") as caught:
        read(one)
    told = "".join(caught.value.__notes__)
    assert "sample 7" in told
    if processes:
        assert "__getitem__" in told
        assert "data-loader process" in told


def test_a_loader_process_that_dies_is_an_error_and_not_a_hang(loader):
    with pytest.raises(LoaderDied, match=r"ended by signal 9 while it loaded shard \d of step 0"):
        read(loader(Deadly(), num_workers=2))


def test_loader_processes_are_others_and_know_themselves(loader):
    seen = read(loader(Who(), num_workers=2), 2)
    assert os.getpid() not in {pid for _, pids, _, _ in seen for pid in pids.tolist()}
    assert {number for _, _, numbers, _ in seen for number in numbers.tolist()} <= {0, 1}
    assert all(threads.eq(1).all() for *_, threads in seen)


def test_what_is_not_wanted_any_more_is_dropped_and_the_rest_comes_first(loader):
    one = loader(Noisy(), num_workers=1)
    one.expect([(Step(0), Shard(0)), (Step(0), Shard(1)), (Step(1), Shard(0))])
    one.expect([(Step(0), Shard(2)), (Step(1), Shard(2))])
    assert one.load(one.task(Step(0), Shard(2))).index.equal(loader(Noisy()).load(one.task(Step(0), Shard(2))).index)
    assert [(task.step, task.shard) for task in one._pool._queue] in ([], [(1, 2)])
    assert set(one._pool._ready) <= {(1, 2)}
    assert one.load(one.task(Step(0), Shard(1))) is not None  # dealt again after all


def test_only_tensors_are_known_to_draw_nothing():
    tensors = TensorDataset(torch.zeros(3))
    assert draws_nothing(tensors)
    assert draws_nothing(Subset(tensors, [0]))
    assert not draws_nothing(Noisy())
    assert not draws_nothing(Subset(Noisy(), [0]))


def test_a_closed_loader_leaves_no_process(loader):
    one = loader(Who(), num_workers=2)
    pids = {pid for _, pids, _, _ in read(one, 2) for pid in pids.tolist()}
    one.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_every_kind_of_tensor_travels(loader):
    class Kinds(Noisy):
        def __getitem__(self, i):
            return {
                "bf16": torch.ones(2, dtype=torch.bfloat16),
                "complex": torch.ones(2, dtype=torch.complex64) * 1j,
                "empty": torch.empty(0, 3),
                "text": "x" * i,
                "turned": torch.arange(6).view(2, 3).T,
            }

    one = loader(Kinds(), num_workers=1, collate_fn=lambda items: items[0])
    got, want = one.load(one.task(Step(0), Shard(0))), Kinds()[0]
    for key in ("bf16", "complex", "empty", "turned"):
        assert got[key].equal(want[key])
        assert got[key].stride() == want[key].stride()
        assert got[key].data_ptr() % 64 == 0


def test_sys_streams_are_not_printed_twice(loader, capfd):
    sys.stdout.write("before the fork ")
    read(loader(Who(), num_workers=2), 1)
    sys.stdout.flush()
    assert capfd.readouterr().out.count("before the fork") == 1
