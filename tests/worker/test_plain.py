import json
import math
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.worker.plain import Packer, unpack

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
KEYS = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(KEYS, inner, max_size=3)
)


def through_json(value):
    packer = Packer()
    return unpack(json.loads(json.dumps(packer.pack(value, "x"), allow_nan=False)), packer.tensors)


@given(VALUES)
def test_whatever_people_keep_comes_back_as_it_was(value):
    assert repr(through_json(value)) == repr(value)


def test_types_that_schedulers_use_come_back_as_themselves():
    value = {
        "counter": Counter([3, 3, 5]),
        "ordered": OrderedDict(b=1, a=2),
        "deque": deque([1, 2], maxlen=4),
        "set": {1, 2},
        "frozen": frozenset("a"),
        "complex": 1 - 2j,
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "numpy": np.float32(0.1),
        "best": math.inf,
    }
    got = through_json(value)
    assert got == value
    assert type(got["counter"]) is Counter
    assert got["deque"].maxlen == 4
    assert type(got["numpy"]) is np.float32


def test_a_defaultdict_comes_back_as_a_dict():
    assert through_json(defaultdict(int, a=1)) == {"a": 1}


def test_tensors_and_arrays_travel_beside_the_json_and_are_named():
    packer = Packer()
    raw = packer.pack({"m": [torch.ones(2)], "a": np.arange(4).reshape(2, 2)}, "x")
    assert packer.names == ["x.m.0", "x.a"]
    got = unpack(raw, packer.tensors)
    assert torch.equal(got["m"][0], torch.ones(2))
    assert got["a"].tolist() == [[0, 1], [2, 3]]


def test_what_cannot_travel_is_named_before_anybody_dies():
    with pytest.raises(ConfigurationError, match=r"keep\(x\)\.f is a .*function.*keep tensors"):
        Packer().pack({"f": lambda: None}, "keep(x)")


@pytest.mark.parametrize("raw", [{"tensor": 3}, {"nothing": 1}, {"dtype": "nn"}, {"scalar": 1}, {"dict": [[1]]}])
def test_nonsense_is_a_malformed_message(raw):
    with pytest.raises(MalformedMessage):
        unpack(raw, [])
