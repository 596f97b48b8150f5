"""One broken rule each: what the simulator must notice.

A mutant is an edit of one or more functions' source. An edit whose text is no longer there is an error, so that a
mutant cannot become a harmless no-op when the code around it changes.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from orch_core.contracts.document import Document
from orch_core.coordinator import lead
from orch_core.protocol import cluster, deal, evidence, lives, member, orders, views
from orch_core.testing.simulator.agent import Agent
from orch_core.testing.simulator.follow import Feeds, Following
from orch_core.testing.simulator.script import Script
from orch_core.testing.simulator.worker import Worker


@dataclass(frozen=True, slots=True)
class Edit:
    """`old` becomes `new` in the source of `owner`'s function `name`."""

    owner: ModuleType | type
    name: str
    old: str
    new: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        original: Any = getattr(self.owner, self.name)
        edited = self._edited(original)
        if isinstance(self.owner, type):
            places: list[Any] = [self.owner]
        else:
            rooms = [m for name, m in sys.modules.items() if name.startswith("orch_core.")]
            places = [m for m in rooms if getattr(m, self.name, None) is original]
        for place in places:
            setattr(place, self.name, edited)
        try:
            yield
        finally:
            for place in places:
                setattr(place, self.name, original)

    def _edited(self, original: FunctionType) -> Any:
        source = textwrap.dedent(inspect.getsource(original))
        if source.count(self.old) != 1:
            raise LookupError(f"{self.name} has no single {self.old!r} any more: bring the mutant up to date")
        found: dict[str, Any] = {}
        code = compile(source.replace(self.old, self.new), f"<mutant of {self.name}>", "exec")
        exec(code, original.__globals__, found)  # the source is this repository's own
        return found[self.name]


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    rule: str  # what it breaks
    edits: tuple[Edit, ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.applied())
            yield


def _mutant(name: str, rule: str, *edits: tuple[ModuleType | type, str, str, str]) -> Mutant:
    return Mutant(name, rule, tuple(Edit(*edit) for edit in edits))


