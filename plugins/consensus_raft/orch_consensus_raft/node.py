"""The Raft machine: values in, values out. No clock, disk, network or random of its own.

**Theory** (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", extended version; figures and
sections below are its own; "thesis" is Ongaro's dissertation).

Time is cut into *terms*. In each, at most one replica leads: it asked all others for their vote, and a majority gave
it; a replica gives one vote per term (5.2) and only to who has a log at least as new as its own (5.4.1). The leader
alone appends to the log and sends its entries to the others, each time with the index and term of the entry before
them; who does not have that entry refuses, so equal (index, term) means equal logs up to there (5.3). An entry is
committed when a majority holds it *and* it is of the leader's own term; older ones are committed with it, never by
counting (5.4.2, figure 8). So a leader starts its term with an entry of its own, which says nothing, and may lead only
when that one is committed. Any two majorities share a replica: the next leader needs the vote of one that holds the
entry, and gets it only if it holds the entry, too.

All of it rests on memory: term, vote and entries must be durable before anybody is told of them. Here that order is
data. ``Persist(..., then=...)`` means: make this durable, then send those; later Persists come after earlier ones. An
empty Persist is a place in that queue: what hangs on it relies on an earlier one that is still under way. A ``Send``
outside of a Persist relies on nothing that is not durable. Entries of the leader's own are sent while its disk still
works (thesis 10.2.1): it counts itself only when it hears ``Persisted``, like anybody else's reply.

**What is added, and why it is safe.**

* *PreVote* (thesis 9.6): before it enters a new term a replica asks whether it would win. So whoever comes back from a
  partition does not depose a leader that works. It changes nobody's state, so it cannot harm.
* *Lease*: who has heard from a leader within the shortest election timeout refuses votes (thesis 4.2.3). It only
  withholds votes, so it cannot harm.
* *CheckQuorum* (thesis 6.2): a leader that does not hear from a majority for that long steps down, so that who is cut
  off says so. Leading less is always safe.
* *A reset connection* of the leader is better evidence of its death than silence: forget it, and with it the lease, and
  pre-vote at once; the second in rank 15 ms later, because replicas that campaign at one time split the vote (for the
  same reason who grants a rehearsal holds its own back, and of two equal ones the first in rank goes on). A leader
  that lives after all is protected by the others' leases. The first in rank often asks before the other has seen the
  connection break, and is refused for the lease; who has refused answers again when it sees it.
* *A stalled judge accuses nobody*: the machine's own clock advances at most 100 ms per event, however late it is woken.
  Only :meth:`Node.in_touch` looks at the true time: whoever was stopped must not claim a quorum from memory.
* *Folding*: see `log`. A follower that is behind the snapshot gets it, at the cost of one entry.

**Invariants**, each with a test and a mutant in the simulation: one leader per term (Election Safety) · equal (index,
term), equal log (Log Matching) · every committed entry is in all later leaders' logs (Leader Completeness) · no two
replicas apply different entries at one index (State Machine Safety) · what is committed is durable on a majority.

What comes from a peer never raises here: `messages.decode` has checked its shape, and what cannot be is a ``Drop``.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from orch_consensus_raft.log import Log
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
from orch_core.contracts.consensus import Committed
from orch_core.contracts.ids import CoordinatorId, Term

ADVANCE_LIMIT_S = 0.1  # how far one event can move the machine's clock
RESOLUTION_S = 1e-6  # a timer that is due sooner than this is due: sums of floats do not meet exactly
TAIL_ENTRIES_LIMIT = 64  # uncommitted entries, after which a leader refuses proposals ...
TAIL_BYTES_LIMIT = 32 * 1024 * 1024  # ... and their documents' bytes


class Role(Enum):
    FOLLOWER = "follower"
    PRECANDIDATE = "precandidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Election timeouts are drawn from [election_s, 2 * election_s)."""

    heartbeat_s: float = 0.05
    election_s: float = 0.3
    stagger_s: float = 0.015


