from hypothesis import given
from hypothesis import strategies as st

from orch_core.contracts.ids import Shard, Step, WorkerId
from orch_core.protocol.deal import Move, Position, deal, most_advanced, moves_at_start, moves_between, redeal, start_of
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
