"""The two loops of a script, in a job of one: what they give, and what they say to misuse."""

import copy
import itertools
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, TensorDataset

from orch_core.contracts.errors import ConfigurationError, LoopError

SAMPLES = 24


def data(samples=SAMPLES):
    g = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(samples, 3, generator=g), torch.randn(samples, 2, generator=g))


def trained(run, *, lr=0.1, momentum=0.9, kind=torch.optim.SGD):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    options = {"lr": lr, "momentum": momentum} if kind is torch.optim.SGD else {"lr": lr}
    optimizer = kind(model.parameters(), **options)
    run.prepare(model, optimizer)
    return model, optimizer


def passes(model, batch):
    for x, y in batch:
        F.mse_loss(model(x), y).backward()


def loop(run, model, optimizer, *, epochs=2, batch_size=8, **options):
    for _ in run.epochs(epochs):
        for batch in run.batches(data(), batch_size, **options):
            passes(model, batch)
            optimizer.step()
            optimizer.zero_grad()


# ---------------------------------------------------------------- what they give


def test_training_equals_full_batch_pytorch(alone):
    run = alone()
    model, optimizer = trained(run)
    plain = copy.deepcopy(model)
    loop(run, model, optimizer, epochs=30, batch_size=SAMPLES)
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        other.zero_grad()
        x, y = data().tensors
        F.mse_loss(plain(x), y).backward()
        other.step()
    for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-5)


def test_every_sample_is_read_once_per_epoch_and_the_last_step_is_filled(alone):
    run = alone()
    model, optimizer = trained(run)
    numbers = TensorDataset(torch.arange(10), torch.zeros(10, 3))
    seen = []
    for _ in run.epochs(2):
        for batch in run.batches(numbers, 8):
            for index, x in batch:
                seen += index.tolist()
                model(x).sum().backward()
            optimizer.zero_grad()
    assert run.step == 3
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert len(seen) == 24


def test_lengths_are_in_steps_and_known_before_the_loop(alone):
    run = alone()
    trained(run)
    batches = run.batches(data(20), 8)
    assert len(batches) == 3  # 20 samples begin 3 steps, the third straddles
    assert len(run.epochs(3)) == 3


def test_steps_epochs_and_the_batch_know_where_they_are(alone):
    run = alone()
    model, _ = trained(run)
    where = []
    for epoch in run.epochs(2):
        for i, batch in enumerate(run.batches(data(16), 8)):
            assert (run.epoch, run.step) == (epoch, batch.step)
            passes(model, batch)
            where.append((epoch, i, run.step))
    assert where == [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)]
    assert run.step == 4
    assert run.is_main


def test_the_mean_is_added_to_what_the_script_left_in_grad(alone):
    run = alone()
    model, optimizer = trained(run)
    expected = None
    for _ in run.epochs(2):
        for batch in run.batches(data(), SAMPLES):
            passes(model, batch)
            if run.step == 0:
                expected = [2 * p.grad.clone() for p in model.parameters()]
    for parameter, twice in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, twice, atol=1e-6)


def test_a_pass_without_a_backward_counts_as_zeros_and_an_unused_parameter_has_no_gradient(alone):
    run = alone()
    used, unused = nn.Linear(3, 2), nn.Linear(3, 2)
    model = nn.ModuleList([used, unused])
    run.prepare(model)
    for _ in run.epochs(1):
        for batch in run.batches(data(), SAMPLES):
            total = torch.zeros(2)
            for n, (x, y) in enumerate(batch):
                if n == 1:
                    continue
                loss = F.mse_loss(used(x), y)
                loss.backward()
                total += used.bias.grad
            assert torch.allclose(used.bias.grad, total / 4)
            assert unused.weight.grad is None


def test_means_are_over_the_shards_that_logged_and_the_last_call_counts(alone):
    run = alone()
    model, _ = trained(run)
    for _ in run.epochs(1):
        for batch in run.batches(data(), SAMPLES):
            for n, (x, _) in enumerate(batch):
                model(x).sum().backward()
                run.log(a=100.0)
                run.log(a=n, b=torch.tensor(float(n)))
                if n == 3:
                    run.log(rare=5)
            assert batch.means == {"a": 1.5, "b": 1.5, "rare": 5.0}


def test_means_before_the_inner_loop_and_a_vector_in_a_log_are_errors(alone):
    run = alone()
    model, _ = trained(run)
    with pytest.raises(ConfigurationError, match="log one number"):
        for _ in run.epochs(1):
            for batch in run.batches(data(), SAMPLES):
                for x, _ in batch:
                    model(x).sum().backward()
                    run.log(loss=torch.ones(3))