# ---- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A message came; `sender` is who the connection belongs to."""

    sender: CoordinatorId
    message: Message


@dataclass(frozen=True, slots=True)
class Proposal:
    """The leader of `term` wants `document` to be the next one. Answered by Accept or Refuse at once."""

    term: Term
    document: bytes


@dataclass(frozen=True, slots=True)
class Persisted:
    """Every Persist up to `sequence` is durable, and what hung on it is sent."""

    sequence: int


@dataclass(frozen=True, slots=True)
class PeerReset:
    """An established connection with `peer`, in either direction, broke."""

    peer: CoordinatorId


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """Both directions to `peer` are up."""

    peer: CoordinatorId


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline may have come."""


Event = Received | Proposal | Persisted | PeerReset | PeerConnected | Tick


# ---- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """May get lost."""

    peer: CoordinatorId
    message: Message


@dataclass(frozen=True, slots=True)
class Persist:
    """Write down `state`; then, with a snapshot, forget the log before; then put `entries` at `first`; then do `then`.

    Without `writes` there is nothing to write, and `then` waits for its turn.
    """

    sequence: int
    writes: bool
    state: HardState
    snapshot: Snapshot | None
    first: int
    entries: tuple[Entry, ...]
    then: tuple[Send, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """Everything up to this is committed."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Lead:
    """This replica leads `term` and has applied the first entry of its own."""

    term: Term
    document: Committed | None


@dataclass(frozen=True, slots=True)
class StepDown:
    """This replica was the leader of `term` and is no longer."""

    term: Term
    reason: str


@dataclass(frozen=True, slots=True)
class Accept:
    """The proposal stands at `index`. If that is applied before a StepDown, it is committed."""

    index: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The proposal has not been taken."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A message that cannot be; nothing was done with it."""

    sender: CoordinatorId
    reason: str


Effect = Send | Persist | Apply | Lead | StepDown | Accept | Refuse | Drop


@dataclass(slots=True)
class _Progress:
    """What a leader knows of one other replica (figure 2: nextIndex, matchIndex)."""

    next: int = 1
    match: int = 0
    heard: float = 0.0  # by the machine's clock
    touched: float = float("-inf")  # by the true one
    corrected: int = 0  # what `next` was set to after a refusal, and until when another of the same is no news
    corrected_until: float = 0.0


