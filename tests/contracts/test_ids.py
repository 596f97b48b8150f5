"""Ids are place and life, and sort as people count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_core.contracts.ids import PlaceId, WorkerId, place_and_life, worker_id, worker_order


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_place_and_life_come_back(place: int, life: int) -> None:
    assert place_and_life(worker_id(PlaceId(f"w{place}"), life)) == (f"w{place}", life)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), unique=True))
def test_workers_sort_by_place_then_life_as_numbers(pairs: list[tuple[int, int]]) -> None:
    ids = [worker_id(PlaceId(f"w{place}"), life) for place, life in pairs]
    assert [worker_order(i) for i in sorted(ids, key=worker_order)] == sorted(pairs)


@pytest.mark.parametrize("text", ["", "w2", "w2.", "2.3", "w2.3.4", "w2.3 ", "x2.3", "w-1.3", "w2.3\n", "ww2.3"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="looks like w2.3"):
        place_and_life(WorkerId(text))
