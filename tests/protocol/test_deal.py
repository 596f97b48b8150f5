from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from orch_core.contracts.ids import Shard, Step, WorkerId
from orch_core.protocol.deal import (
    SETTLED,
    SETTLED_MAX,
    Deals,
    Move,
    Position,
    begun,
    deal,
    fluid,
    most_advanced,
    moves_at_start,
    moves_between,
    redeal,
    start_of,
    weighted,
)
from orch_core.protocol.tree import maximal

A, B, C = WorkerId("w0.1"), WorkerId("w1.1"), WorkerId("w2.1")


@st.composite
def positions_at(draw, step=3, shards=None):
    """What members of one view can say: shards of the open step are held, or computed, by one of them at most."""
    shards = shards or draw(st.integers(1, 13))
    members = draw(st.integers(1, 6))
    owners = draw(st.lists(st.integers(-1, members - 1), min_size=shards, max_size=shards))
    said = []
    for member in range(members):
        held = [v for v in range(shards) if owners[v] == member]
        computing = held.pop() if held and draw(st.booleans()) else None
        applied = draw(st.sampled_from([step - 1, step - 1, step - 2, None]))
        said.append(Position(applied, tuple((v,) for v in held), computing, tuple(held)))
    return shards, said


def carried(dealt):
    return sorted(shard for shards in dealt for shard in shards)


@given(st.integers(1, 20), st.integers(1, 20))
def test_every_shard_has_one_carrier(members, shards):
    dealt = deal(members, shards)
    assert len(dealt) == members
    assert carried(dealt) == list(range(shards))


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_deal_is_even_and_contiguous(members, shards):
    dealt = deal(members, shards)
    sizes = [len(shards) for shards in dealt if shards]
    assert max(sizes) - min(sizes) <= 1
    assert all(list(part) == list(range(part[0], part[-1] + 1)) for part in dealt if part)


@given(st.integers(1, 20), st.integers(1, 64))
def test_a_carrier_has_few_maximal_places(members, shards):
    bound = max(1, 2 * (shards - 1).bit_length())
    assert all(len(maximal(part, shards)) <= bound for part in deal(members, shards))


def test_members_beyond_the_shards_are_spares():
    assert deal(4, 2) == ((0,), (1,), (), ())


COSTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=8)


def longest(dealt, costs):
    return max(len(shards) * cost for shards, cost in zip(dealt, costs, strict=True))


@given(COSTS, st.integers(1, 24))
def test_a_weighted_deal_is_contiguous_and_has_one_carrier_for_every_shard(costs, shards):
    dealt = weighted(costs, shards)
    assert len(dealt) == len(costs)
    assert [shard for part in dealt for shard in part] == list(range(shards))
    assert all(part for part in dealt) or len(costs) > shards, "who carries nothing could never come back"


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.integers(6, 24))
def test_a_weighted_deal_is_never_longer_than_an_even_one(costs, shards):
    assert longest(weighted(costs, shards), costs) <= longest(deal(len(costs), shards), costs)


def test_who_is_slow_carries_less_and_who_is_not_known_one():
    def sizes(*costs):
        return [len(part) for part in weighted(costs, 12)]

    assert sizes(4000, 1000, 1000) == [1, 6, 5]
    assert sizes(1000, 0, 1000) == [6, 1, 5]
    assert sizes(0, 0, 0) == [4, 4, 4]


def test_a_deal_changes_only_for_a_clear_gain():
    even = deal(3, 12)
    assert fluid(even, [1100, 1000, 1000], 12) == even
    assert fluid(even, [1400, 1000, 1000], 12) == even
    assert fluid(even, [2000, 1000, 1000], 12) != even


def test_a_view_begins_evenly_among_equals_and_with_one_shard_for_who_is_new():
    assert begun([1010, 1000, 990], 12) == deal(3, 12)
    assert [len(part) for part in begun([1010, 1000, 0], 12)] == [6, 5, 1]


def test_after_a_view_change_who_is_slow_or_new_gets_less_of_what_is_left():
    slow, quick, new = Position(Step(2), cost=9000), Position(Step(2), ((0,),), cost=1000), Position(Step(2))
    assert [len(part) for part in redeal([slow, quick, new], Step(3), 6)] == [0, 6, 0]