class Node:
    """One replica's machine. Call :meth:`handle` for whatever happens, and at `deadline`; carry out what it returns."""

    def __init__(
        self,
        me: CoordinatorId,
        peers: Iterable[CoordinatorId],
        saved: Saved,
        now: float,
        *,
        random: Callable[[], float],
        timing: Timing | None = None,
    ) -> None:
        self.id = me
        self.others = tuple(sorted(peer for peer in peers if peer != me))
        self.term = saved.state.term
        self.vote = saved.state.vote
        self.log = Log(saved)
        self.role = Role.FOLLOWER
        self.leader: CoordinatorId | None = None
        self._random, self._timing = random, timing or Timing()
        self._now = self._clock = now
        self._votes: set[CoordinatorId] = set()
        self._progress = {peer: _Progress() for peer in self.others}
        self._leader_heard = self._leader_touched = float("-inf")
        self._leader_in_touch = False
        self._early: tuple[CoordinatorId, VoteRequest] | None = None  # a rehearsal that was refused for the lease
        self._leads = False  # the own first entry is committed
        self._own_first = 0
        self._heartbeat_at = self._contest_until = now
        self._durable: tuple[int, Term] = (self.log.last_index, self.log.last_term)
        self._written = self._sequence = self._ballot = 0
        self._marks: deque[tuple[int, int, Term]] = deque()  # what each Persist under way makes durable
        self._state_changed = False
        self._changed_from: int | None = None
        self._sends: list[Send] = []
        self._replies: list[Send] = []
        self._effects: list[Effect] = []
        self._election_at = now
        if self.others:
            self._wait_for_leader()

    # ---- what a shell uses -------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When :meth:`handle` wants to be called again at the latest, whatever happens."""
        due = self._heartbeat_at if self.role is Role.LEADER else self._election_at
        return self._now + min(max(0.0, due - self._clock), ADVANCE_LIMIT_S)

    def handle(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Take one event at the time `now` (seconds, monotonic); return what must be done, in that order."""
        self._clock += min(max(0.0, now - self._now), ADVANCE_LIMIT_S)
        self._now = max(self._now, now)
        match event:
            case Received():
                self._receive(event.sender, event.message)
            case Proposal():
                self._propose(event)
            case Persisted():
                self._persisted(event.sequence)
            case PeerReset():
                self._lose(event.peer)
            case PeerConnected():
                self._meet(event.peer)
            case Tick():
                pass
            case _:
                assert_never(event)
        self._run_timers()
        return self._collect()

    def in_touch(self, now: float) -> bool:
        """Whether a majority, this replica included, was within reach during the last election timeout, truly."""
        if self.role is Role.LEADER:
            touched = sum(now - progress.touched <= self._timing.election_s for progress in self._progress.values())
            return 1 + touched >= self._majority()
        if self.leader is not None:
            return self._leader_in_touch and now - self._leader_touched <= self._timing.election_s
        return not self.others

    def memory(self) -> Saved:
        """All that a new write-ahead log would have to hold."""
        return Saved(self._hard_state(), self.log.base, self.log.tail)

    # ---- the rules that safety rests on: each has a mutant -----------------------------------------------------------

    def _majority(self) -> int:
        return (len(self.others) + 1) // 2 + 1

    def _is_up_to_date(self, request: VoteRequest) -> bool:
        """5.4.1: the later last term wins, then the longer log."""
        return (request.last_term, request.last_index) >= (self.log.last_term, self.log.last_index)

    def _may_commit(self, index: int) -> bool:
        """5.4.2: only entries of the leader's own term are committed by counting."""
        return self.log.term_at(index) == self.term

    def _has_free_vote(self, candidate: CoordinatorId) -> bool:
        """5.2: one vote per term."""
        return self.vote is None or self.vote == candidate

    def _enter(self, term: Term, reason: str) -> None:
        """5.1: whoever sees a higher term enters it as a follower, and has not voted in it."""
        self._step_down(reason)
        self.term, self.vote, self.leader = term, None, None
        self._state_changed = True
        self._wait_for_leader()

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _receive(self, sender: CoordinatorId, message: Message) -> None:
        if sender not in self._progress:
            self._effects.append(Drop(sender, "it is no replica of this job"))
            return
        if message.term > self.term and self._reveals_term(message):
            self._enter(message.term, f"{sender} is in term {message.term}")
        match message:
            case VoteRequest():
                self._on_vote_request(sender, message)
            case VoteReply():
                self._on_vote_reply(sender, message)
            case Append():
                self._on_append(sender, message)
            case AppendReply():
                self._on_append_reply(sender, message)
            case _:
                assert_never(message)

    def _reveals_term(self, message: Message) -> bool:
        """Whether somebody is in the message's term, and says so to whom it matters."""
        match message:
            case VoteRequest():
                return not message.pre and not self._has_lease()
            case VoteReply():
                return not (message.pre and message.granted)
            case _:
                return True

    def _has_lease(self) -> bool:
        """Thesis 4.2.3: a leader is at work, so votes are not to be had."""
        if self.role is Role.LEADER:
            return True
        return self.leader is not None and self._clock - self._leader_heard < self._timing.election_s

    def _on_vote_request(self, sender: CoordinatorId, request: VoteRequest) -> None:
        granted = not self._has_lease() and self._is_up_to_date(request)
        if request.pre:
            granted = granted and request.term > self.term and not self._comes_first(sender, request)
            if granted:
                self._make_way()
            self._early = (sender, request) if self._has_lease() else None
        else:
            granted = granted and request.term == self.term and self._has_free_vote(sender)
            if granted:
                self._state_changed = self._state_changed or self.vote is None
                self.vote = sender
                self._wait_for_leader()
        self._reply(sender, VoteReply(request.term if granted else self.term, granted, request.pre))

    def _comes_first(self, other: CoordinatorId, request: VoteRequest) -> bool:
        """Of two replicas that rehearse at one time with equal logs the first in rank goes on."""
        equal = (request.last_term, request.last_index) == (self.log.last_term, self.log.last_index)
        contest = self.role is Role.PRECANDIDATE and self._clock < self._contest_until
        return contest and equal and self.id < other

    def _make_way(self) -> None:
        """Let the other one campaign: two campaigns at one time split the vote."""
        if self.role is Role.PRECANDIDATE:
            self.role = Role.FOLLOWER
        self._election_at = max(self._election_at, self._clock + self._contest_s())

    def _contest_s(self) -> float:
        return self._timing.stagger_s * (len(self.others) + 1)

    def _on_vote_reply(self, sender: CoordinatorId, reply: VoteReply) -> None:
        asked = self._asked_term()
        if asked is None or reply.pre != (self.role is Role.PRECANDIDATE) or not reply.granted or reply.term != asked:
            return  # of an earlier campaign
        self._votes.add(sender)
        self._progress[sender].touched = self._now
        self._count_votes()

    def _on_append(self, leader: CoordinatorId, append: Append) -> None:
        if append.term < self.term:
            self._reply(leader, AppendReply(self.term, False, self.log.last_index))
            return
        if self.role is Role.LEADER:
            self._effects.append(Drop(leader, f"it claims to lead term {self.term}, which this replica leads"))
            return
        self._follow(leader, append.quorum)
        base = self.log.base
        if append.snapshot is not None and append.snapshot.index > base.index:
            self.log.install(append.snapshot)
            self._changed(append.snapshot.index)
            self._effects.append(Apply(self.log.base))
        if append.prev_index > self.log.last_index:
            self._reply(leader, AppendReply(self.term, False, self.log.last_index))
            return
        if self.log.term_at(append.prev_index) not in (None, append.prev_term):
            self._reply(leader, AppendReply(self.term, False, self.log.base.index))
            return
        self._changed(self.log.merge(append.prev_index, append.entries))
        known = append.prev_index + len(append.entries)
        self._apply(min(append.commit, known))
        self._reply(leader, AppendReply(self.term, True, known))

    def _on_append_reply(self, sender: CoordinatorId, reply: AppendReply) -> None:
        if self.role is not Role.LEADER or reply.term < self.term:
            return  # to an earlier leadership
        progress = self._progress[sender]
        progress.heard, progress.touched = self._clock, self._now
        if reply.accepted:
            progress.match = max(progress.match, min(reply.index, self.log.last_index))
            progress.next = max(progress.next, progress.match + 1)
            self._advance_commit()
        elif reply.index >= progress.match:  # else it was sent before what is known to match
            self._correct(sender, min(reply.index, self.log.last_index) + 1)

    # ---- elections ---------------------------------------------------------------------------------------------------

    def _rehearse(self) -> None:
        """Ask who would vote for this replica (thesis 9.6)."""
        self.role, self.leader, self._votes = Role.PRECANDIDATE, None, {self.id}
        self._contest_until = self._clock + self._contest_s()
        self._wait_for_leader()
        self._sends += self._vote_requests(Term(self.term + 1), pre=True)
        self._count_votes()

    def _campaign(self) -> None:
        """Enter the next term with a vote for itself, which counts when it is durable (5.2)."""
        self.role, self.leader, self._votes = Role.CANDIDATE, None, set()
        self.term, self.vote = Term(self.term + 1), self.id
        self._state_changed = True
        self._ballot = self._sequence + 1  # the Persist that this event ends with
        self._wait_for_leader()
        self._replies += self._vote_requests(self.term, pre=False)

    def _vote_requests(self, term: Term, *, pre: bool) -> list[Send]:
        request = VoteRequest(term, self.log.last_index, self.log.last_term, pre)
        return [Send(peer, request) for peer in self.others]

    def _asked_term(self) -> Term | None:
        match self.role:
            case Role.PRECANDIDATE:
                return Term(self.term + 1)
            case Role.CANDIDATE:
                return self.term
            case Role.FOLLOWER | Role.LEADER:
                return None

    def _count_votes(self) -> None:
        if len(self._votes) < self._majority():
            return
        if self.role is Role.PRECANDIDATE:
            self._campaign()
        elif self.role is Role.CANDIDATE:
            self._take_over()

    def _take_over(self) -> None:
        """Begin to lead, with an entry of the own term (5.4.2; 8)."""
        self.role, self.leader, self._leads = Role.LEADER, self.id, False
        for progress in self._progress.values():
            progress.next, progress.match, progress.corrected = self.log.last_index + 1, 0, 0
            progress.heard = self._clock
        self._own_first = self._first_entry()

    def _first_entry(self) -> int:
        """The index from which on the log is this leader's own: a leader may write when it has committed that."""
        return self._append(None)

    def _step_down(self, reason: str) -> None:
        if self.role is Role.LEADER:
            self._effects.append(StepDown(self.term, reason))
        self.role, self._leads = Role.FOLLOWER, False

    def _follow(self, leader: CoordinatorId, in_touch: bool) -> None:
        self.role, self.leader, self._early = Role.FOLLOWER, leader, None
        self._leader_heard, self._leader_touched, self._leader_in_touch = self._clock, self._now, in_touch
        self._wait_for_leader()

    def _wait_for_leader(self) -> None:
        self._election_at = self._clock + self._timing.election_s * (1 + self._random())

    def _lose(self, peer: CoordinatorId) -> None:
        if (progress := self._progress.get(peer)) is None:
            return
        progress.next, progress.touched = progress.match + 1, float("-inf")
        if peer == self.leader:
            self.leader = None
            left = sorted({self.id, *self.others} - {peer})
            self._election_at = self._clock + left.index(self.id) * self._timing.stagger_s
            if self._early is not None and self._early[0] != peer:
                self._on_vote_request(*self._early)

    def _meet(self, peer: CoordinatorId) -> None:
        if peer not in self._progress:
            return
        if self.role is Role.LEADER:
            self._progress[peer].next = self._progress[peer].match + 1
            self._send_append(peer)
        elif self.leader is None and self.role in (Role.FOLLOWER, Role.PRECANDIDATE):
            rank = sorted((self.id, *self.others)).index(self.id)
            soon = self._clock + self._timing.heartbeat_s + rank * self._timing.stagger_s  # a leader would speak first
            self._election_at = min(self._election_at, soon)

    # ---- replication -------------------------------------------------------------------------------------------------

    def _propose(self, proposal: Proposal) -> None:
        if self.role is not Role.LEADER or not self._leads or proposal.term != self.term:
            self._effects.append(Refuse(f"this replica does not lead term {proposal.term}"))
        elif (
            len(self.log.tail) >= TAIL_ENTRIES_LIMIT or self.log.tail_bytes + len(proposal.document) > TAIL_BYTES_LIMIT
        ):
            self._effects.append(Refuse("too much is not committed yet"))
        else:
            self._effects.append(Accept(self._append(proposal.document)))

    def _append(self, document: bytes | None) -> int:
        index = self.log.append(Entry(self.term, document))
        self._changed(index)
        self._broadcast()
        return index

    def _broadcast(self) -> None:
        self._heartbeat_at = self._clock + self._timing.heartbeat_s
        for peer in self.others:
            self._send_append(peer)

    def _send_append(self, peer: CoordinatorId) -> None:
        """Send what `peer` does not have, as far as known, and assume that it arrives; a refusal corrects it."""
        progress, base = self._progress[peer], self.log.base
        snapshot = base if progress.next <= base.index else None
        prev_index = base.index if snapshot is not None else progress.next - 1
        prev_term = self.log.term_at(prev_index)
        assert prev_term is not None, "a leader's own log reaches from its base to every follower's next entry"
        entries, quorum = self.log.behind(prev_index), self.in_touch(self._now)
        append = Append(self.term, prev_index, prev_term, entries, base.index, quorum, snapshot)
        self._sends.append(Send(peer, append))
        progress.next = self.log.last_index + 1

    def _correct(self, peer: CoordinatorId, index: int) -> None:
        """Go on from `index`; once per heartbeat, for every append under way is refused alike."""
        progress = self._progress[peer]
        if index == progress.corrected and self._clock < progress.corrected_until:
            return
        progress.corrected, progress.corrected_until = index, self._clock + self._timing.heartbeat_s
        progress.next = index
        self._send_append(peer)

    def _advance_commit(self) -> None:
        """5.3, 5.4.2: commit what a majority holds, if it is of the own term."""
        index, term = self._durable
        own = index if self.log.term_at(index) == term else 0
        matches = sorted([own, *(progress.match for progress in self._progress.values())], reverse=True)
        held = matches[self._majority() - 1]
        if held <= self.log.base.index or not self._may_commit(held):
            return
        self._apply(held)
        if not self._leads and held >= self._own_first:
            self._leads = True
            self._effects.append(Lead(self.term, self.log.base.document))
        self._broadcast()

    def _apply(self, index: int) -> None:
        if index > self.log.base.index:
            self.log.commit(index)
            self._effects.append(Apply(self.log.base))

    # ---- disk and time -----------------------------------------------------------------------------------------------

    def _persisted(self, sequence: int) -> None:
        self._written = max(self._written, sequence)
        while self._marks and self._marks[0][0] <= sequence:
            _, index, term = self._marks.popleft()
            self._durable = (index, term)
        if self.role is Role.CANDIDATE and self._written >= self._ballot:
            self._votes.add(self.id)
            self._count_votes()
        elif self.role is Role.LEADER:
            self._advance_commit()

    def _run_timers(self) -> None:
        if self.role is not Role.LEADER:
            if self._is_due(self._election_at):
                self._rehearse()
        elif not self._hears_majority():
            self._step_down("it has not heard from a majority")
            self.leader = None
            self._wait_for_leader()
        elif self._is_due(self._heartbeat_at):
            self._broadcast()

    def _is_due(self, timer: float) -> bool:
        return self._clock >= timer - RESOLUTION_S

    def _hears_majority(self) -> bool:
        """CheckQuorum, by the clock that a stall cannot push."""
        heard = sum(self._clock - progress.heard <= self._timing.election_s for progress in self._progress.values())
        return 1 + heard >= self._majority()

    def _changed(self, index: int | None) -> None:
        if index is not None:
            self._changed_from = index if self._changed_from is None else min(index, self._changed_from)

    def _reply(self, peer: CoordinatorId, message: Message) -> None:
        """Send once all that was decided so far is durable."""
        self._replies.append(Send(peer, message))

    def _hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.base.index)

    def _collect(self) -> tuple[Effect, ...]:
        """Sends that wait for nothing, the Persist with those that do, then news for the shell."""
        effects: list[Effect] = list(self._sends)
        writes = self._state_changed or self._changed_from is not None
        if writes or (self._replies and self._sequence > self._written):
            effects.append(self._persist(writes))
        else:
            effects += self._replies
        effects += self._effects
        self._sends, self._replies, self._effects = [], [], []
        self._state_changed, self._changed_from = False, None
        return tuple(effects)

    def _persist(self, writes: bool) -> Persist:
        self._sequence += 1
        self._marks.append((self._sequence, self.log.last_index, self.log.last_term))
        base, first = self.log.base, self._changed_from
        snapshot = None
        if first is not None and first <= base.index:  # changed and folded in one go
            snapshot, first = base, base.index + 1
        first = self.log.last_index + 1 if first is None else first
        then = tuple(self._replies)
        return Persist(self._sequence, writes, self._hard_state(), snapshot, first, self.log.behind(first - 1), then)