_ALL = (
    # the position and the hello
    _mutant(
        "hello-amended",
        "a hello is the position at the moment the group was closed",
        (
            Worker,
            "_dial",
            "connection.send(self, hello)",
            "connection.send(self, hello.__class__(hello.view, hello.sender, self.script.position()))",
        ),
    ),
    _mutant(
        "applied-while-frozen",
        "nothing is applied once the position stands in a hello",
        (Script, "_apply", "    self._check(group)\n", ""),
        (Script, "_receive", "        self._check(group)\n        if frames:", "        if frames:"),
    ),
    _mutant(
        "outer-body-not-applied",
        "what was handed to the outer body counts as applied",
        (
            Script,
            "position",
            "return Position(self.applied,",
            "return Position(self.applied if not self.in_outer_body or self.applied is None else self.applied - 1,",
        ),
    ),
    _mutant(
        "computing-unsaid",
        "a hello names the shard that is being computed",
        (Script, "position", "self.computing", "None"),
    ),
    _mutant(
        "pass-while-greeting",
        "while greeting, the script starts no other pass",
        (Script, "_start_pass", "    self._check(group)\n", ""),
    ),
    _mutant(
        "old-frames-read",
        "frames are read from links of the present view only",
        (
            Worker,
            "receive",
            "connection.frames.append(payload)",
            "self.__dict__.setdefault('mixed', {}).setdefault(connection.label[1], []).append(payload); "
            "connection.frames = self.__dict__['mixed'][connection.label[1]]",
        ),
        (
            Worker,
            "_greeted_by",
            "    self.links[key] = connection\n",
            "    self.links[key] = connection\n"
            "    connection.frames = self.__dict__.setdefault('mixed', {}).setdefault(hello.sender, [])\n",
        ),
    ),
    _mutant(
        "opens-before-own-hello",
        "a group opens when the own hello is delivered to all, too",
        (member.Member, "_missing", "(w not in self._hellos or w not in self._greeted)", "w not in self._hellos"),
    ),
    _mutant(
        "break-while-closing-forgotten",
        "a link that breaks while the group is being closed breaks the view",
        (member.Member, "_break", '"closing",', ""),
    ),
    _mutant(
        "older-view-adopted",
        "views may be skipped and never go back",
        (member.Member, "_see", "view.number <= newest.number", "view.number == newest.number"),
    ),
    _mutant(
        "break-unsaid",
        "who leaves a view because of a broken link says so",
        (
            member.Member,
            "_break",
            'self._state, self.broken, self.deadline = "broken", number, None',
            'self._state = "broken"',
        ),
    ),
    _mutant(
        "complaint-not-withdrawn",
        "a report is withdrawn when the hello comes",
        (
            member.Member,
            "_reached",
            "    missing = self._missing()\n",
            "    return []\n    missing = self._missing()\n",
        ),
    ),
    _mutant(
        "no-complaint",
        "past the forming deadline a member reports whom it misses",
        (member.Member, "_complain", "self.unreachable = self._missing()", "self.unreachable = ()"),
    ),
    _mutant(
        "state-zero-forgotten",
        "a member of view 1 holds State(0) even if it skipped view 1",
        (views, "_install", "origin = workers if number == 1 else () if fresh", "origin = () if fresh"),
    ),
    # going on from the most advanced
    _mutant(
        "any-holder-donates",
        "the donor is a member at the highest applied step",
        (
            member,
            "make_plan",
            "donor=holders[0]",
            "donor=next(w for w in view.workers if positions[w].applied is not None)",
        ),
    ),
    _mutant(
        "wrong-step-fed",
        "the donor feeds the results of the last applied step",
        (
            Script,
            "_feed",
            '"results", before, self.kept[before])\n        self.worker.point("fed")',
            '"results", before, Results(before, self.bits.undisturbed_result(before + 1), False))\n'
            '        self.worker.point("fed")',
        ),
    ),
    _mutant(
        "results-dropped-early",
        "results of a step are kept until the next one is applied",
        (
            Script,
            "_outer_body",
            "    self.in_outer_body = False\n",
            "    self.in_outer_body = False\n    self.kept = {}\n",
        ),
    ),
    _mutant(
        "state-without-results",
        "a state travels with the results of the step before",
        (Script, "_install", "{} if results is None else {before: results}", "{}"),
    ),
    _mutant(
        "state-without-stop",
        "... stop flag included",
        (
            Script,
            "_install",
            "{} if results is None else {before: results}",
            "{} if results is None else {before: Results(before, results.digest, False)}",
        ),
    ),
    _mutant(
        "state-before-outer-body",
        "State(a+1) is sent once the outer body of a has ended",
        (
            Script,
            "_outer_body",
            "    self.state = self.bits.next(self.state, self.kept[self.applied].digest)\n",
            "    self.late = self.bits.next(self.state, self.kept[self.applied].digest)\n",
        ),
        (
            Script,
            "_step",
            "    self.entered = step\n",
            "    self.entered = step\n    self.state = self.__dict__.pop('late', self.state)\n",
        ),
    ),
    _mutant(
        "behind-not-fed",
        "members a step behind are fed the results",
        (member, "make_plan", "positions[w].applied == applied - 1", "False"),
    ),
    # the deal
    _mutant(
        "redeal-by-own-claims",
        "all members compute the deal from all hellos",
        (
            member,
            "make_plan",
            "ordered = [positions[w] for w in view.workers]",
            "ordered = [positions[w] if w == me else Position(positions[w].applied) for w in view.workers]",
        ),
    ),
    _mutant(
        "deal-overlaps",
        "every shard is carried by exactly one member",
        (deal, "_ranges", "range(at, at + count)", "range(max(0, at - 1), at + count)"),
    ),
    _mutant(
        "partials-dealt-away",
        "partials stay with who holds them",
        (deal, "redeal", "owner.setdefault(shard, i)", "None"),
    ),
    _mutant(
        "computing-dealt-away",
        "a shard being computed stays with its worker",
        (deal, "redeal", "position.computing is not None and", "False and"),
    ),
    _mutant(
        "fed-state-forgotten",
        "who is fed holds the shard state of what it computed",
        (deal, "_state_at", "return tuple(shard for partial in position.partials for shard in partial)", "return ()"),
    ),
    # a step
    _mutant(
        "no-barrier",
        "every member takes part in the barrier, with or without shards",
        (Script, "_barrier", 'self._send(group, other, "barrier", step, Part(stop, asked, self.cost))', "pass"),
        (
            Script,
            "_barrier_of",
            'yield from self._receive(group, other, "barrier", step)',
            "Part(False, frozenset(), 0)\n    yield from ()",
        ),
    ),
    _mutant(
        "stop-kept-local",
        "the stop flag rides in the barrier",
        (
            Script,
            "_barrier_of",
            'yield from self._receive(group, other, "barrier", step)',
            '(yield from self._receive(group, other, "barrier", step))._replace(stop=False)',
        ),
    ),
    _mutant(
        "deal-by-own-clock",
        "all members know the same costs",
        (Script, "_barrier", "tuple(costs[w] for w in group.plan.view.workers)", "(self.cost,) * len(costs)"),
    ),
    _mutant(
        "deal-flaps",
        "a deal changes when some barriers in a row agree to it",
        (
            deal.Deals,
            "applied",
            "if self._in_a_row < IN_A_ROW or not (self._met_anew or self._age >= self._rest):",
            "if wanted == before:",
        ),
    ),
    _mutant(
        "changed-deal-moves-nothing",
        "strategy state moves with the shards when the deal changes",
        (deal.Deals, "moves", "return moves_between(", "return () and moves_between("),
    ),
    # following
    _mutant(
        "follower-greets-at-once",
        "a follower that is taken in takes results until it is near enough",
        (
            member.Member,
            "_freeze_if_level",
            "if len(positions) < len(others) or self._fed < furthest - 1:",
            "if False:",
        ),
    ),
    _mutant(
        "capture-for-some",
        "a state is captured when the wish has reached every member",
        (Script, "_barrier", "asked & part.asked", "asked | part.asked"),
    ),
    _mutant(
        "newcomers-not-asked",
        "who becomes a member before a state is captured hears the wish, too",
        (Following, "_is_unheard_of", "return waits and", "return False and"),
    ),
    _mutant(
        "missing-results-not-sent-again",
        "who is left sends what the dead one has not",
        (Feeds, "wish", "r.step > wish.step", "r.step > wish.step + 1"),
    ),
    _mutant(
        "rest-without-membership",
        "who is no member does not run what is behind the loops",
        (
            Worker,
            "_hear",
            "self.script.phase is Phase.DONE and self.member.view is not None",
            "self.script.phase is Phase.DONE",
        ),
    ),
    _mutant(
        "taken-in-without-a-state",
        "a joiner is taken in when it is level",
        (
            views,
            "_ready",
            "(Phase.READY,) if goes_on else (Phase.READY, Phase.FOLLOWING)",
            "(Phase.READY, Phase.FOLLOWING)",
        ),
    ),
    _mutant(
        "follower-waits-for-ever",
        "where nobody goes on, a joiner is taken in as it is",
        (views, "_ready", "(Phase.READY,) if goes_on else (Phase.READY, Phase.FOLLOWING)", "(Phase.READY,)"),
    ),
    # decide
    _mutant(
        "pair-drops-the-keeper",
        "one of a pair whose loss leaves no formed member stays",
        (views, "_pair_losers", "next((w for w in order if w in may_go and keepers - {w}), None)", "order[0]"),
    ),
    _mutant(
        "pair-by-seniority-only",
        "of a pair first goes the one that is stopped or stale",
        (views, "_pair_losers", "not is_stale(w, observed, now), ", ""),
    ),
    _mutant(
        "pair-judged-in-doubt",
        "who has just missed a heartbeat is not judged yet",
        (views, "_ripe", "if (t := doubtful_until(w, observed, now)) is not None", "if (t := None) is not None"),
    ),
    _mutant(
        "pair-judged-on-coming-back",
        "who was away and is back gets the time to be greeted",
        (evidence, "doubtful_until", "if heard.back_at is not None and", "if False and heard.back_at is not None and"),
    ),
    _mutant(
        "accuser-goes-for-the-stale",
        "a stale member that must stay sends nobody away",
        (views, "_pair_losers", "if not any(is_stale(w, observed, now) and not keepers - {w} for w in p)", ""),
    ),
    _mutant(
        "last-formed-evicted",
        "if only silent formed members are left, they stay",
        (views, "_removals", "set(silent) if restart or not keepers - set(silent) else set()", "set()"),
    ),
    _mutant(
        "last-holder-leaves",
        "the last member with the state cannot leave",
        (views, "_removals", "status.leaving and others", "status.leaving"),
    ),
    _mutant(
        "leavers-by-age",
        "if all leave, the one goes first whose next life the others wait for",
        (views, "_has_successor", "in document.seats", "is None"),
    ),
    _mutant(
        "leaver-gone-at-once",
        "who leaves goes when the view without it is formed",
        (member.Member, "_leave_if_free", "if self._formed < self._left_out.number:", "if False:"),
    ),
    _mutant(
        "formed-without-a-word",
        "a view is formed when a member has said in it that it holds the state",
        (views, "form", "if not first and not any(", "if False and not any("),
    ),
    _mutant(
        "gone-before-formed",
        "who leaves is gone once the view without it is formed",
        (lives, "_place", "document.formed != document.view.number", "False"),
    ),
    _mutant(
        "leaver-not-taken-back",
        "who has not left yet comes back if nobody in the view holds a state",
        (views, "next_view", "change.restart and (back", "False and (back"),
    ),
    _mutant(
        "unheard-parted-from-who-came-back",
        "... and nobody goes then who has not said what it holds",
        (views, "_removals", "set(living) - heard_in if anew else set()", "set()"),
    ),
    _mutant(
        "overtaken-goes-on",
        "who came back and is more than a step behind gives way",
        (member, "_overtaken", "p.applied < furthest - 1", "False"),
    ),
    _mutant(
        "drained-place-filled",
        "a drained place stays empty",
        (Document, "sends_away", "place_and_life(worker)[0] not in self.seats", "False"),
        (orders, "_seated", "drained=drained", "drained=()"),
    ),
    _mutant(
        "last-place-kept",
        "a leaving member takes no seat from who waits",
        (views, "next_view", "sum(not leaves(m.worker, document, observed) for m in stay)", "len(stay)"),
    ),
    _mutant(
        "formed-on-arrival",
        "a view is formed when each member holds the state",
        (views, "form", "if not (first or reported or", "if False and not (first or reported or"),
    ),
    _mutant(
        "restart-parts-the-unheard",
        "in a restart one of a pair leaves only if it has spoken in this view",
        (views, "_removals", "may_go = heard_in if restart else set(living)", "may_go = set(living)"),
    ),
    _mutant(
        "restart-evicts-the-silent",
        "without a known holder, nobody leaves for being silent",
        (views, "_removals", "if restart or not keepers - set(silent)", "if not keepers - set(silent)"),
    ),
    _mutant(
        "later-life-proves-nothing",
        "a later life of a place proves the earlier one dead",
        (lives, "_lives", "dead.append(known.worker)", "pass"),
    ),
    _mutant(
        "holders-forgotten",
        "a restart view keeps a member that reports holding the state",
        (views, "_removals", "{w for w in living if holds_state(w, observed)}", "set()"),
    ),
    _mutant(
        "silence-is-death",
        "only an agent's word makes a death certain",
        (
            views,
            "next_view",
            "    stay = [m for",
            "    document = replace(document, dead=tuple(dict.fromkeys((*document.dead, *change.out))))\n"
            "    stay = [m for",
        ),
    ),
    _mutant(
        "new-leader-evicts-at-once",
        "a new leader waits one full period first",
        (
            evidence,
            "_last_word",
            "max(heard.at, observed.leading_since) if heard else observed.leading_since",
            "heard.at if heard else float('-inf')",
        ),
    ),
    _mutant(
        "stalled-judge-accuses",
        "the judge's clock advances by at most 100 ms per wake-up",
        (lead.JudgeClock, "wake", "min(max(present - self._last, 0.0), JUDGE_LIMIT_S)", "present - self._last"),
    ),
    _mutant(
        "busy-is-silent",
        "while its agent reports a process as running, it may be silent for longer",
        (evidence, "silent_at", "report.state is ProcessState.RUNNING", "False"),
    ),
    _mutant(
        "death-said-once",
        "deaths are repeated until the document says gone",
        (
            Agent,
            "_told",
            "process.alive or not buried",
            "process.alive or (not buried and process.exited_at == self.world.now)",
        ),
    ),
    _mutant(
        "broken-view-stays",
        "a broken view with nobody to blame is followed by one with the same members",
        (views, "_blameless", "    if not since:", "    if True:"),
    ),
    _mutant(
        "lost-steps-unsaid",
        "lost steps are counted",
        (views, "form", "lost_steps=document.lost_steps + lost", "lost_steps=document.lost_steps"),
    ),
    _mutant(
        "lost-steps-said-twice",
        "... and counted once",
        (views, "form", "lost, reached = max(0, reached - begins), begins", "lost = max(0, reached - begins)"),
    ),
    _mutant(
        "number-used-twice",
        "one view per number",
        (views, "_install", "document.view.number + 1 if", "document.view.number if"),
    ),
    # the end
    _mutant(
        "first-done-ends",
        "the end is committed when all members are done",
        (cluster, "_all_done", "None not in steps and len(steps) == 1", "bool(steps - {None})"),
    ),
    _mutant(
        "admitted-after-the-end",
        "once one has exited 0 nobody is admitted",
        (views, "_ready", "    if document.ended or document.finished is not None:\n        return []\n", ""),
        (cluster, "decide", "new.finished is not None or _all_done", "new.finished is None and _all_done"),
    ),
    _mutant(
        "end-not-taken-back",
        "if all holders of the end die, the job trains again",
        (cluster, "_finish", "not document.ended and all(", "False and all("),
    ),
    _mutant(
        "end-taken-back-late",
        "an end is not taken back once somebody is through",
        (cluster, "_finish", "not document.ended and all(", "all("),
    ),
    _mutant(
        "end-before-commit",
        "the rest of the script runs once the end is committed",
        (Script, "_group", "self.worker.ended and ", ""),
    ),
)

MUTANTS = {mutant.name: mutant for mutant in _ALL}
