import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Shard, Step
from orch_core.dataplane import barrier
from orch_core.dataplane.barrier import BarrierPart, Difference


def part(member: int, shards: list[int], loss: dict[int, float] | None = None, **rest: object) -> BarrierPart:
    logged = {Shard(shard): {"loss": value} for shard, value in (loss or {}).items()}
    return BarrierPart(member, tuple(Shard(shard) for shard in shards), logged, **rest)  # type: ignore[arg-type]


def canonical(values: list[float]) -> float:
    if len(values) == 1:
        return values[0]
    left = max(2**k for k in range(5) if 2**k < len(values))
    return canonical(values[:left]) + canonical(values[left:])


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=16), st.integers(1, 5))
def test_a_mean_is_the_canonical_one_whoever_carried_what(values: list[float], members: int) -> None:
    parts = [
        part(m, list(range(m, len(values), members)), {s: values[s] for s in range(m, len(values), members)})
        for m in range(members)
    ]
    mean = barrier.means(parts, len(values))["loss"]
    expected = canonical(values) * (1.0 / len(values))
    assert mean == expected or (math.isnan(mean) and math.isnan(expected))


def test_only_shards_that_logged_a_name_count() -> None:
    parts = [part(0, [0, 1], {1: 4.0}), part(1, [2, 3], {3: 8.0})]
    assert barrier.means(parts, 4) == {"loss": 6.0}
    assert barrier.means([part(0, [0])], 1) == {}


@given(
    st.builds(
        BarrierPart,
        member=st.integers(0, 9),
        shards=st.lists(st.integers(0, 15).map(Shard)).map(tuple),
        logged=st.dictionaries(st.integers(0, 15).map(Shard), st.dictionaries(st.text(), st.floats(allow_nan=False))),
        presence=st.integers(0, 2**2000),
        stop=st.booleans(),
        left=st.none() | st.integers(0, 99).map(Step),
        digests=st.none() | st.lists(st.integers(0, 2**32 - 1)).map(tuple),
        reset=st.lists(st.integers(0, 15).map(Shard)).map(tuple),
    )
)
def test_a_part_survives_the_wire(value: BarrierPart) -> None:
    assert barrier.decode(json.loads(json.dumps(barrier.encode(value)))) == value


def test_nan_survives_the_wire() -> None:
    read = barrier.decode(json.loads(json.dumps(barrier.encode(part(0, [0], {0: math.nan})))))
    assert math.isnan(read.logged[Shard(0)]["loss"])


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"version": 2},
        {**barrier.encode(part(0, [0])), "presence": "zz"},
        {**barrier.encode(part(0, [0])), "logged": 3},
    ],
)
def test_nonsense_is_malformed(raw: object) -> None:
    with pytest.raises(MalformedMessage):
        barrier.decode(raw)


def test_one_stop_stops_all_and_presence_is_the_union() -> None:
    parts = [part(0, [0], presence=0b01), part(1, [1], presence=0b10, stop=True)]
    assert barrier.stop(parts)
    assert not barrier.stop(parts[:1])
    assert barrier.presence(parts) == 0b11


def test_the_first_difference_names_who_agrees_with_whom() -> None:
    digests = [(1, 2, 3), (1, 9, 3), (1, 2, 4)]
    parts = [part(m, [], digests=d) for m, d in enumerate(digests)]
    assert barrier.difference(parts) == Difference(1, ((0, 2), (1,)))
    assert barrier.difference([parts[0], parts[0]]) is None
    assert barrier.difference([part(0, []), part(1, [])]) is None
    assert barrier.difference([parts[0], part(1, [], digests=(1, 2))]) == Difference(None, ((0,), (1,)))


def test_a_shard_that_nobody_or_two_carried_is_found() -> None:
    assert barrier.uncovered([part(0, [0, 1]), part(1, [1, 2])], 4) == (1, 3)
    assert barrier.uncovered([part(0, [0, 3]), part(1, [1, 2])], 4) == ()
