import copy
import json

import pytest
import torch
from torch import nn

from orch_core.contracts.errors import ConfigurationError, LoopError
from orch_core.dataplane.group import Blob
from orch_core.worker import state
from orch_core.worker.plain import SMALL_BYTES
from orch_core.worker.prepared import Prepared


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def prepared(*objects, **kept):
    made = Prepared()
    for obj in objects:
        made.add(obj)
    for name, obj in kept.items():
        made.keep(name, obj)
    made.close()
    return made


def train(model, optimizer, *schedulers, steps=3):
    for _ in range(steps):
        model(torch.randn(8, 4)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()


def captured(made):
    return state.capture(made, state.Start.of(made))


def sent(made):
    """As it arrives on another worker: JSON, and tensors that share nothing."""
    blob = captured(made).blob()
    return Blob(json.loads(json.dumps(blob.header)), [tensor.clone() for tensor in blob.tensors])


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_put_back_elsewhere_is_the_same_and_goes_on_the_same(kind):
    torch.manual_seed(1)
    old, new = net(), net()
    old_optimizer, new_optimizer = OPTIMIZERS[kind](old.parameters()), OPTIMIZERS[kind](new.parameters())
    train(old, old_optimizer)
    ours, theirs = prepared(old, old_optimizer), prepared(new, new_optimizer)
    state.install(theirs, sent(ours))
    assert captured(theirs).digests() == captured(ours).digests()
    assert captured(theirs).sha256() == captured(ours).sha256()
    for model, optimizer in ((old, old_optimizer), (new, new_optimizer)):
        torch.manual_seed(2)
        train(model, optimizer)
    assert captured(theirs).digests() == captured(ours).digests()
    assert state.weights_sha256([old]) == state.weights_sha256([new])


def test_the_very_same_objects_are_written_and_tied_weights_stay_tied():
    def tied():
        model = nn.ModuleDict({"a": nn.Embedding(5, 3), "b": nn.Linear(3, 5, bias=False)})
        model["b"].weight = model["a"].weight
        return model

    old, new = tied(), tied()
    weight = new["a"].weight
    state.install(prepared(new), sent(prepared(old)))
    assert new["a"].weight is new["b"].weight is weight
    assert torch.equal(new["a"].weight, old["a"].weight)


def test_schedulers_a_scaler_and_kept_objects_come_along():
    def make():
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
        stairs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, stairs], milestones=[2])
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        history, best = [], {"loss": 9.0}
        table = torch.zeros(2)
        dice = torch.Generator()
        made = prepared(model, optimizer, both, scaler, history=history, best=best, table=table, dice=dice)
        return made, model, optimizer, both, history, best, table, dice

    ours, model, optimizer, both, history, best, table, dice = make()
    train(model, optimizer, both, steps=4)
    history.append(1.5)
    best["loss"] = float("nan")
    table.fill_(3)
    dice.manual_seed(77)
    theirs, _, optimizer2, both2, history2, best2, table2, dice2 = make()
    state.install(theirs, sent(ours))
    assert captured(theirs).digests() == captured(ours).digests()
    assert both2.get_last_lr() == both.get_last_lr()
    assert optimizer2.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert history2 == [1.5]
    assert best2["loss"] != best2["loss"]
    assert table2.tolist() == [3, 3]
    assert torch.rand(1, generator=dice2).equal(torch.rand(1, generator=dice))


def test_what_is_kept_is_captured_as_it_was_when_the_step_began():
    history, table = [1.0], torch.zeros(2)
    made = prepared(net(), history=history, table=table)
    start = state.Start.of(made)
    before = state.capture(made, start)
    history.append(2.0)
    table.fill_(3)
    after = state.capture(made, start)
    assert after.header == before.header
    assert after.digests() == before.digests()
    assert captured(made).digests() != before.digests()