def test_random_numbers_depend_on_the_shard_and_come_from_the_seed(alone):
    def draws(seed):
        run = alone(seed=seed)
        model, _ = trained(run)
        found = []
        for _ in run.epochs(1):
            for batch in run.batches(data(), 12):
                for x, _ in batch:
                    model(x).sum().backward()
                    own = torch.rand(1, generator=run.generator).item()
                    found.append((torch.rand(1).item(), np.random.rand(), random.random(), own))
                found.append((torch.rand(1).item(), np.random.rand(), random.random()))
        return found

    first = draws(7)
    assert first == draws(7) != draws(8)
    assert len({drawn[0] for drawn in first}) == len(first) == 10


def test_batchnorm_passes_start_from_the_same_buffers_and_end_with_their_mean(alone):
    run = alone()
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.prepare(model, optimizer)
    seen = []
    for _ in run.epochs(1):
        for batch in run.batches(data(), SAMPLES):
            for x, y in batch:
                assert model[1].running_mean.eq(0).all()
                F.mse_loss(model(x), y).backward()
                seen.append(model[1].running_mean.clone())
            assert torch.allclose(model[1].running_mean, torch.stack(seen).mean(0), atol=1e-6)
            assert model[1].num_batches_tracked == 1


def test_stop_ends_after_the_next_step_and_a_break_after_this_one(alone):
    run = alone()
    model, _ = trained(run)
    for _ in run.epochs(100):
        for batch in run.batches(data(), 8):
            passes(model, batch)
            if run.step == 4:
                run.stop()
    assert run.step == 6

    run = alone()
    model, _ = trained(run)
    for _ in run.epochs(100):
        for batch in run.batches(data(), 8):
            passes(model, batch)
            if run.step == 4:
                break
    assert run.step == 5


def test_a_return_out_of_all_loops_ends_training(alone, tmp_path):
    run = alone(summary=tmp_path / "s.json")
    model, _ = trained(run)

    def main():
        for _ in run.epochs(100):
            for batch in run.batches(data(), 8):
                passes(model, batch)
                if run.step == 4:
                    return

    main()
    written = json.loads((tmp_path / "s.json").read_text())
    assert (written["status"], written["steps"]) == ("finished", 5)


def test_loops_inside_other_iterators_end_at_the_scripts_end(alone):
    run = alone()
    model, _ = trained(run)
    for _ in itertools.chain(run.epochs(100)):
        for batch in run.batches(data(), 8):
            passes(model, batch)
        break
    run.settle()
    assert run.step == 3


def test_the_summary_says_what_was_trained(alone, tmp_path):
    run = alone(summary=tmp_path / "s.json")
    model, optimizer = trained(run)
    for _ in run.epochs(3):
        for batch in run.batches(data(20), 8):
            for x, y in batch:
                loss = F.mse_loss(model(x), y)
                loss.backward()
                run.log(loss=loss, odd=float("nan"))
            optimizer.zero_grad()
            run.log(lr=0.5)
    written = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert written["status"] == "finished"
    assert (written["steps"], written["samples"], written["fill"], written["epochs"]) == (8, 64, 4, 3)
    assert set(written["final"]) == {"loss", "odd", "lr"}
    assert written["final"]["odd"] is None
    assert len(written["weights_sha256"]) == 64


