"""The machine, rule by rule. Numbers are sections of the Raft paper (extended version), "thesis" is Ongaro's."""

import dataclasses
from collections.abc import Callable

import pytest

from orch_consensus_raft.messages import (
    Append,
    AppendReply,
    Entry,
    HardState,
    Message,
    Saved,
    Snapshot,
    VoteReply,
    VoteRequest,
)
from orch_consensus_raft.node import (
    TAIL_ENTRIES_LIMIT,
    Accept,
    Apply,
    Drop,
    Effect,
    Event,
    Lead,
    Node,
    PeerConnected,
    PeerReset,
    Persist,
    Persisted,
    Proposal,
    Received,
    Refuse,
    Role,
    Send,
    StepDown,
    Tick,
    Timing,
)
from orch_consensus_raft.simulation import InvariantBroken
from orch_core.contracts.consensus import Committed
from orch_core.contracts.ids import CoordinatorId, Term

A, B, C, D, E = (CoordinatorId(f"c{number}") for number in range(5))


def follower(
    me: CoordinatorId = B,
    peers: tuple[CoordinatorId, ...] = (A, B, C),
    *,
    term: int = 1,
    vote: CoordinatorId | None = None,
    entries: tuple[Entry, ...] = (),
    commit: int = 0,
) -> Node:
    saved = Saved(HardState(Term(term), vote, commit), entries=entries)
    return Node(me, peers, saved, 0.0, random=lambda: 0.0)


def entries(*terms: int) -> tuple[Entry, ...]:
    return tuple(Entry(Term(term), b"%d" % number) for number, term in enumerate(terms, 1))


def heartbeat(term: int = 1, *, prev: tuple[int, int] = (0, 0), commit: int = 0, quorum: bool = True) -> Append:
    return Append(Term(term), prev[0], Term(prev[1]), (), commit, quorum)


def sends(effects: tuple[Effect, ...]) -> list[Message]:
    """What is sent, whatever it waits for."""
    found: list[Message] = []
    for effect in effects:
        if isinstance(effect, Send):
            found.append(effect.message)
        elif isinstance(effect, Persist):
            found += [send.message for send in effect.then]
    return found


def persisted(effects: tuple[Effect, ...]) -> Persist:
    (persist,) = (effect for effect in effects if isinstance(effect, Persist))
    return persist


def sync(node: Node, effects: tuple[Effect, ...], now: float) -> tuple[Effect, ...]:
    return node.handle(Persisted(persisted(effects).sequence), now)


# ---- 5.1, 5.2: terms and votes ---------------------------------------------------------------------------------------


def test_5_1_a_higher_term_is_entered_and_durable_before_any_reply() -> None:
    effects = follower(term=1).handle(Received(A, heartbeat(term=4)), 0.01)
    assert persisted(effects).state.term == 4
    assert not any(isinstance(effect, Send) for effect in effects)
    assert persisted(effects).then == (Send(A, AppendReply(Term(4), True, 0)),)


def test_5_1_a_lower_term_is_refused_with_the_present_one() -> None:
    effects = follower(term=3).handle(Received(A, heartbeat(term=2)), 0.01)
    assert sends(effects) == [AppendReply(Term(3), False, 0)]


def test_5_2_a_vote_is_durable_before_it_is_given() -> None:
    effects = follower(term=1).handle(Received(A, VoteRequest(Term(2), 0, Term(0), pre=False)), 0.01)
    assert persisted(effects).state == HardState(Term(2), A)
    assert persisted(effects).then == (Send(A, VoteReply(Term(2), True, pre=False)),)


def test_5_2_one_vote_per_term_also_after_a_restart() -> None:
    node = follower(term=2, vote=A)
    assert sends(node.handle(Received(C, VoteRequest(Term(2), 9, Term(2), False)), 0.01)) == [
        VoteReply(Term(2), False, False)
    ]
    assert sends(node.handle(Received(A, VoteRequest(Term(2), 0, Term(0), False)), 0.02)) == [
        VoteReply(Term(2), True, False)
    ]


