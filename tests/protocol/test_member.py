from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_core.contracts.document import Cause, View, ViewMember
from orch_core.contracts.ids import Shard, Step, ViewNumber, WorkerId
from orch_core.protocol.deal import Position
from orch_core.protocol.member import (
    EVICTED,
    FORMING_DEADLINE_S,
    CloseGroup,
    Ended,
    Exit,
    Fed,
    FormedSeen,
    Greet,
    Greeted,
    GroupClosed,
    Hello,
    HelloReceived,
    Leave,
    LinkBroken,
    Member,
    OpenGroup,
    SendStatus,
    StateHeld,
    Tick,
    ViewSeen,
    make_plan,
)

A, B, C = WorkerId("w0.1"), WorkerId("w1.1"), WorkerId("w2.1")
SHARDS = 4
START = Position(Step(-1))


def view(number, *workers, fresh=False, origin=()):
    members = tuple(ViewMember(w, f"{w}:1") for w in workers)
    return View(ViewNumber(number), members, Cause.START, "a reason", Step(0), 0.0, fresh, origin)


def hello(seen, sender, position=START, **more):
    return Hello(seen, sender, position, **more)


def fed(member, *events, now=0.0):
    """What the last event brought about."""
    effects = []
    for event in events:
        effects = member.handle(event, now)
    return effects


def greeting(me=A, seen=None, position=START):
    member = Member(me, SHARDS)
    fed(member, ViewSeen(seen or view(1, A, B)), GroupClosed(position))
    return member


def opened(me=A, seen=None, position=START):
    seen = seen or view(1, A, B)
    member = greeting(me, seen, position)
    for other in seen.workers:
        if other != me:
            fed(member, HelloReceived(hello(seen, other)), Greeted(seen.number, other))
    return member


def kinds(effects):
    return [type(effect) for effect in effects]


def plan_in(effects):
    return next(e.plan for e in effects if isinstance(e, OpenGroup))


def test_a_view_closes_the_group_before_anything_is_said():
    assert fed(Member(A, SHARDS), ViewSeen(view(1, A, B))) == [CloseGroup()]


def test_a_closed_group_is_followed_by_a_hello_to_every_other():
    effects = fed(Member(A, SHARDS), ViewSeen(view(1, A, B, C)), GroupClosed(START))
    assert effects[0] == Greet(hello(view(1, A, B, C), A), (B, C))


def test_a_group_opens_when_all_hellos_are_in_and_the_own_is_out():
    seen = view(1, A, B, C)
    member = greeting(seen=seen)
    assert not any(
        isinstance(e, OpenGroup) for e in fed(member, HelloReceived(hello(seen, B)), Greeted(seen.number, B))
    )
    assert not any(isinstance(e, OpenGroup) for e in fed(member, HelloReceived(hello(seen, C))))
    assert plan_in(fed(member, Greeted(seen.number, C))).step == 0


def test_a_view_of_one_opens_at_once():
    member = Member(A, SHARDS)
    effects = fed(member, ViewSeen(view(1, A)), GroupClosed(START))
    assert plan_in(effects).first_deal == ((0, 1, 2, 3),)


def test_a_peers_hello_brings_a_view_as_the_leader_does():
    member = Member(A, SHARDS)
    assert fed(member, HelloReceived(hello(view(1, A, B), B))) == [CloseGroup()]
    effects = fed(member, GroupClosed(START), Greeted(ViewNumber(1), B))
    assert plan_in(effects).donor == A


def test_views_may_be_skipped_and_never_go_back():
    member = opened(seen=view(1, A, B))
    assert fed(member, ViewSeen(view(5, A, B))) == [CloseGroup()]
    assert fed(member, ViewSeen(view(4, A, B))) == []
    assert fed(member, ViewSeen(view(5, A, B))) == []
    assert member.view.number == 5


def test_what_belongs_to_a_lower_view_is_dropped():
    old, new = view(1, A, B), view(2, A, B)
    member = greeting(seen=new)
    assert fed(member, HelloReceived(hello(old, B))) == []
    assert fed(member, Greeted(old.number, B)) == []
    assert fed(member, LinkBroken(old.number, B)) == []
    assert fed(member, StateHeld(old.number)) == []
    assert member.broken is None


def test_the_first_hello_of_a_peer_counts():
    seen = view(1, A, B)
    member = greeting(seen=seen)
    fed(member, HelloReceived(hello(seen, B, Position(Step(0)))))
    fed(member, HelloReceived(hello(seen, B, Position(Step(9)))))
    assert plan_in(fed(member, Greeted(seen.number, B))).step == 1


