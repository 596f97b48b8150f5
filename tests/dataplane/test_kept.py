from typing import Any

import pytest
import torch

from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Shard, Step
from orch_core.dataplane.barrier import BarrierPart
from orch_core.dataplane.group import Blob
from orch_core.dataplane.kept import Results


def results() -> Results:
    mean, other = torch.tensor([1.0, 2.0]), torch.tensor([3])
    parts = (
        BarrierPart(0, (Shard(0),), {Shard(0): {"loss": 1.0}}, 0b01, reset=(Shard(0),)),
        BarrierPart(1, (Shard(1),), {Shard(1): {"loss": 2.0}}, 0b10, stop=True),
    )
    return Results(Step(4), 2, (mean, mean * 2), {(0, 0): mean, (1, 0): other}, parts)


def test_they_survive_the_wire_with_the_stop_flag() -> None:
    read = Results.decode(results().encode())
    assert read.parts == results().parts
    assert (read.step, read.shards, read.stop, read.presence, read.reset) == (4, 2, True, 0b11, (0,))
    assert read.means == {"loss": 1.5}
    assert {key: tensor.tolist() for key, tensor in read.rounds.items()} == {(0, 0): [1, 2], (1, 0): [3]}
    assert [gradient.tolist() for gradient in read.gradients] == [[1, 2], [2, 4]]


def test_a_gradient_that_is_a_rounds_result_travels_once() -> None:
    assert len(results().encode().tensors) == 3


@pytest.mark.parametrize(
    "broken", [None, {}, {"version": 2}, {"version": 1}, {"gradients": [7]}, {"rounds": [[0]]}, {"parts": [{}]}]
)
def test_nonsense_is_malformed(broken: Any) -> None:
    blob = results().encode()
    header = {**blob.header, **broken} if broken and "version" not in broken else broken
    with pytest.raises(MalformedMessage):
        Results.decode(Blob(header, blob.tensors))