def test_a_large_kept_tensor_that_changes_before_the_inner_loop_has_ended_is_named():
    table = torch.zeros(SMALL_BYTES // 4 + 1)
    made = prepared(net(), table=table)
    start = state.Start.of(made)
    state.capture(made, start)
    table[0] = 1
    with pytest.raises(ConfigurationError, match=r"keep\(table\) was changed between the yield .* outer body"):
        state.capture(made, start)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counters are on a device only where there is one")
@pytest.mark.parametrize("kind", ["fused", "capturable"])
def test_step_counters_that_an_optimizer_has_on_the_device_arrive_there(kind):
    def make():
        torch.manual_seed(1)
        model = net().cuda()
        return model, torch.optim.AdamW(model.parameters(), lr=0.01, **{kind: True})

    def train_there(model, optimizer):
        torch.manual_seed(2)
        for _ in range(3):
            model(torch.randn(8, 4).cuda()).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    (old, old_optimizer), (new, new_optimizer) = make(), make()
    train_there(old, old_optimizer)
    ours, theirs = prepared(old, old_optimizer), prepared(new, new_optimizer)
    arrived = sent(ours)
    state.install(theirs, Blob(arrived.header, [tensor.cpu() for tensor in arrived.tensors]))
    assert {values["step"].device.type for values in new_optimizer.state.values()} == {"cuda"}
    for model, optimizer in ((old, old_optimizer), (new, new_optimizer)):
        train_there(model, optimizer)
    assert captured(theirs).digests() == captured(ours).digests()


def test_gradients_that_were_left_and_frozen_parameters_come_along():
    old, new = net(), net()
    old(torch.randn(8, 4)).sum().backward()
    old[2].bias.grad = None
    old[0].weight.requires_grad_(False)
    ours, theirs = prepared(old), prepared(new)
    state.install(theirs, sent(ours))
    assert torch.equal(new[0].weight.grad, old[0].weight.grad)
    assert new[2].bias.grad is None
    assert not new[0].weight.requires_grad


def test_a_group_that_was_added_on_the_way_is_there_for_a_joiner():
    old, new = net(), net()
    old_optimizer = torch.optim.SGD(old[0].parameters(), lr=0.1, momentum=0.9)
    new_optimizer = torch.optim.SGD(new[0].parameters(), lr=0.1, momentum=0.9)
    ours, theirs = prepared(old, old_optimizer), prepared(new, new_optimizer)
    old_optimizer.add_param_group({"params": list(old[2].parameters()), "lr": 0.5})
    train(old, old_optimizer)
    state.install(theirs, sent(ours))
    assert [group["lr"] for group in new_optimizer.param_groups] == [0.1, 0.5]
    assert new_optimizer.param_groups[1]["params"][0] is new[2].weight
    assert captured(theirs).digests() == captured(ours).digests()


def test_a_digest_that_differs_has_the_name_of_its_tensor():
    old = net()
    new = copy.deepcopy(old)
    with torch.no_grad():
        new[2].bias[1] += 1e-6
    ours, theirs = captured(prepared(old)), captured(prepared(new))
    different = [name for name, a, b in zip(ours.entries(), ours.digests(), theirs.digests(), strict=True) if a != b]
    assert different == ["2.bias"]


def test_a_learning_rate_is_part_of_the_state():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = prepared(model, optimizer)
    before = captured(made)
    optimizer.param_groups[0]["lr"] = 0.2
    assert before.digests()[:-1] == captured(made).digests()[:-1]
    assert before.digests()[-1] != captured(made).digests()[-1]


def test_another_model_is_refused_with_the_name_of_the_parameter():
    with pytest.raises(ConfigurationError, match=r"parameter weight is .*\(2, 3\) here.*\(2, 4\)"):
        state.install(prepared(nn.Linear(3, 2)), sent(prepared(nn.Linear(4, 2))))


def test_weights_sha256_does_not_see_wrappers():
    plain = nn.Linear(2, 2)
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module._orig_mod = plain
    assert state.weights_sha256([wrapped]) == state.weights_sha256([plain])
    assert state.weights_sha256([nn.Linear(2, 2)]) != state.weights_sha256([plain])


def test_low_precision_and_empty_tensors_have_digests():
    model = nn.ParameterDict(
        {
            "low": nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
            "empty": nn.Parameter(torch.zeros(0, 4)),
            "pair": nn.Parameter(torch.ones(2, dtype=torch.complex64)),
            "one": nn.Parameter(torch.tensor(1.0)),
        }
    )
    assert len(captured(prepared(model)).digests()) == 5


class TestPreparedIsWatched:
    def test_a_parameter_that_came(self):
        model = net()
        made = prepared(model)
        model.extra = nn.Linear(2, 2)
        with pytest.raises(LoopError, match=r"extra\.weight came after prepare"):
            made.check()

    def test_a_parameter_that_was_replaced(self):
        model = net()
        made = prepared(model)
        model[0].weight = nn.Parameter(torch.zeros(6, 4))
        with pytest.raises(LoopError, match=r"0\.weight was replaced"):
            made.check()

    def test_a_parameter_that_went(self):
        model = net()
        made = prepared(model)
        del model[2]
        with pytest.raises(LoopError, match=r"2\.weight has gone"):
            made.check()

    def test_an_optimizer_over_an_unprepared_model(self):
        other = nn.Linear(3, 5)
        with pytest.raises(LoopError, match=r"SGD has a parameter of shape \(5, 3\) that belongs to no prepared model"):
            prepared(net(), torch.optim.SGD(other.parameters(), lr=0.1))

    def test_nothing_to_train(self):
        with pytest.raises(ConfigurationError, match="nothing to train"):
            prepared()

    def test_what_has_no_state(self):
        with pytest.raises(ConfigurationError, match=r"given a int.*run\.keep"):
            prepared(net(), 3)
        with pytest.raises(ConfigurationError, match="keep a dict or a list"):
            prepared(net(), lr=0.1)
