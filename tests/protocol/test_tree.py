from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_core.protocol.tree import Place, additions, combine, leaf, maximal, parent, root, split


def written_out(values: list[str]) -> str:
    """The rule of the design, in the plainest words: the largest power of two that leaves something goes left."""
    if len(values) == 1:
        return values[0]
    left = max(2**k for k in range(5) if 2**k < len(values))
    return f"({written_out(values[:left])}+{written_out(values[left:])})"


@st.composite
def assignments(draw: st.DrawFn) -> list[list[int]]:
    """Leaves of a tree of up to 16, in any way on up to 5 members."""
    leaves = draw(st.integers(1, 16))
    members = draw(st.integers(1, 5))
    owners = draw(st.lists(st.integers(0, members - 1), min_size=leaves, max_size=leaves))
    return [[index for index, owner in enumerate(owners) if owner == member] for member in range(members)]


@pytest.mark.parametrize(
    ("place", "halves"),
    [
        (Place(0, 2), (Place(0, 1), Place(1, 2))),
        (Place(0, 12), (Place(0, 8), Place(8, 12))),
        (Place(8, 12), (Place(8, 10), Place(10, 12))),
        (Place(0, 7), (Place(0, 4), Place(4, 7))),
        (Place(4, 7), (Place(4, 6), Place(6, 7))),
        (Place(0, 16), (Place(0, 8), Place(8, 16))),
    ],
)
def test_a_place_splits_at_the_largest_smaller_power_of_two(place: Place, halves: tuple[Place, Place]) -> None:
    assert split(place) == halves


def test_a_leaf_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        split(leaf(3))


@pytest.mark.parametrize("leaves", range(1, 17))
def test_twelve_and_all_others_add_up_in_the_written_order(leaves: int) -> None:
    names = [chr(ord("a") + index) for index in range(leaves)]
    total = combine({leaf(i): name for i, name in enumerate(names)}, leaves, lambda left, right: f"({left}+{right})")
    assert total == written_out(names)


@given(assignments())
def test_any_assignment_adds_up_in_the_same_order(assignment: list[list[int]]) -> None:
    leaves = sum(len(held) for held in assignment)
    names = [chr(ord("a") + index) for index in range(leaves)]

    def partial(place: Place) -> str:
        return written_out(names)[0:0] + str(
            combine({leaf(i): names[i] for i in range(place.lo, place.hi)}, leaves, lambda a, b: f"({a}+{b})")
        )

    values = {place: partial(place) for held in assignment for place in maximal(held, leaves)}
    for left, right, place in additions(list(values), leaves):
        values[place] = f"({values.pop(left)}+{values.pop(right)})"
    assert values == {root(leaves): written_out(names)}


@given(assignments())
def test_maximal_places_cover_exactly_what_is_held_and_cannot_grow(assignment: list[list[int]]) -> None:
    leaves = sum(len(held) for held in assignment)
    for held in assignment:
        places = maximal(held, leaves)
        assert [index for place in places for index in range(place.lo, place.hi)] == held
        for place in places:
            addition = parent(place, leaves)
            assert addition is None or addition.left not in places or addition.right not in places


def test_a_range_has_few_maximal_places() -> None:
    for leaves in range(1, 17):
        for lo in range(leaves):
            for hi in range(lo + 1, leaves + 1):
                assert len(maximal(range(lo, hi), leaves)) <= max(1, 2 * (leaves - 1).bit_length())


def test_leaves_without_a_value_are_left_out() -> None:
    values = {leaf(index): Fraction(index) for index in (1, 2, 6)}
    assert combine(values, 8, lambda left, right: left + right) == 9
    assert combine({}, 8, lambda left, right: left) is None


def test_strangers_are_errors() -> None:
    with pytest.raises(ValueError, match="no leaf"):
        maximal([3, 12], 12)
    with pytest.raises(ValueError, match="no place"):
        parent(Place(1, 3), 8)
    with pytest.raises(ValueError, match="cannot be split"):
        additions([Place(0, 4)], 8)