def test_a_scaler_a_scheduler_and_clipping_are_plain_pytorch(alone):
    run = alone()
    model, optimizer = trained(run)
    scaler = torch.amp.GradScaler("cpu")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    run.prepare(scaler, scheduler)
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            for x, y in batch:
                scaler.scale(F.mse_loss(model(x), y)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3


def test_layers_may_be_unfrozen_on_the_way(alone):
    run = alone()
    model, optimizer = trained(run)
    model[0].requires_grad_(False)
    before = model[0].weight.detach().clone()
    for epoch in run.epochs(2):
        if epoch == 1:
            assert model[0].weight.equal(before)
            model[0].requires_grad_(True)
        for batch in run.batches(data(), 8):
            passes(model, batch)
            optimizer.step()
            optimizer.zero_grad()
    assert not model[0].weight.equal(before)


# ---------------------------------------------------------------- misuse


def leave_by_break(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            for x, _ in batch:
                model(x).sum().backward()
                break
            optimizer.step()


def leave_by_next(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            next(iter(batch))
            optimizer.zero_grad()


def leave_by_an_exception(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            try:
                for _ in batch:
                    raise KeyError
            except KeyError:
                pass


def keep_the_iterator(run, model, optimizer):
    kept = []
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            kept.append(iter(batch))
            next(kept[-1])


def backward_outside(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            passes(model, batch)
            model(torch.ones(1, 3)).sum().backward()


def list_first(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            for x, _ in list(batch):
                model(x).sum().backward()


def step_inside(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            for x, _ in batch:
                model(x).sum().backward()
                optimizer.step()


def change_inside(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            for x, _ in batch:
                model(x).sum().backward()
                with torch.no_grad():
                    model[2].bias.add_(1)


def zero_inside(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            for x, _ in batch:
                optimizer.zero_grad()
                model(x).sum().backward()
            optimizer.step()


def swallow(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            for x, _ in batch:
                try:
                    model(x).sum().backward()
                    optimizer.step()
                except Exception:
                    pass


def no_inner_loop(run, model, optimizer):
    for _ in run.epochs(1):
        for _ in run.batches(data(), 8):
            optimizer.step()


def inner_loop_twice(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            passes(model, batch)
            passes(model, batch)


def batch_of_before(run, model, optimizer):
    kept = []
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            kept.append(batch)
            if len(kept) > 1:
                passes(model, kept[0])
            passes(model, batch)


def two_open(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            passes(model, batch)
            for _ in run.batches(data(), 8):
                pass


def two_data_sets(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            passes(model, batch)
        for _ in run.batches(data(16), 8):
            pass


def twice_in_one_epoch(run, model, optimizer):
    for _ in run.epochs(1):
        for _ in range(2):
            for batch in run.batches(data(), 8):
                passes(model, batch)


def outside_of_epochs(run, model, optimizer):
    for batch in run.batches(data(), 8):
        passes(model, batch)


def more_after_the_end(run, model, optimizer):
    loop(run, model, optimizer)
    run.batches(data(), 8)


def epochs_twice(run, model, optimizer):
    loop(run, model, optimizer)
    loop(run, model, optimizer)


def an_epoch_without_batches(run, model, optimizer):
    for _ in run.epochs(2):
        pass


def prepare_late(run, model, optimizer):
    for _ in run.epochs(1):
        run.prepare(nn.Linear(1, 1))


def a_new_layer(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            passes(model, batch)
            model.append(nn.Linear(2, 2))


def a_stream(run, model, optimizer):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    for _ in run.epochs(1):
        run.batches(Stream(), 8)


def a_loader(run, model, optimizer):
    run.batches(DataLoader(data()), 8)


def means_too_early(run, model, optimizer):
    for _ in run.epochs(1):
        for batch in run.batches(data(), 8):
            _ = batch.means


MISUSE = {
    leave_by_break: "inner loop was left early",
    leave_by_next: "inner loop was left early",
    leave_by_an_exception: "inner loop was left early",
    keep_the_iterator: "inner loop was left early",
    backward_outside: r"backward outside a pass: a gradient reached \d\.(weight|bias)",
    list_first: "backward outside a pass",
    step_inside: r"SGD\.step\(\) in a pass: 0\.weight would have changed",
    change_inside: r"parameter 2\.bias changed in a pass",
    zero_inside: r"zero_grad\(\) in a pass",
    swallow: r"SGD\.step\(\) in a pass",
    no_inner_loop: "step 0 ended without its inner loop",
    inner_loop_twice: "a batch was looped over twice",
    batch_of_before: "looped over (twice|after its step)",
    two_open: "open at once",
    two_data_sets: "another data set",
    twice_in_one_epoch: "looped over twice in epoch 0",
    outside_of_epochs: r"outside of run\.epochs",
    more_after_the_end: "after the end of training",
    epochs_twice: "called twice",
    an_epoch_without_batches: "ended without a loop",
    prepare_late: "prepare everything before",
    a_new_layer: r"parameter 3\.weight came after prepare",
    a_stream: "IterableDataset.*map-style",
    a_loader: "pass loader.dataset",
    means_too_early: "read it in the outer body",
}


@pytest.mark.parametrize("misuse", MISUSE, ids=lambda misuse: misuse.__name__)
def test_misuse_is_said_in_a_sentence(alone, misuse):
    run = alone()
    model, optimizer = trained(run)
    with pytest.raises(LoopError, match=MISUSE[misuse]):
        misuse(run, model, optimizer)


def test_a_batch_that_cannot_be_cut_and_an_empty_data_set(alone):
    run = alone()
    trained(run)
    with pytest.raises(ConfigurationError, match="cannot be cut into 4 equal shards"):
        run.batches(data(), 9)
    with pytest.raises(ConfigurationError, match="empty"):
        run.batches(ConcatDataset([data(0)]) if False else TensorDataset(torch.zeros(0, 3)), 8)
    with pytest.raises(ConfigurationError, match="number of epochs"):
        run.epochs(-1)


def test_two_networks_and_closures_get_their_own_advice(alone):
    run = alone()
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    first, second = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (one, two))
    run.prepare(one, two, first, second)
    with pytest.raises(LoopError, match=r"1:weight would have changed.*GAN"):
        for _ in run.epochs(1):
            for batch in run.batches(data(), 8):
                for x, _ in batch:
                    two(x).sum().backward()
                    second.step()


def test_a_model_of_sparse_gradients_is_refused(alone):
    run = alone()
    model = nn.Embedding(24, 2, sparse=True)
    run.prepare(model)
    with pytest.raises(ConfigurationError, match=r"gradient of weight is sparse.*sparse=False"):
        for _ in run.epochs(1):
            for batch in run.batches(TensorDataset(torch.arange(24)), 8):
                for (index,) in batch:
                    model(index).sum().backward()