def test_a_hello_of_who_is_no_member_is_dropped():
    seen = view(1, A, B)
    member = greeting(seen=seen)
    assert fed(member, HelloReceived(hello(seen, C))) == []
    assert fed(member, HelloReceived(hello(seen, A))) == []


def test_a_broken_link_ends_the_view_and_is_said():
    member = opened()
    effects = fed(member, LinkBroken(ViewNumber(1), B))
    assert kinds(effects) == [CloseGroup, SendStatus]
    assert (member.broken, member.broken_peers) == (1, (B,))


def test_each_broken_peer_is_said_once():
    member = opened(seen=view(1, A, B, C))
    fed(member, LinkBroken(ViewNumber(1), B))
    assert fed(member, LinkBroken(ViewNumber(1), B)) == []
    assert kinds(fed(member, LinkBroken(ViewNumber(1), C))) == [SendStatus]
    assert member.broken_peers == (B, C)


def test_a_broken_view_never_opens():
    seen = view(1, A, B, C)
    member = greeting(seen=seen)
    fed(member, LinkBroken(seen.number, B))
    for peer in (B, C):
        assert not any(isinstance(e, OpenGroup) for e in fed(member, HelloReceived(hello(seen, peer))))
        assert not any(isinstance(e, OpenGroup) for e in fed(member, Greeted(seen.number, peer)))


def test_a_link_that_breaks_while_the_group_is_being_closed_breaks_the_view():
    member = Member(A, SHARDS)
    seen = view(1, A, B)
    fed(member, HelloReceived(hello(seen, B)), LinkBroken(seen.number, B))
    assert member.broken == 1
    assert fed(member, GroupClosed(START)) == []


def test_the_next_view_makes_good_what_was_broken():
    member = opened()
    fed(member, LinkBroken(ViewNumber(1), B))
    fed(member, ViewSeen(view(2, A, B)))
    assert (member.broken, member.broken_peers) == (None, ())


def test_who_is_missed_past_the_deadline_is_reported():
    seen = view(1, A, B, C)
    member = greeting(seen=seen)
    fed(member, HelloReceived(hello(seen, B)), Greeted(seen.number, B))
    assert fed(member, Tick(), now=FORMING_DEADLINE_S / 2) == []
    assert fed(member, Tick(), now=FORMING_DEADLINE_S) == [SendStatus()]
    assert member.unreachable == (C,)
    assert member.deadline == 2 * FORMING_DEADLINE_S


def test_a_report_is_withdrawn_when_the_hello_comes():
    seen = view(1, A, B, C)
    member = greeting(seen=seen)
    fed(member, Tick(), now=FORMING_DEADLINE_S)
    fed(member, Greeted(seen.number, B))
    assert member.unreachable == (B, C)
    assert SendStatus() in fed(member, HelloReceived(hello(seen, B)))
    assert member.unreachable == (C,)


def test_an_open_group_has_no_deadline():
    assert opened().deadline is None


def test_a_member_says_that_it_holds_the_state_and_from_where():
    member = opened()
    assert member.opened is None
    assert fed(member, StateHeld(ViewNumber(1))) == [SendStatus()]
    assert (member.opened, member.opened_step) == (1, 0)


def test_who_is_left_out_ends_without_running_user_code():
    member = opened()
    effects = fed(member, ViewSeen(view(2, B)))
    assert kinds(effects) == [CloseGroup, Exit]
    assert effects[1].code == EVICTED
    assert "a reason" in effects[1].reason


def test_who_is_not_yet_a_member_waits():
    assert fed(Member(C, SHARDS), ViewSeen(view(1, A, B))) == []


def test_who_leaves_goes_when_the_others_hold_the_state():
    member = opened()
    assert fed(member, Leave()) == [SendStatus()]
    assert member.leaving
    assert fed(member, ViewSeen(view(2, B))) == [CloseGroup()]
    assert fed(member, FormedSeen(ViewNumber(1))) == []
    assert fed(member, FormedSeen(ViewNumber(2)))[0].code == 0


def test_who_was_left_out_on_its_way_can_be_taken_back():
    member = opened()
    fed(member, Leave(), ViewSeen(view(2, B)))
    again = view(3, A, C, fresh=True)
    assert fed(member, ViewSeen(again)) == [CloseGroup()]
    fed(member, GroupClosed(Position(Step(4))), HelloReceived(hello(again, C, Position(None))))
    assert plan_in(fed(member, Greeted(again.number, C))).without_state == (C,)
    assert fed(member, FormedSeen(ViewNumber(3))) == []