class TestDealsOfAView:
    @staticmethod
    def deals(first=None, members=(A, B)):
        even = deal(len(members), 4)
        return Deals(members, Step(3), first or even, even, ())

    def test_a_deal_changes_when_some_barriers_in_a_row_agree(self):
        deals = self.deals()
        assert [deals.applied(Step(step), (1000, 4000)) for step in range(3, 6)] == [False, False, True]
        assert [len(part) for part in deals.dealt(Step(6))] == [3, 1]

    def test_noise_changes_nothing(self):
        deals = self.deals()
        for step in range(3, 100):
            assert not deals.applied(Step(step), (1000, 4000) if step % 3 else (4000, 1000))

    def test_a_deal_that_has_changed_rests_longer_each_time(self):
        deals, costs, changes = self.deals(), (1000, 4000), []
        for step in range(3, 300):
            if deals.applied(Step(step), costs):
                changes.append(step)
                costs = costs[::-1]
        rests = [b - a for a, b in pairwise(changes)]
        assert rests == [SETTLED * 2, SETTLED * 4, SETTLED_MAX, SETTLED_MAX, SETTLED_MAX][: len(rests)]
        assert len(rests) > 3

    def test_who_becomes_known_does_not_wait_for_that(self):
        deals = self.deals()
        deals.applied(Step(3), (1000, 0))
        assert [deals.applied(Step(step), (1000, 4000)) for step in range(4, 7)] == [False, False, True]

    def test_state_moves_when_the_deal_changes_and_only_then(self):
        deals = self.deals()
        for step in range(3, 6):
            deals.applied(Step(step), (1000, 4000))
        assert deals.moves(Step(6)) == (Move(Shard(2), B, A),)
        deals.applied(Step(6), (1000, 4000))
        assert deals.moves(Step(7)) == ()

    def test_behind_the_open_step_a_view_goes_back_to_its_own_deal(self):
        deals = self.deals(first=((0, 2), (1, 3)))
        deals.applied(Step(3), (0, 0))
        assert deals.moves(Step(4)) == (Move(Shard(1), B, A), Move(Shard(2), A, B))

    def test_the_step_before_the_view_decides_nothing(self):
        deals = self.deals()
        assert not deals.applied(Step(2), (1000, 4000))
        assert deals.dealt(Step(3)) == deal(2, 4)


@given(positions_at())
def test_after_a_view_change_every_shard_has_one_carrier(said):
    shards, positions = said
    dealt = redeal(positions, Step(3), shards)
    assert len(dealt) == len(positions)
    assert carried(dealt) == list(range(shards))


@given(positions_at())
def test_what_is_held_or_computed_stays_where_it_is(said):
    shards, positions = said
    dealt = redeal(positions, Step(3), shards)
    for position, part in zip(positions, dealt, strict=True):
        if position.applied == 2:
            assert {v for partial in position.partials for v in partial} <= set(part)
            assert position.computing is None or position.computing in part


def test_partials_of_another_step_are_not_worth_staying_for():
    behind = Position(Step(1), ((Shard(0),), (Shard(1),)))
    ahead = Position(Step(2), ((Shard(0),),))
    assert redeal([behind, ahead], Step(3), 3) == ((1,), (0, 2))


def test_what_nobody_has_goes_to_whoever_has_least_to_compute():
    busy = Position(Step(2), (), Shard(0))
    free = Position(Step(2), ((Shard(1),),))
    assert redeal([busy, free], Step(3), 4) == ((0, 3), (1, 2))


def test_a_shard_held_twice_stays_with_the_lowest_member():
    both = Position(Step(2), ((Shard(0),),))
    assert redeal([both, both], Step(3), 1) == ((0,), ())


def test_a_shards_state_moves_from_the_lowest_member_that_has_it():
    both = Position(Step(2), (), None, (Shard(0), Shard(1)))
    new = Position(None)
    moves = moves_at_start((A, B, C), (both, both, new), ((0,), (1,), ()), Step(3))
    assert moves == ()
    assert moves_at_start((A, B, C), (both, both, new), ((), (), (0, 1)), Step(3)) == (Move(0, A, C), Move(1, A, C))


def test_who_is_fed_holds_the_state_of_what_it_computed():
    ahead = Position(Step(2), (), None, (Shard(0),))
    behind = Position(Step(1), ((Shard(1),),), None, (Shard(0), Shard(1)))
    assert moves_at_start((A, B), (ahead, behind), ((0,), (1,)), Step(3)) == ()
    assert moves_at_start((A, B), (ahead, behind), ((0, 1), ()), Step(3)) == (Move(1, B, A),)


def test_a_state_that_nobody_has_is_lost_and_said_so():
    alone = Position(Step(2), (), None, (Shard(0),))
    assert moves_at_start((A,), (alone,), ((0, 1),), Step(3)) == (Move(1, None, A),)


def test_before_the_first_step_there_is_no_shard_state():
    assert moves_at_start((A, B), (Position(Step(-1)), Position(Step(-1))), ((0,), (1,)), Step(0)) == ()


def test_between_two_steps_of_a_view_state_follows_the_shard():
    assert moves_between((A, B), ((0, 1), (2,)), ((0,), (1, 2))) == (Move(1, A, B),)


def test_a_view_goes_on_from_the_highest_applied_step():
    positions = {A: Position(Step(4)), B: Position(Step(5)), C: Position(None)}
    assert most_advanced(positions) == 5
    assert start_of(positions, fresh=False) == 5


def test_without_any_state_only_a_fresh_view_can_begin():
    assert start_of({A: Position(None)}, fresh=False) is None
    assert start_of({A: Position(None)}, fresh=True) == -1