def test_5_2_a_candidate_counts_its_own_vote_when_it_is_durable() -> None:
    node = follower(A, (A, B, C, D, E))
    node.handle(Tick(), 0.1)
    node.handle(Tick(), 0.2)
    node.handle(Tick(), 0.3)
    for peer in (B, C):
        effects = node.handle(Received(peer, VoteReply(Term(2), True, pre=True)), 0.31)
    assert persisted(effects).state == HardState(Term(2), A)
    assert [send.message for send in persisted(effects).then] == [VoteRequest(Term(2), 0, Term(0), False)] * 4
    for peer in (B, C):
        node.handle(Received(peer, VoteReply(Term(2), True, pre=False)), 0.32)
    assert node.role is Role.CANDIDATE
    sync(node, effects, 0.33)
    assert node.role is Role.LEADER


def test_5_2_votes_of_an_earlier_campaign_do_not_count() -> None:
    node = follower(A)
    for tenth in range(1, 4):
        node.handle(Tick(), tenth / 10)
    effects = node.handle(Received(B, VoteReply(Term(2), True, pre=True)), 0.31)
    sync(node, effects, 0.32)
    node.handle(Received(B, VoteReply(Term(1), True, pre=False)), 0.33)
    node.handle(Received(C, VoteReply(Term(2), True, pre=True)), 0.33)
    assert node.role is Role.CANDIDATE


def test_5_2_the_same_vote_twice_is_one_vote() -> None:
    node = follower(A, (A, B, C, D, E))
    for tenth in range(1, 4):
        node.handle(Tick(), tenth / 10)
    for _ in range(3):
        node.handle(Received(B, VoteReply(Term(2), True, pre=True)), 0.31)
    assert node.role is Role.PRECANDIDATE