def test_who_comes_back_with_an_old_state_gives_way_and_nobody_opens_that_view():
    seen = view(3, A, C, fresh=True)
    late = greeting(A, seen, Position(Step(4)))
    fed(late, Leave(), HelloReceived(hello(seen, C, Position(Step(6)))))
    effects = fed(late, Greeted(seen.number, C))
    assert (kinds(effects), effects[1].code) == ([CloseGroup, Exit], 0)
    ahead = greeting(C, seen, Position(Step(6)))
    assert fed(ahead, HelloReceived(hello(seen, A, Position(Step(4)))), Greeted(seen.number, A)) == []


def test_who_leaves_before_it_is_a_member_goes_at_once():
    assert fed(Member(A, SHARDS), Leave())[0].code == EVICTED


def test_nothing_matters_after_the_end():
    member = opened()
    assert fed(member, Ended()) == [CloseGroup()]
    assert fed(member, ViewSeen(view(2, A, B)), LinkBroken(ViewNumber(1), B), Tick()) == []


def test_a_member_of_view_one_holds_state_zero_even_if_it_skipped_that():
    seen = view(2, A, origin=(A, B))
    member = Member(A, SHARDS)
    effects = fed(member, ViewSeen(seen), GroupClosed(Position(None)))
    assert plan_in(effects).without_state == ()


def test_nobody_begins_without_a_state_unless_the_view_is_fresh():
    member = Member(A, SHARDS)
    assert not any(isinstance(e, OpenGroup) for e in fed(member, ViewSeen(view(2, A)), GroupClosed(Position(None))))
    fresh = view(3, A, fresh=True)
    assert plan_in(fed(member, ViewSeen(fresh), GroupClosed(Position(None)))).step == 0


def test_in_a_fresh_view_a_state_is_better_than_none():
    plan = make_plan(view(3, A, B, fresh=True), A, {A: Position(None), B: Position(Step(7))}, SHARDS)
    assert (plan.step, plan.donor, plan.without_state) == (8, B, (A,))


def test_other_kernels_are_refused():
    seen = view(1, A, B)
    member = Member(A, SHARDS, fingerprint="avx2")
    fed(member, ViewSeen(seen), GroupClosed(START))
    effects = fed(member, HelloReceived(hello(seen, B, fingerprint="avx512")))
    assert effects[0].code == 2
    assert "avx512" in effects[0].reason


@pytest.mark.parametrize(
    ("theirs", "words"),
    [(("w float32 [3]",), "w float32 [3]"), (("w float32 [2]", "b float32 [1]"), "only w1.1 has b")],
)
def test_another_model_is_refused_by_its_first_tensor(theirs, words):
    seen = view(1, A, B)
    member = Member(A, SHARDS, model=("w float32 [2]",))
    fed(member, ViewSeen(seen), GroupClosed(START))
    exits = fed(member, HelloReceived(hello(seen, B, model=theirs)))
    assert exits[0].code == 2
    assert words in exits[0].reason


def test_too_few_members_pause():
    plan = make_plan(view(2, A), A, {A: Position(Step(3))}, SHARDS, min_workers=2)
    assert plan.paused


def test_the_donor_is_the_lowest_member_at_the_highest_step():
    positions = {A: Position(Step(4)), B: Position(Step(5)), C: Position(Step(5))}
    plan = make_plan(view(2, A, B, C), A, positions, SHARDS)
    assert (plan.donor, plan.behind, plan.without_state, plan.step) == (B, (A,), (), 6)


any_position = st.builds(
    Position,
    st.sampled_from([Step(4), Step(5), None]),
    st.just(()),
    st.none() | st.integers(0, SHARDS - 1).map(Shard),
    st.frozensets(st.integers(0, SHARDS - 1).map(Shard)).map(lambda s: tuple(sorted(s))),
)


@given(st.tuples(any_position, any_position, any_position))
def test_all_members_compute_the_same_plan(said):
    seen = view(2, A, B, C)
    positions = dict(zip(seen.workers, said, strict=True))
    plans = [make_plan(seen, me, positions, SHARDS) for me in seen.workers]
    if all(p.applied is None for p in said):
        assert plans == [None, None, None]
        return
    assert {replace(plan, me=A) for plan in plans} == {plans[0]}
    carried = sorted(v for part in plans[0].first_deal for v in part)
    assert carried == list(range(SHARDS))
    assert {plans[0].donor}.isdisjoint((*plans[0].behind, *plans[0].without_state))


