"""Raft's safety rules under seeded faults, and that each rule is needed: its mutant is caught.

ORCH_SIM_SEEDS sets how many seeds run (default 100). The mutant of 5.4.2 needs a schedule that no random run hits: it
is in test_node, as figure 8.
"""

import dataclasses
import os
from collections.abc import Callable

import pytest

from orch_consensus_raft.messages import Append, VoteRequest
from orch_consensus_raft.node import Effect, Event, Lead, Node, Persist, Role
from orch_consensus_raft.simulation import ELECTIONS, Faults, InvariantBroken, run_seed
from orch_core.contracts.ids import CoordinatorId, Term

SEEDS = int(os.environ.get("ORCH_SIM_SEEDS", "100"))
MUTANT_SEEDS = 400  # within which each mutant must be caught; most need fewer than ten


def test_the_invariants_hold_under_seeded_faults_and_calm_brings_agreement() -> None:
    for seed in range(SEEDS):
        run_seed(seed)


def test_a_seed_gives_the_same_run_again() -> None:
    first, second = run_seed(7), run_seed(7)
    assert (first.events, first.history.committed) == (second.events, second.history.committed)


# ---- mutants ---------------------------------------------------------------------------------------------------------


class ForgetsVotes(Node):
    """5.2 broken: the vote is given before it is durable, in fact without."""

    def handle(self, event: Event, now: float) -> tuple[Effect, ...]:
        return tuple(
            dataclasses.replace(effect, state=dataclasses.replace(effect.state, vote=None))
            if isinstance(effect, Persist)
            else effect
            for effect in super().handle(event, now)
        )


class VotesForAnyLog(Node):
    """5.4.1 broken."""

    def _is_up_to_date(self, request: VoteRequest) -> bool:
        return True


class VotesTwice(Node):
    """5.2 broken: two candidates get this replica's vote in one term."""

    def _has_free_vote(self, candidate: CoordinatorId) -> bool:
        return True


class RepliesBeforeSync(Node):
    """What hangs on a Persist is sent before it."""

    def handle(self, event: Event, now: float) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        for effect in super().handle(event, now):
            if isinstance(effect, Persist):
                effects += [*effect.then, dataclasses.replace(effect, then=())]
            else:
                effects.append(effect)
        return tuple(effects)


class CountsItselfBeforeSync(Node):
    """The leader takes its own entry for durable when it is made."""

    def _append(self, document: bytes | None) -> int:
        index = super()._append(document)
        self._durable = (index, self.term)
        return index


class HalfIsEnough(Node):
    """Off by one: half of an even number of replicas passes for a majority."""

    def _majority(self) -> int:
        return (len(self.others) + 2) // 2


class KeepsLeading(Node):
    """5.1 broken: a leader that sees a higher term enters it and does not step down."""

    def _enter(self, term: Term, reason: str) -> None:
        if self.role is Role.LEADER:
            self.term, self.vote, self._state_changed = term, None, True
        else:
            super()._enter(term, reason)


class LeadsUnproven(Node):
    """8 broken: it writes before the first entry of its own term is committed."""

    def _take_over(self) -> None:
        super()._take_over()
        self._leads = True
        self._effects.append(Lead(self.term, self.log.base.document))


class SkipsTheBarrier(Node):
    """A reply that relies on a Persist under way does not wait for it."""

    def handle(self, event: Event, now: float) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        for effect in super().handle(event, now):
            if isinstance(effect, Persist) and not effect.writes:
                effects += [*effect.then, dataclasses.replace(effect, then=())]
            else:
                effects.append(effect)
        return tuple(effects)


class TrustsAnyPredecessor(Node):
    """5.3 broken: entries are taken without looking at the one before them."""

    def _on_append(self, leader: CoordinatorId, append: Append) -> None:
        own = self.log.term_at(append.prev_index)
        if own is not None and append.term >= self.term:
            append = dataclasses.replace(append, prev_term=own)
        super()._on_append(leader, append)


MUTANTS: tuple[tuple[Callable[..., Node], tuple[int, ...], Faults | None], ...] = (
    (ForgetsVotes, (3,), ELECTIONS),
    (VotesForAnyLog, (3, 5), None),
    (VotesTwice, (3,), ELECTIONS),
    (RepliesBeforeSync, (3, 5), None),
    (CountsItselfBeforeSync, (1, 3), None),
    (HalfIsEnough, (4,), None),
    (KeepsLeading, (3, 5), None),
    (LeadsUnproven, (3, 5), None),
    (SkipsTheBarrier, (3, 5), None),
    (TrustsAnyPredecessor, (3, 5), None),
)


@pytest.mark.parametrize(("mutant", "replicas", "faults"), MUTANTS, ids=[mutant[0].__name__ for mutant in MUTANTS])
def test_a_broken_rule_is_caught(mutant: Callable[..., Node], replicas: tuple[int, ...], faults: Faults | None) -> None:
    with pytest.raises(InvariantBroken):
        for seed in range(MUTANT_SEEDS):
            run_seed(seed, mutant, replicas, faults)
