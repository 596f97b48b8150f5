"""The canonical sum: where every shard's value goes in, and in which order values are added.

The leaves are the shards 0 .. V-1. A *place* [lo, hi) with more than one leaf splits at lo + the largest power of two
smaller than (hi - lo), and its sum is left + right. The order belongs to the number of leaves alone, so a sum has the
same bits whoever holds which leaf. A holder sends one partial for each *maximal* place all of whose leaves it holds.
(The tree is that of RFC 6962, section 2.1, which needs the same property for hashes.)
"""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

V = TypeVar("V")


class Place(NamedTuple):
    """The leaves lo, lo+1, .. hi-1."""

    lo: int
    hi: int


class Addition(NamedTuple):
    """The sum at `place` is the one at `left` plus the one at `right`."""

    left: Place
    right: Place
    place: Place


def leaf(index: int) -> Place:
    return Place(index, index + 1)


def root(leaves: int) -> Place:
    return Place(0, leaves)


def split(place: Place) -> tuple[Place, Place]:
    """A place's two halves. Raises ValueError for a leaf, which has none."""
    size = place.hi - place.lo
    if size < 2:
        raise ValueError(f"{place} cannot be split")
    middle = place.lo + (1 << ((size - 1).bit_length() - 1))
    return Place(place.lo, middle), Place(middle, place.hi)


@functools.cache
def parent(place: Place, leaves: int) -> Addition | None:
    """The addition in which `place` takes part; None for the root. Raises ValueError for what is no place."""
    above = root(leaves)
    if place == above:
        return None
    while above.hi - above.lo > 1:
        left, right = split(above)
        if place in (left, right):
            return Addition(left, right, above)
        above = left if place.hi <= left.hi else right
    raise ValueError(f"{place} is no place of a tree of {leaves} leaves")


def maximal(held: Iterable[int], leaves: int) -> tuple[Place, ...]:
    """The largest places all of whose leaves are in `held`, from left to right."""
    return _maximal(frozenset(held), leaves)


def additions(held: Collection[Place], leaves: int) -> tuple[Addition, ...]:
    """What to add, in order, to get from the places in `held`, which cover all leaves, to the root.

    Raises ValueError if a leaf is covered by none of them.
    """
    return _additions(frozenset(held), leaves)


def combine(values: Mapping[Place, V], leaves: int, add: Callable[[V, V], V]) -> V | None:
    """The canonical sum of `values`. Leaves without a value are left out; None if there is no value at all."""

    def total(place: Place) -> V | None:
        if place in values:
            return values[place]
        if place.hi - place.lo == 1:
            return None
        left, right = (total(half) for half in split(place))
        if left is None or right is None:
            return right if left is None else left
        return add(left, right)

    return total(root(leaves))


@functools.lru_cache(maxsize=4096)
def _maximal(held: frozenset[int], leaves: int) -> tuple[Place, ...]:
    if strangers := [index for index in held if not 0 <= index < leaves]:
        raise ValueError(f"{min(strangers)} is no leaf of a tree of {leaves}")

    def below(place: Place) -> tuple[Place, ...]:
        count = sum(place.lo <= index < place.hi for index in held)
        if count == place.hi - place.lo:
            return (place,)
        if count == 0:
            return ()
        left, right = split(place)
        return below(left) + below(right)

    return below(root(leaves))


@functools.lru_cache(maxsize=4096)
def _additions(held: frozenset[Place], leaves: int) -> tuple[Addition, ...]:
    found: list[Addition] = []

    def reach(place: Place) -> None:
        if place in held:
            return
        left, right = split(place)  # ValueError: nobody holds this leaf
        reach(left)
        reach(right)
        found.append(Addition(left, right, place))

    reach(root(leaves))
    return tuple(found)