def test_5_2_a_leader_speaks_at_once_and_at_every_heartbeat(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    assert three[0].role is Role.LEADER
    three.wait(0, 0.05)
    assert [(receiver, type(message)) for _, receiver, message in three.wire] == [(B, Append), (C, Append)]


def test_5_2_a_candidate_follows_the_leader_of_its_term() -> None:
    node = follower(A)
    for tenth in range(1, 4):
        node.handle(Tick(), tenth / 10)
    node.handle(Received(B, VoteReply(Term(2), True, pre=True)), 0.31)
    node.handle(Received(C, heartbeat(term=2)), 0.32)
    assert (node.role, node.leader) == (Role.FOLLOWER, C)


@pytest.mark.parametrize(("count", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_5_2_a_majority_is_more_than_half(count: int, majority: int) -> None:
    assert follower(A, (A, B, C, D, E)[:count])._majority() == majority


# ---- 5.3: replication ------------------------------------------------------------------------------------------------


def test_5_3_entries_are_durable_before_they_are_acknowledged() -> None:
    effects = follower().handle(Received(A, Append(Term(1), 0, Term(0), entries(1, 1), 0, True)), 0.01)
    persist = persisted(effects)
    assert (persist.first, persist.entries) == (1, entries(1, 1))
    assert persist.then == (Send(A, AppendReply(Term(1), True, 2)),)


def test_5_3_entries_with_an_unknown_predecessor_are_refused() -> None:
    node = follower(entries=entries(1))
    refused = Append(Term(1), 2, Term(1), entries(1), 0, True)
    assert sends(node.handle(Received(A, refused), 0.01)) == [AppendReply(Term(1), False, 1)]
    other_term = Append(Term(3), 1, Term(2), entries(3), 0, True)
    assert sends(node.handle(Received(A, other_term), 0.02)) == [AppendReply(Term(3), False, 0)]


def test_5_3_a_conflicting_tail_is_replaced() -> None:
    node = follower(term=3, entries=entries(1, 2, 2))
    new = Entry(Term(3), b"new")
    persist = persisted(node.handle(Received(A, Append(Term(3), 1, Term(1), (new,), 0, True)), 0.01))
    assert (persist.first, persist.entries) == (2, (new,))
    assert node.log.tail == (*entries(1), new)


def test_5_3_a_late_message_does_not_shorten_the_log() -> None:
    node = follower(entries=entries(1, 1, 1))
    effects = node.handle(Received(A, Append(Term(1), 0, Term(0), entries(1), 0, True)), 0.01)
    assert node.log.last_index == 3
    assert sends(effects) == [AppendReply(Term(1), True, 1)]


def test_5_3_a_follower_commits_only_what_it_knows_to_be_the_leaders() -> None:
    node = follower(term=3, entries=entries(1, 2, 2))
    node.handle(Received(A, Append(Term(3), 1, Term(1), (), 3, True)), 0.01)
    assert node.log.base.index == 1


def test_5_3_an_acknowledgement_waits_for_an_earlier_sync_of_the_same_entries() -> None:
    node, append = follower(), Append(Term(1), 0, Term(0), entries(1), 0, True)
    first = node.handle(Received(A, append), 0.01)
    again = node.handle(Received(A, append), 0.02)
    assert not persisted(again).writes
    assert persisted(again).then == (Send(A, AppendReply(Term(1), True, 1)),)
    node.handle(Persisted(persisted(again).sequence), 0.03)
    late = node.handle(Received(A, append), 0.04)
    assert late == (Send(A, AppendReply(Term(1), True, 1)),)
    assert persisted(first).sequence < persisted(again).sequence


def test_5_3_the_leader_sends_while_its_own_disk_works(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    effects = three[0].handle(Proposal(three[0].term, b"new"), three.now)
    kinds = [type(effect) for effect in effects]
    assert kinds == [Send, Send, Persist, Accept]


def test_5_3_a_refused_leader_goes_back_and_then_on(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    for number in range(3):
        three.feed(0, Proposal(three[0].term, b"%d" % number))
        three.deliver(0, 1)
    assert three[2].log.last_index == 1
    three.wait(0, 0.05)
    three.deliver()
    assert three[2].log.base == three[0].log.base
    assert three[2].log.base.document == Committed(b"2", three[0].term, 4)


def test_5_3_refusals_of_appends_under_way_bring_one_correction(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    three.feed(0, Proposal(three[0].term, b"lost"))
    three.deliver(0, 1)
    refusal = Received(C, AppendReply(three[0].term, False, 1))
    assert len(sends(three[0].handle(refusal, three.now))) == 1
    assert sends(three[0].handle(refusal, three.now)) == []


# ---- 5.4: safety -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [(3, 2, True), (9, 1, False), (2, 2, False), (4, 2, True), (1, 3, True), (0, 0, False)],
)
def test_5_4_1_a_vote_needs_a_log_at_least_as_new(last_index: int, last_term: int, granted: bool) -> None:
    node = follower(term=4, entries=entries(1, 2, 2))
    for pre in (True, False):
        request = VoteRequest(Term(5), last_index, Term(last_term), pre)
        assert [reply.granted for reply in sends(node.handle(Received(A, request), 0.01))] == [granted]


def test_5_4_1_a_term_is_entered_even_if_the_vote_is_refused() -> None:
    node = follower(term=4, entries=entries(1))
    node.handle(Received(A, VoteRequest(Term(7), 0, Term(0), False)), 0.01)
    assert (node.term, node.vote) == (7, None)


class WithoutFirstEntry(Node):
    """The paper's figure 8 has leaders that begin their term without an entry of their own."""

    def _first_entry(self) -> int:
        self._leads = True
        self._broadcast()
        return self.log.last_index


class CommitsOlderTerms(WithoutFirstEntry):
    def _may_commit(self, index: int) -> bool:
        return True


def figure_8(table: Callable, make: Callable[..., Node]) -> Node:
    """Steps a to d of figure 8; returns S1 (here c0) as it was at step c."""
    five = table(5, make)
    five.elect(0, 1, 2, 3, 4)
    old = five[0].term
    five.wire.clear()
    five.feed(0, Proposal(old, b"of term 2"))  # a: only S2 gets it
    five.deliver(0, 1, only=Append)
    five.restart(A)  # b: S1 crashes; S5 leads with the votes of S3 and S4, and keeps another entry to itself
    five.elect(4, 2, 3, only=(VoteRequest, VoteReply))
    assert five[4].role is Role.LEADER
    five.wire.clear()
    five.feed(4, Proposal(five[4].term, b"of term 3"))
    five.wire.clear()
    five.restart(E)  # c: S5 crashes; S1 leads again and brings its old entry to a majority
    five.restart(A)
    five.elect(0, 1, 2, only=(VoteRequest, VoteReply))  # meets the term that it missed
    five.elect(0, 1, 2, only=(VoteRequest, VoteReply))
    at_c = five[0]
    assert at_c.role is Role.LEADER
    five.wait(0, 0.05)
    five.deliver(0, 1, 2)
    five.restart(A)  # d: S1 crashes; S5 leads with the votes of S2, S3, S4, and overwrites the entry
    five.elect(4, 1, 2, 3)
    five.elect(4, 1, 2, 3)
    assert (five[4].role is Role.LEADER) == (at_c.log.base.index == 0)
    return at_c


def test_5_4_2_figure_8_entries_of_older_terms_are_not_committed_by_counting(table: Callable) -> None:
    at_c = figure_8(table, WithoutFirstEntry)
    assert at_c.log.base.index == 0


def test_5_4_2_figure_8_a_leader_that_counts_older_entries_loses_a_commit(table: Callable) -> None:
    with pytest.raises(InvariantBroken, match=r"Safety|Completeness"):
        figure_8(table, CommitsOlderTerms)


def test_5_4_2_figure_8_a_first_entry_of_the_own_term_commits_the_older_ones(table: Callable) -> None:
    at_c = figure_8(table, Node)
    assert at_c.log.base.document is not None
    assert at_c.log.base.document.document == b"of term 2"


# ---- 6, 7, 8 ---------------------------------------------------------------------------------------------------------


def test_6_a_replica_that_hears_a_leader_refuses_votes_and_keeps_its_term() -> None:
    node = follower()
    node.handle(Received(A, heartbeat()), 0.0)
    for pre in (True, False):
        effects = node.handle(Received(C, VoteRequest(Term(9), 9, Term(9), pre)), 0.05)
        assert sends(effects) == [VoteReply(Term(1), False, pre)]
    assert node.term == 1


def test_7_a_follower_behind_the_snapshot_gets_it_with_the_entries_behind_it(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1)
    for number in range(20):
        three.feed(0, Proposal(three[0].term, b"%d" % number))
        three.deliver(0, 1)
    assert three[0].log.tail == ()
    three.feed(0, PeerConnected(C))
    three.deliver(0, 2)
    assert three[2].log.base == three[0].log.base
    assert three.disks[C].read().snapshot == three[0].log.base


def test_7_a_snapshot_keeps_the_tail_that_belongs_to_it() -> None:
    node = follower(entries=entries(1, 1, 1))
    snapshot = Snapshot(2, Term(1), Committed(b"2", Term(1), 2))
    node.handle(Received(A, Append(Term(1), 2, Term(1), (), 2, True, snapshot)), 0.01)
    assert (node.log.base, node.log.last_index) == (snapshot, 3)


def test_7_a_snapshot_replaces_a_tail_that_does_not_belong_to_it() -> None:
    node = follower(term=3, entries=entries(1, 1, 1))
    snapshot = Snapshot(2, Term(2), Committed(b"other", Term(2), 2))
    effects = node.handle(Received(A, Append(Term(3), 2, Term(2), (), 2, True, snapshot)), 0.01)
    assert (node.log.base, node.log.last_index) == (snapshot, 2)
    assert persisted(effects).snapshot == snapshot
    assert Apply(snapshot) in effects


def test_7_the_log_holds_nothing_but_the_snapshot_and_what_is_not_committed(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    for number in range(100):
        three.feed(0, Proposal(three[0].term, b"%d" % number))
        three.deliver()
        assert len(three[0].log.tail) <= 1
    assert [len(node.log.tail) for node in three.nodes.values()] == [0, 0, 0]


def test_8_a_leader_may_write_when_the_first_entry_of_its_term_is_committed(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, only=(VoteRequest, VoteReply))
    leader = three[0]
    assert leader.role is Role.LEADER
    assert Refuse(f"this replica does not lead term {leader.term}") in three.feed(0, Proposal(leader.term, b"early"))
    three.wait(0, 0.05)
    three.deliver(0, 1)
    assert (A, Lead(leader.term, None)) in three.news
    assert Accept(2) in three.feed(0, Proposal(leader.term, b"now"))


def test_8_a_new_leader_knows_the_newest_document(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    three.feed(0, Proposal(three[0].term, b"kept"))
    three.deliver()
    document, three.news = three[0].log.base.document, []
    three.feed(1, PeerReset(A))
    three.feed(2, PeerReset(A))
    three.deliver(1, 2)
    assert (B, Lead(three[1].term, document)) in three.news


# ---- thesis 6.2, 9.6 and the reset -----------------------------------------------------------------------------------


def test_thesis_9_6_a_rehearsal_changes_no_term_on_either_side() -> None:
    node = follower(A)
    for tenth in range(1, 4):
        effects = node.handle(Tick(), tenth / 10)
    assert sends(effects) == [VoteRequest(Term(2), 0, Term(0), pre=True)] * 2
    assert node.term == 1
    voter = follower(B)
    assert voter.handle(Received(A, VoteRequest(Term(2), 0, Term(0), pre=True)), 0.3) == (
        Send(A, VoteReply(Term(2), True, pre=True)),
    )
    assert (voter.term, voter.vote) == (1, None)


def test_thesis_9_6_a_replica_that_was_cut_off_does_not_depose_the_leader(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    term = three[0].term
    three.wait(2, 3.0)
    three.wire.clear()
    for _ in range(10):
        three.wait(0, 0.05)
        three.deliver(0, 1)
    three.wait(2, 0.6)
    three.deliver()
    three.wait(0, 0.05)
    three.deliver()
    assert (three[0].role, three[0].term, three[2].leader) == (Role.LEADER, term, A)


def test_thesis_6_2_a_leader_that_hears_no_majority_steps_down(table: Callable) -> None:
    five = table(5)
    five.elect(0, 1, 2, 3, 4)
    for _ in range(12):
        five.wait(0, 0.05)
        five.deliver(0, 1, 2)
    assert five[0].role is Role.LEADER
    for _ in range(8):
        five.wait(0, 0.05)
        five.deliver(0, 1)
    assert (five[0].role, five[0].leader) == (Role.FOLLOWER, None)
    assert any(isinstance(effect, StepDown) for _, effect in five.news)


def test_a_reset_connection_of_the_leader_brings_an_election_at_once_the_second_in_rank_waits(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    assert sends(three[1].handle(PeerReset(A), three.now)) == [VoteRequest(Term(2), 1, Term(1), pre=True)] * 2
    assert sends(three[2].handle(PeerReset(A), three.now)) == []
    assert three[2].deadline == pytest.approx(three.now + 0.015)


def test_a_rehearsal_that_comes_before_the_news_of_the_reset_is_answered_again(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    three.feed(1, PeerReset(A))
    three.deliver(1, 2)
    assert three[1].role is Role.PRECANDIDATE
    assert VoteReply(Term(2), True, pre=True) in sends(three.feed(2, PeerReset(A)))
    three.deliver(1, 2)
    assert three[1].role is Role.LEADER


def test_of_two_that_rehearse_at_one_time_the_first_in_rank_goes_on(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    three.feed(2, PeerReset(A))
    three.wait(2, 0.05)
    three.feed(1, PeerReset(A))
    assert (three[1].role, three[2].role) == (Role.PRECANDIDATE, Role.PRECANDIDATE)
    three.deliver(1, 2)
    assert (three[1].role, three[2].role, three[2].leader) == (Role.LEADER, Role.FOLLOWER, B)
    assert three[1].term == 2


def test_who_grants_a_rehearsal_late_holds_its_own_back(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    three.feed(2, PeerReset(A))
    three.wait(2, 0.05)
    three.deliver(1, 2)
    granted = sends(three.feed(1, PeerReset(A)))
    assert granted == [VoteReply(Term(2), True, pre=True)]
    three.deliver(1, 2)
    assert (three[2].role, three[1].leader) == (Role.LEADER, C)


def test_a_reset_connection_of_a_follower_disturbs_nobody(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    assert three[1].handle(PeerReset(C), three.now) == ()
    assert three[0].handle(PeerReset(C), three.now) == ()
    assert (three[1].leader, three[0].role) == (A, Role.LEADER)


def test_a_reset_connection_of_a_living_leader_is_mended_by_its_next_word(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    three.feed(1, PeerReset(A))
    three.deliver()
    three.wait(0, 0.05)
    three.deliver()
    assert (three[0].role, three[1].role, three[1].leader) == (Role.LEADER, Role.FOLLOWER, A)


def test_replicas_that_have_just_met_elect_one_without_waiting_for_the_timeout(table: Callable) -> None:
    three = table(3)
    for me in range(3):
        for peer in three.ids:
            if peer != three.ids[me]:
                three.feed(me, PeerConnected(peer))
    three.wait(0, 0.05)
    three.deliver()
    assert three[0].role is Role.LEADER


# ---- time ------------------------------------------------------------------------------------------------------------


def test_a_follower_that_was_stalled_does_not_campaign_at_once() -> None:
    node = follower()
    node.handle(Received(A, heartbeat()), 0.0)
    assert node.handle(Tick(), 60.0) == ()
    assert node.leader == A


def test_a_leader_that_was_stalled_does_not_depose_itself_but_claims_no_quorum(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    three.wait(0, 0.05)
    three.deliver()
    assert three[0].in_touch(three.now)
    three.now += 60
    assert not three[0].in_touch(three.now)
    three.feed(0, Tick())
    assert three[0].role is Role.LEADER
    three.deliver()
    assert three[0].in_touch(three.now)


def test_a_follower_of_a_leader_without_quorum_claims_none() -> None:
    node = follower(B, (A, B, C, D, E))
    node.handle(Received(A, heartbeat(quorum=False)), 0.0)
    assert not node.in_touch(0.0)
    node.handle(Received(A, heartbeat(quorum=True)), 0.01)
    assert node.in_touch(0.05)
    assert not node.in_touch(0.4)


def test_the_deadline_is_never_further_than_the_clock_may_advance() -> None:
    node = Node(A, (A, B, C), Saved(), 5.0, random=lambda: 0.5, timing=Timing(election_s=20.0))
    assert node.deadline == pytest.approx(5.1)


def test_a_lone_replica_leads_at_once() -> None:
    node = Node(A, (A,), Saved(), 0.0, random=lambda: 0.5)
    assert node.deadline == 0.0
    vote = node.handle(Tick(), 0.0)
    first = sync(node, vote, 0.0)
    assert Lead(Term(1), None) in sync(node, first, 0.0)
    assert node.in_touch(9.0)


# ---- what comes from outside -----------------------------------------------------------------------------------------


def test_a_stranger_is_dropped() -> None:
    effects = follower().handle(Received(CoordinatorId("x"), heartbeat(term=9)), 0.01)
    assert [type(effect) for effect in effects] == [Drop]


def test_a_second_leader_of_a_term_is_dropped(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    effects = three[0].handle(Received(B, heartbeat(term=three[0].term)), three.now)
    assert any(isinstance(effect, Drop) for effect in effects)
    assert three[0].role is Role.LEADER


def test_no_message_makes_a_node_raise(table: Callable) -> None:
    huge = 2**64 - 1
    strange: list[Message] = [
        AppendReply(Term(1), True, huge),
        AppendReply(Term(1), False, huge),
        VoteReply(Term(huge), True, pre=True),
        VoteRequest(Term(2), huge, Term(huge), pre=True),
        Append(Term(2), huge, Term(0), (), huge, True),
        Append(Term(2), 0, Term(0), (Entry(Term(1), b""),) * 3, huge, False),
        Append(Term(2), huge, Term(2), (), 0, True, Snapshot(huge, Term(2), None)),
        Append(Term(2), 0, Term(0), (Entry(Term(2), b""),) * 3, 1, False),
    ]
    for role in range(2):
        for message in strange:
            three = table(3)
            three.elect(0, 1, 2)
            three[role].handle(Received(C, message), three.now)
            three[role].handle(Received(C, message), three.now + 0.05)
            three[role].handle(Tick(), three.now + 0.1)


def test_a_leader_that_cannot_commit_refuses_more_than_so_many_proposals(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    answers = [three[0].handle(Proposal(three[0].term, b"x"), three.now)[-1] for _ in range(TAIL_ENTRIES_LIMIT + 1)]
    assert [type(answer) for answer in answers] == [Accept] * TAIL_ENTRIES_LIMIT + [Refuse]


def test_a_proposal_of_another_term_is_refused(table: Callable) -> None:
    three = table(3)
    three.elect(0, 1, 2)
    assert isinstance(three[0].handle(Proposal(Term(three[0].term - 1), b"x"), three.now)[-1], Refuse)
    assert isinstance(three[1].handle(Proposal(three[0].term, b"x"), three.now)[-1], Refuse)


def test_events_of_one_kind_are_closed() -> None:
    node = follower()
    with pytest.raises(AssertionError):
        node.handle(object(), 0.0)  # type: ignore[arg-type]
    assert dataclasses.is_dataclass(Tick)
    assert Event is not None