events = st.one_of(
    st.builds(
        lambda n, ws: ViewSeen(view(n, *ws)), st.integers(1, 4), st.sampled_from([(A, B), (A,), (B,), (A, B, C)])
    ),
    st.builds(
        lambda n, s, p: HelloReceived(hello(view(n, A, B), s, p)),
        st.integers(1, 4),
        st.sampled_from([A, B, C]),
        any_position,
    ),
    st.builds(lambda n, p: Greeted(ViewNumber(n), p), st.integers(1, 4), st.sampled_from([B, C])),
    st.builds(lambda n, p: LinkBroken(ViewNumber(n), p), st.integers(1, 4), st.sampled_from([B, C])),
    st.builds(lambda n: StateHeld(ViewNumber(n)), st.integers(1, 4)),
    st.builds(lambda n: FormedSeen(ViewNumber(n)), st.integers(1, 4)),
    st.builds(GroupClosed, any_position),
    st.sampled_from([Tick(), Leave(), Ended()]),
)


@given(st.lists(events, max_size=30))
def test_remote_input_never_raises_and_views_only_grow(happening):
    member = Member(A, SHARDS)
    number, greeted, now = 0, set(), 0.0
    for event in happening:
        now += 0.3
        for effect in member.handle(event, now):
            if isinstance(effect, Greet):
                assert effect.hello.view.number not in greeted, "one hello per view"
                greeted.add(effect.hello.view.number)
            if isinstance(effect, OpenGroup):
                assert effect.plan.view.number in greeted, "no group without a hello"
        seen = member.view.number if member.view is not None else 0
        assert seen >= number
        number = seen


def taken_in(had=3):
    """A follower that has results up to `had`, at the view in which A and B take it in."""
    seen = replace(view(2, A, B, C), joined=1)
    member = Member(C, SHARDS)
    fed(member, Fed(Step(had)))
    assert fed(member, ViewSeen(seen)) == []
    return member, seen


def test_a_follower_that_is_taken_in_greets_when_all_hellos_tell_that_it_is_near_enough():
    member, seen = taken_in(had=3)
    assert fed(member, HelloReceived(hello(seen, A, Position(Step(4))))) == []
    assert kinds(fed(member, HelloReceived(hello(seen, B, Position(Step(3)))))) == [CloseGroup]
    effects = fed(member, GroupClosed(Position(Step(3))))
    assert next(e for e in effects if isinstance(e, Greet)).hello.position == Position(Step(3))


def test_a_follower_that_is_too_far_behind_takes_results_until_it_is_not():
    member, seen = taken_in(had=1)
    for peer in (A, B):
        assert fed(member, HelloReceived(hello(seen, peer, Position(Step(4))))) == []
    assert fed(member, Fed(Step(2))) == []
    assert kinds(fed(member, Fed(Step(3)))) == [CloseGroup]


def test_a_follower_greets_from_where_it_is_when_the_deadline_passes():
    member, _ = taken_in(had=1)
    assert member.deadline == FORMING_DEADLINE_S
    assert kinds(fed(member, Tick(), now=FORMING_DEADLINE_S)) == [CloseGroup]


def test_a_follower_does_not_wait_for_another_that_joins_with_it():
    seen = replace(view(2, A, B, C), joined=2)
    member = Member(C, SHARDS)
    fed(member, Fed(Step(3)), ViewSeen(seen))
    assert kinds(fed(member, HelloReceived(hello(seen, A, Position(Step(3)))))) == [CloseGroup]


def test_a_follower_goes_on_taking_results_when_the_view_that_takes_it_in_breaks():
    member, seen = taken_in(had=1)
    assert kinds(fed(member, LinkBroken(seen.number, A))) == [SendStatus]
    later = replace(view(3, B, C), joined=0)
    assert fed(member, ViewSeen(later)) == []
    assert fed(member, HelloReceived(hello(later, B, Position(Step(3))))) == []
    assert kinds(fed(member, Fed(Step(2)))) == [CloseGroup]


def test_who_has_greeted_once_closes_at_once_from_then_on():
    member, seen = taken_in(had=3)
    for peer in (A, B):
        fed(member, HelloReceived(hello(seen, peer, Position(Step(3)))))
    fed(member, GroupClosed(Position(Step(3))))
    assert kinds(fed(member, ViewSeen(view(3, A, C)))) == [CloseGroup]
