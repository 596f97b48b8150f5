"""Directed scenarios: schedules that once broke a draft of the rules, brought about on purpose.

Each function builds a simulation without random faults and says what happens when. The seed still decides latencies,
so a scenario is a family of schedules; `milestones` tell that the one that it is about has really come about.
"""

import random
from collections.abc import Callable

from orch_core.contracts.document import Cause, Document
from orch_core.contracts.ids import PlaceId, Step, WorkerId
from orch_core.contracts.status import Phase
from orch_core.protocol.member import Plan
from orch_core.testing.simulator.coordinator import Coordinator
from orch_core.testing.simulator.follow import Following
from orch_core.testing.simulator.simulation import Simulation
from orch_core.testing.simulator.swarm import Swarm
from orch_core.testing.simulator.worker import Worker
from orch_core.testing.simulator.world import Process, Violation

LONG_S = 60.0  # faults of a scenario end by themselves, or here


class Play:
    """A simulation without faults, and words to say what happens in it."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None, **settings: object) -> None:
        swarm = Swarm(random.Random(seed), until_s=LONG_S, follow=False)
        for name, value in settings.items():
            if name not in Swarm.__slots__:
                raise TypeError(f"a swarm has no {name}")
            setattr(swarm, name, value)
        self.simulation = Simulation(seed, swarm, trace)
        self.nemesis = self.simulation.nemesis
        self.at: dict[str, tuple[str, Step | None]] = {}  # each worker's newest effect boundary, and its open step
        self.passed: set[tuple[str, str]] = set()
        self.simulation.world.watchers.append(self._watch)

    def _watch(self, process: Process, name: str) -> None:
        if isinstance(process, Worker) and name not in ("status", "status sent", "hello", "hello sent"):
            self.at[process.name] = (name, process.script.entered)
            self.passed.add((process.name, name))

    def when(self, condition: Callable[[], bool], *actions: Callable[[], object]) -> None:
        def act() -> None:
            for action in actions:
                action()

        self.simulation.when(condition, act)

    def after(self, delay: float, *actions: Callable[[], object]) -> None:
        for action in actions:
            self.simulation.world.after(delay, action)

    def worker(self, name: str) -> Worker:
        return self.simulation.workers[WorkerId(name)]

    def living(self, name: str) -> bool:
        worker = self.simulation.workers.get(WorkerId(name))
        return worker is not None and worker.alive

    def applied(self, name: str) -> int:
        applied = self.worker(name).script.applied if self.living(name) else None
        return -2 if applied is None else applied

    def phase(self, name: str) -> Phase | None:
        return self.worker(name).script.phase if self.living(name) else None

    def is_at(self, name: str, *points: str) -> bool:
        """Its newest effect boundary is one of these."""
        return self.at.get(name, ("", None))[0] in points

    def has_passed(self, name: str, point: str) -> bool:
        return (name, point) in self.passed

    def planned(self, truth: Callable[[Plan], bool]) -> Callable[[], bool]:
        return lambda: any(truth(plan) for plan in self.simulation.checks.plans.values())

    @property
    def document(self) -> Document | None:
        return self.simulation.register.document

    def view(self) -> tuple[str, ...]:
        document = self.document
        return document.view.workers if document is not None and document.view is not None else ()

    def kill(self, name: str) -> Callable[[], None]:
        return lambda: self.simulation.kill(self.worker(name))

    def stop(self, name: str) -> Callable[[], None]:
        return lambda: self.nemesis.hold_up(self.worker(name))

    def busy(self, name: str) -> Callable[[], None]:
        return lambda: self.nemesis.hold_up(self.worker(name), busy=True)

    def thaw(self, name: str) -> Callable[[], None]:
        return lambda: self.nemesis.thaw(self.worker(name))

    def scale(self, workers: int) -> Callable[[], None]:
        return lambda: self.nemesis.order("scale", workers=str(workers))

    def cut(self, a: str, b: str) -> Callable[[], None]:
        return lambda: self.nemesis.cut((a, b), (b, a))

    def mend(self, a: str, b: str) -> Callable[[], None]:
        return lambda: self.nemesis.mend((a, b), (b, a))

    def reset(self, a: str, b: str) -> Callable[[], None]:
        def act() -> None:
            for connection in self.simulation.world.connections:
                if {connection.ends[0].host, connection.ends[1].host} == {a, b}:
                    connection.reset()

        return act

    @property
    def leader(self) -> Coordinator:
        """Of a job with one coordinator."""
        return self.simulation.register.coordinators[0]

    def joined_by_two(self) -> None:
        """Only w0.1 is left, and the next lives of the two others join in one view."""
        self.when(lambda: self.living("w0.1") and self.applied("w0.1") == 2, self.kill("w1.1"), self.kill("w2.1"))
        self.when(lambda: self.view() == ("w0.1",), lambda: self.after(0.02, lambda: self.leader.freeze()))
        self.when(
            lambda: self.phase("w1.2") is self.phase("w2.2") is Phase.READY,
            lambda: self.after(0.2, lambda: self.leader.thaw()),
        )

    def met(self, milestone: str) -> Callable[[], None]:
        return lambda: self.simulation.milestones.add(milestone)

    def plans(self) -> list[Plan]:
        return list(self.simulation.checks.plans.values())

    def without_state(self) -> set[WorkerId]:
        """Who has ever been in a view without a state."""
        return {worker for plan in self.plans() for worker in plan.without_state}

    def expect(self, promise: str, truth: Callable[[], bool]) -> None:
        def check(simulation: Simulation) -> None:
            if not truth():
                raise Violation(promise)

        self.simulation.expect = check


Scenario = Callable[..., Simulation]
SCENARIOS: dict[str, Scenario] = {}


def scenario(build: Callable[[int, Callable[[str], None] | None], Simulation]) -> Scenario:
    SCENARIOS[build.__name__] = build
    return build


@scenario
def a_joiner_feeds_the_step_before_its_state(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """A has applied a step that B has not; B is cut off before it is fed; J gets the state; A goes. J must feed."""
    play = Play(seed, trace, shards=3, steps=8)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 0, play.kill("w2.1"))

    def b_waits_for_a() -> bool:
        if not play.living("w2.2") or not play.living("w1.1") or "cut" in play.simulation.milestones:
            return False
        a, b = play.worker("w0.1").script, play.worker("w1.1").script
        near = play.is_at("w1.1", "barrier part sent") and play.is_at("w0.1", "contributed", "pass")
        return near and a.entered == b.entered

    play.when(b_waits_for_a, play.cut("w0", "w1"), play.met("cut"))
    joined = "w2.2"
    play.when(
        lambda: joined in play.view() and "cut" in play.simulation.milestones,
        play.reset("w0", "w1"),
        play.mend("w0", "w1"),
    )
    play.when(lambda: joined in play.view() and play.is_at("w0.1", "opened"), play.cut("w0", "w1"))
    play.when(lambda: play.has_passed(joined, "installed"), play.stop("w0.1"))

    play.when(play.planned(lambda plan: plan.donor == joined and "w1.1" in plan.behind), play.met("reached"))
    return play.simulation


@scenario
def a_joiner_learns_of_the_stop(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """The step is applied with a stop flag, and J joins then: the flag travels with the state."""
    play = Play(seed, trace, stop_at=Step(2), stop_place=PlaceId("w0"), steps=9)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.kill("w2.1"))
    play.when(lambda: play.living("w1.1") and play.applied("w1.1") == 2, play.busy("w1.1"))
    play.when(lambda: "w2.2" in play.view(), play.thaw("w1.1"))
    play.when(play.planned(lambda plan: plan.step == 3 and "w2.2" in plan.without_state), play.met("reached"))
    return play.simulation


@scenario
def who_never_heard_of_view_one_holds_state_zero(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """View 1 is formed at its commit, but B is cut off from the leader and A dies: view 2 begins at State(0)."""
    play = Play(seed, trace, workers=2, coordinators=1)

    def isolate() -> None:
        play.simulation.kill(play.worker("w0.1"))
        play.nemesis.cut(("c0", "w1"))

    play.when(lambda: bool(play.view()), isolate)
    play.when(lambda: play.view() == ("w1.1",), lambda: play.nemesis.mend(("c0", "w1")), play.met("reached"))
    play.expect("State(0) is not lost", lambda: not play.simulation.restarted)
    return play.simulation


@scenario
def a_restart_keeps_a_silent_holder(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """All formed members die before J could say that it holds the state; J is frozen, K lives and has none.
    J must not be given up for its silence."""
    play = Play(seed, trace, steps=9, start_up_s=0.1, coordinators=1)
    play.joined_by_two()
    j, k = "w1.2", "w2.2"
    play.when(lambda: {j, k} <= set(play.view()) and play.has_passed(k, "opened"), play.stop(k))
    play.when(
        lambda: play.has_passed(j, "installed"),
        play.stop(j),
        play.kill("w0.1"),
        lambda: play.after(0.3, play.thaw(k)),
        lambda: play.after(6.0, play.thaw(j), play.met("reached")),
    )
    play.expect("the living state is not lost", lambda: play.simulation.checks.lost_steps == 0)
    return play.simulation


@scenario
def a_restart_view_begins_where_a_living_member_stands(
    seed: int, trace: Callable[[str], None] | None = None
) -> Simulation:
    """The formed members die; a joiner has said that it holds the state, in a view that never formed."""
    play = Play(seed, trace, steps=9, start_up_s=0.1, coordinators=1)
    play.joined_by_two()
    j, k = "w1.2", "w2.2"
    play.when(lambda: {j, k} <= set(play.view()) and play.has_passed(k, "opened"), play.stop(k))
    play.when(lambda: play.has_passed(j, "installed"), lambda: play.after(0.7, play.kill("w0.1")))
    play.when(
        lambda: play.has_passed(j, "installed") and not play.living("w0.1"),
        lambda: play.after(0.5, play.thaw(k), play.met("reached")),
    )
    play.expect("nobody begins anew", lambda: not play.simulation.restarted)
    return play.simulation


@scenario
def nobody_is_admitted_after_the_end(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """All have exited 0; a late worker finds every formed member dead, and must not train from step 0."""
    play = Play(seed, trace, workers=2, steps=4, start_up_s=0.6, rest_s=0.02)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.kill("w1.1"))
    play.when(lambda: play.phase("w1.2") is Phase.STARTING and not play.living("w0.1"), play.met("reached"))
    play.expect("no view after the end", lambda: len(play.simulation.checks.views) == 2)
    return play.simulation


@scenario
def of_two_members_the_stopped_one_goes(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """The pair cannot reach each other; the tie must not go against the healthy one, which alone can go on."""
    play = Play(seed, trace, workers=2, steps=8)
    play.when(
        lambda: play.living("w0.1") and play.applied("w0.1") == 2,
        play.stop("w0.1"),
        play.reset("w0", "w1"),
        play.met("reached"),
    )
    play.expect("the healthy one is never evicted", lambda: play.worker("w1.1").exit_code == 0)
    return play.simulation


@scenario
def the_only_holder_is_away_while_one_joins(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """It is silent when the joiner accuses it; when it is back, what was said of the two is out of date."""
    play = Play(seed, trace, workers=1, max_workers=2, steps=8)

    def strike() -> None:
        play.stop("w0.1")()
        play.cut("w0", "w1")()
        play.after(0.7, play.scale(2))
        play.after(3.2, play.thaw("w0.1"))
        play.after(3.5, play.mend("w0", "w1"))  # the leader hears of it before the joiner does

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, strike)
    return _joined_in_its_absence(play)


@scenario
def the_only_holder_is_stale_when_accused(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """It must stay, and to send the joiner away would gain nothing: who could go on then does not answer."""
    play = Play(seed, trace, workers=1, max_workers=2, steps=8)

    def strike() -> None:
        play.stop("w0.1")()
        play.after(1.5, play.thaw("w0.1"))

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.scale(2))
    play.when(lambda: len(play.view()) == 2, strike)
    return _joined_in_its_absence(play)


def _joined_in_its_absence(play: Play) -> Simulation:
    def accused() -> bool:
        return play.living("w1.1") and "w0.1" in play.worker("w1.1").member.unreachable

    play.when(accused, play.met("reached"))
    play.expect("nobody is sent away", lambda: play.worker("w1.1").exit_code == 0)
    return play.simulation


@scenario
def of_two_members_one_dies_unnoticed_under_a_stalled_leader(
    seed: int, trace: Callable[[str], None] | None = None
) -> Simulation:
    """The leader hears the accuser's newest word first, and by its own slow clock the dead one was heard just now."""
    play = Play(seed, trace, workers=2, coordinators=1, steps=8)
    play.simulation.reap_late_s = 4.0

    def strike() -> None:
        play.reset("w0", "w1")()
        play.after(0.08, play.kill("w0.1"))
        play.after(0.75, lambda: play.leader.freeze())
        play.after(1.6, lambda: play.leader.thaw(), play.met("reached"))

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, strike)
    play.expect("the healthy one is never evicted", lambda: play.worker("w1.1").exit_code == 0)
    return play.simulation


@scenario
def two_lives_of_a_place_are_never_in_one_view(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """The agent cannot tell the leader of a death; the next life speaks for itself."""
    play = Play(seed, trace, workers=3, coordinators=1, start_up_s=0.05, steps=8)
    play.when(
        lambda: play.living("w0.1") and play.applied("w0.1") == 0,
        lambda: play.worker("w2.1").later(0.0, play.worker("w2.1").terminate),  # so that a seat is free
    )

    def two_have_formed_it() -> bool:
        document = play.document
        return len(play.view()) == 2 and document is not None and document.formed == 2

    play.when(two_have_formed_it, lambda: play.nemesis.cut(("agent", "c0")), play.kill("w1.1"))
    play.when(lambda: play.living("w2.2"), play.stop("w2.2"))  # ... and stays free
    play.after(3.0, play.thaw("w2.2"))
    play.when(lambda: "w1.2" in play.view(), play.met("reached"))
    play.after(3.0, lambda: play.nemesis.mend(("agent", "c0")))
    return play.simulation


@scenario
def a_bare_reset_ends_nothing(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """A view that broke with nobody to blame is followed by one with the same members."""
    play = Play(seed, trace, steps=6)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.reset("w0", "w1"), play.met("reached"))

    def same_members() -> bool:
        views = play.simulation.checks.views
        return len(views) == 2 and views[max(views)].cause is Cause.BROKEN and len(play.view()) == 3

    play.expect("the same members go on", same_members)
    return play.simulation


@scenario
def a_late_hello_withdraws_the_complaint(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """Two cannot greet for a while, nobody leads for as long, and then all is well: nobody is sent away."""
    play = Play(seed, trace, coordinators=1, steps=8)

    def strike() -> None:
        play.cut("w0", "w1")()
        play.after(0.05, lambda: play.leader.freeze())
        play.after(1.5, play.mend("w0", "w1"))
        play.after(1.9, lambda: play.leader.thaw(), play.met("reached"))

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.reset("w0", "w1"))
    play.when(lambda: len(play.simulation.checks.views) == 2, strike)
    play.expect("nobody is sent away", lambda: len(play.simulation.checks.views) == 2)
    return play.simulation


@scenario
def a_pair_that_is_cut_for_good_is_parted(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """Whoever cannot be greeted is reported, and the rest finish without one of the pair."""
    play = Play(seed, trace, steps=5)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.cut("w0", "w1"), play.met("reached"))
    play.expect("it ends while the cut lasts", lambda: play.simulation.world.now < LONG_S / 2)
    return play.simulation


@scenario
def the_last_holder_does_not_leave(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """Told to leave while its partner's next life is still without the state."""
    play = Play(seed, trace, workers=2, steps=8)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.kill("w1.1"))
    play.when(
        lambda: "w1.2" in play.view(),
        play.stop("w1.2"),
        lambda: play.worker("w0.1").later(0.0, play.worker("w0.1").terminate),
        lambda: play.after(0.5, play.thaw("w1.2"), play.met("reached")),
    )
    play.expect("the state is not lost", lambda: not play.simulation.restarted)
    return play.simulation


@scenario
def who_leaves_comes_back_if_the_others_die_first(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """The view without it is committed, and its only member dies before it has said that it holds the state."""
    play = Play(seed, trace, workers=2, steps=8, pass_s=0.2)
    play.when(
        lambda: play.living("w0.1") and play.applied("w0.1") == play.applied("w1.1") == 1,
        lambda: play.worker("w1.1").later(0.0, play.worker("w1.1").terminate),
    )
    play.when(lambda: play.living("w1.1") and play.worker("w1.1").member.leaving, play.stop("w0.1"))
    play.when(lambda: play.view() == ("w0.1",), lambda: play.after(0.3, play.kill("w0.1"), play.met("reached")))
    play.expect("the living state is not lost", lambda: play.simulation.checks.lost_steps == 0)
    return play.simulation


def _left_to_a_joiner(play: Play, then: Callable[[], None]) -> None:
    """w1.1 is left out of the view of w0.1 and w2.2, which train far ahead, and no coordinator hears of it."""

    def isolate() -> None:
        play.nemesis.cut(("w0", "c0"), ("w2", "c0"))
        play.nemesis.mend(("w0", "w2"), ("w2", "w0"))

    def is_ahead() -> bool:
        return play.living("w2.2") and play.applied("w2.2") >= play.applied("w1.1") + 3

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.kill("w2.1"), play.cut("w0", "w2"))
    play.when(lambda: "w2.2" in play.view(), lambda: play.worker("w1.1").later(0.0, play.worker("w1.1").terminate))
    play.when(
        lambda: play.view() == ("w0.1", "w2.2"),
        lambda: play.after(0.8, lambda: play.leader.freeze()),
        lambda: play.after(1.1, isolate),
    )
    play.when(is_ahead, then)


@scenario
def who_comes_back_too_late_gives_way(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """A joiner's newest word is that it cannot reach the only holder; it can by now, and is steps ahead."""
    play = Play(seed, trace, workers=3, coordinators=1, steps=40, pass_s=0.005, outer_s=0.001)

    def then() -> None:
        play.simulation.kill(play.worker("w0.1"))
        play.after(0.1, lambda: play.leader.thaw(), play.met("reached"))

    _left_to_a_joiner(play, then)
    play.when(lambda: play.view() == ("w1.1", "w2.2"), lambda: play.after(0.5, play.mend("w2", "c0")))
    play.expect("the newer state is kept", lambda: play.simulation.checks.lost_steps == 0)
    return play.simulation


@scenario
def nobody_comes_back_while_one_may_be_further(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """The same joiner, but stopped: what it holds is known when it speaks again."""
    play = Play(seed, trace, workers=3, coordinators=1, steps=40, pass_s=0.005, outer_s=0.001)

    def then() -> None:
        play.stop("w2.2")()
        play.simulation.kill(play.worker("w0.1"))
        play.after(0.1, lambda: play.leader.thaw())
        play.after(4.0, play.mend("w2", "c0"), play.thaw("w2.2"), play.met("reached"))

    _left_to_a_joiner(play, then)
    play.expect("the newer state is kept", lambda: play.simulation.checks.lost_steps == 0)
    return play.simulation


@scenario
def scaled_up_and_down_while_it_trains(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """1, 4, 2, 3: nobody fails, nobody is blamed, and the number is right at the end."""
    play = Play(seed, trace, workers=1, max_workers=4, steps=60, shards=4)

    def alive() -> int:
        return len(play.simulation.living())

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.scale(4))
    play.when(lambda: len(play.view()) == 4, lambda: play.after(0.2, play.scale(2)))
    play.when(lambda: len(play.view()) == 2 and alive() == 2 and play.living("w1.1"), play.scale(3))
    play.when(lambda: len(play.view()) == 3 and play.living("w2.2"), play.met("reached"))

    def calm() -> bool:
        document = play.document
        causes = {v.cause for v in play.simulation.checks.views.values()}
        quiet = causes == {Cause.START, Cause.JOIN, Cause.LEAVE}
        return quiet and document is not None and document.restarts == 0 and len(play.view()) == 3

    play.expect("leaving is no failure", calm)
    return play.simulation


@scenario
def the_last_holder_leaves_once_another_has_the_state(
    seed: int, trace: Callable[[str], None] | None = None
) -> Simulation:
    """Scaled to one worker while the only one that holds the state is the one too many."""
    play = Play(seed, trace, workers=2, steps=60)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.kill("w0.1"))
    play.when(lambda: play.view() == ("w1.1",), lambda: play.nemesis.order("scale", workers="1"), play.met("reached"))
    play.expect("it hands over and goes", lambda: play.view() == ("w0.2",) and not play.simulation.restarted)
    return play.simulation


@scenario
def who_is_replaced_goes_before_the_last_holder(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """One is drained and replaced, the others are too many, and they say first that they leave."""
    play = Play(seed, trace, workers=3, steps=60)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.kill("w0.1"))
    play.when(
        lambda: set(play.view()) == {"w1.1", "w2.1", "w0.2"} and play.applied("w0.2") >= 4,
        play.stop("w0.2"),
        lambda: play.nemesis.order("drain", worker="w0.2", replace="yes"),
        lambda: play.nemesis.order("scale", workers="1"),
        lambda: play.after(0.5, play.thaw("w0.2")),
        play.met("reached"),
    )
    play.expect("the replacement is there at the end", lambda: play.view() == ("w0.3",))
    return play.simulation


@scenario
def a_drained_place_stays_empty(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """Unless it is to be replaced."""
    play = Play(seed, trace, workers=3, steps=40)
    play.when(
        lambda: play.living("w0.1") and play.applied("w0.1") == 1,
        lambda: play.nemesis.order("drain", worker="w1.1", replace="no"),
    )
    play.when(
        lambda: play.view() == ("w0.1", "w2.1"), lambda: play.nemesis.order("drain", worker="w0.1", replace="yes")
    )
    play.when(lambda: play.view() == ("w2.1", "w0.2"), play.met("reached"))

    def as_asked() -> bool:
        seen = set(play.simulation.workers)
        ended = all(play.worker(w).exit_code == 0 for w in ("w0.1", "w1.1"))
        document = play.document
        return seen == {"w0.1", "w1.1", "w2.1", "w0.2"} and ended and document is not None and document.restarts == 0

    play.expect("who is drained ends with 0, and only who is replaced is started again", as_asked)
    return play.simulation


@scenario
def a_busy_worker_is_not_silent(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """A C call holds the interpreter for five seconds, and its agent sees it running: everybody waits."""
    play = Play(seed, trace, steps=5)
    play.when(
        lambda: play.living("w1.1") and play.applied("w1.1") == 1,
        play.busy("w1.1"),
        lambda: play.after(5.0, play.thaw("w1.1")),
        play.met("reached"),
    )
    play.expect("nobody is evicted", lambda: len(play.simulation.checks.views) == 1)
    return play.simulation


@scenario
def lost_steps_are_said_once(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """All holders die, twice: training begins anew, and the document counts what each time has cost."""
    play = Play(seed, trace, workers=2, steps=5, pass_s=0.8)
    play.when(
        lambda: play.living("w0.1") and play.applied("w0.1") == 2,
        lambda: play.after(0.6, play.kill("w0.1"), play.kill("w1.1")),
    )
    play.when(
        lambda: play.living("w0.2") and play.applied("w0.2") == 1,
        lambda: play.after(0.6, play.kill("w0.2"), play.kill("w1.2"), play.met("reached")),
    )

    def said() -> bool:
        document = play.document
        return document is not None and document.lost_steps == play.simulation.checks.lost_steps == 5

    play.expect("five steps are lost, and five are said", said)
    return play.simulation


@scenario
def a_stalled_leader_accuses_nobody(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """It slept for five seconds, and everybody's statuses wait in its sockets."""
    play = Play(seed, trace, coordinators=1, pass_s=0.5)
    play.when(
        lambda: play.living("w0.1") and play.applied("w0.1") == 1,
        lambda: play.leader.freeze(),
        lambda: play.after(5.0, lambda: play.leader.thaw(), play.met("reached")),
    )
    play.expect("nobody is evicted", lambda: len(play.simulation.checks.views) == 1)
    return play.simulation


@scenario
def a_new_leader_hears_everybody_first(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """The leader dies; the next one has heard nobody yet."""
    play = Play(seed, trace, pass_s=0.5)

    def strike() -> None:
        leader = play.simulation.register.leader
        assert leader is not None
        play.nemesis.kill_coordinator(leader)

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, strike)
    play.when(lambda: play.simulation.register.term == 2, play.met("reached"))
    play.expect("nobody is evicted", lambda: len(play.simulation.checks.views) == 1)
    return play.simulation


@scenario
def a_link_breaks_while_the_group_is_closed(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """A hello has come early, its link breaks, and only then is the position known."""
    play = Play(seed, trace, workers=2, steps=8, freeze_s=0.2)

    def early() -> bool:
        return any(
            connection.label[0] == 2
            and connection.ends[0].name == "w0.1"
            and connection in connection.ends[1].connections
            for connection in play.simulation.world.connections
            if isinstance(connection.label, tuple)
        )

    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 1, play.reset("w0", "w1"))
    play.when(early, lambda: play.after(0.005, play.reset("w0", "w1"), play.met("reached")))
    return play.simulation


@scenario
def the_end_is_taken_back_if_all_its_holders_die(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """Finished is committed; all die before the first exit 0: the job trains again, exactly up to there."""
    play = Play(seed, trace, workers=2, steps=9, stop_at=Step(3), stop_place=PlaceId("w0"), rest_s=1.0)

    def finished() -> bool:
        return play.document is not None and play.document.finished is not None

    play.when(finished, lambda: play.after(0.1, play.kill("w0.1"), play.kill("w1.1"), play.met("reached")))
    play.expect("it ends at the same step", lambda: play.simulation.outcome().steps == 4)
    return play.simulation


# ---- following


def _following(play: Play, name: str) -> Following | None:
    return play.worker(name).following if play.living(name) else None


def _has_state(play: Play, name: str) -> bool:
    following = _following(play, name)
    return following is not None and following.follows


@scenario
def a_follower_joins_without_a_copy(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """Nobody waits for a state: it is there before the view is. Messages are slow: members hear of it at different
    steps, and capture one state all the same."""
    play = Play(seed, trace, workers=3, steps=60, follow=True, pass_s=0.005, outer_s=0.001)
    play.simulation.world.slow_share = 0.2
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.kill("w2.1"), _cut_off(play, "w2", "w1"))
    play.when(lambda: play.phase("w2.2") is Phase.READY, lambda: play.after(0.3, _mended(play, "w2", "w1")))
    play.when(play.planned(lambda plan: "w2.2" in plan.view.workers), play.met("reached"))
    _comes_with_its_state(play, "w2.2")
    return play.simulation


@scenario
def a_follower_falls_behind_while_it_is_taken_in(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """What is on its way to it still counts: it greets when it is near enough, and nobody sends it away."""
    play = Play(seed, trace, workers=3, steps=60, follow=True, pass_s=0.005, outer_s=0.001, commit_s=0.2)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.kill("w2.1"))
    play.when(lambda: _has_state(play, "w2.2"), _cut_off(play, "w0", "w2"))
    play.when(lambda: "w2.2" in play.view(), lambda: play.after(0.1, _mended(play, "w0", "w2")))
    play.when(lambda: _is_behind(play, "w2.2", "w1.1"), play.met("reached"))
    _comes_with_its_state(play, "w2.2")
    return play.simulation


@scenario
def one_that_feeds_a_follower_dies(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """Its shares of some steps are missing: who is left sends them, while the follower is being taken in."""
    play = Play(seed, trace, workers=3, max_workers=4, steps=80, follow=True, pass_s=0.005, outer_s=0.001, commit_s=0.2)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.scale(4))
    play.when(lambda: _has_state(play, "w3.1"), _cut_off(play, "w1", "w3"))
    play.when(lambda: _is_behind(play, "w3.1", "w0.1"), play.kill("w1.1"), play.met("reached"))
    _comes_with_its_state(play, "w3.1")
    return play.simulation


@scenario
def a_member_comes_between_a_wish_and_its_capture(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """One joiner asks those of a view; another is taken in before they have captured a state: all must be asked."""
    play = Play(seed, trace, workers=2, max_workers=4, steps=40, follow=True, pass_s=0.2, commit_s=0.2)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.scale(4), _cut_off(play, "w3", "w1"))
    play.when(lambda: _has_state(play, "w2.1") and play.worker("w2.1").following.level, _mended(play, "w3", "w1"))

    def asked_too_few() -> bool:
        following = _following(play, "w3.1")
        waits = following is not None and following.had is None and not following.here
        return waits and following is not None and "w2.1" in play.view() and set(following.links) == {"w0.1", "w1.1"}

    play.when(asked_too_few, play.met("reached"))
    play.expect("both are taken in", lambda: set(play.view()) == {"w0.1", "w1.1", "w2.1", "w3.1"})
    return play.simulation


def _cut_off(play: Play, source: str, target: str) -> Callable[[], None]:
    return lambda: play.nemesis.cut((source, target))


def _mended(play: Play, source: str, target: str) -> Callable[[], None]:
    return lambda: play.nemesis.mend((source, target))


def _is_behind(play: Play, follower: str, member: str) -> bool:
    """By more than a step: too far for a member."""
    had = play.worker(follower).following.had if play.living(follower) else None
    return had is not None and play.applied(member) > had + 1


def _comes_with_its_state(play: Play, follower: str) -> None:
    def did() -> bool:
        joined = any(follower in plan.view.workers for plan in play.plans())
        return joined and play.worker(follower).exit_code == 0 and follower not in play.without_state()

    play.expect("it comes with its state, and is not sent away", did)


@scenario
def a_followers_state_is_the_last_one(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """The only member dies: training goes on from what the follower has, and not from State(0)."""
    play = Play(seed, trace, workers=1, max_workers=2, steps=40, follow=True)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 4, play.scale(2))

    def strike() -> None:
        play.simulation.kill(play.worker("w0.1"))
        play.simulation.milestones.add("reached")

    play.when(lambda: _has_state(play, "w1.1") and "w1.1" not in play.view(), strike)
    play.expect(
        "it begins where the follower stands", lambda: all(p.step > 0 for p in play.plans() if p.view.number > 1)
    )
    return play.simulation


@scenario
def who_has_followed_to_the_end_waits_for_it(seed: int, trace: Callable[[str], None] | None = None) -> Simulation:
    """All members die behind their end: it has not run what is behind the loops, and its state is the last one."""
    play = Play(seed, trace, workers=2, max_workers=3, steps=20, follow=True, rest_s=0.5)
    play.when(lambda: play.living("w0.1") and play.applied("w0.1") == 2, play.scale(3))
    for coordinator in ("c0", "c1", "c2"):
        play.when(lambda: _has_state(play, "w2.1"), _cut_off(play, "w2", coordinator))

    def ended() -> bool:
        return play.document is not None and play.document.finished is not None and play.phase("w2.1") is Phase.DONE

    def strike() -> None:
        play.simulation.kill(play.worker("w0.1"))
        play.simulation.kill(play.worker("w1.1"))
        for coordinator in ("c0", "c1", "c2"):
            play.nemesis.mend(("w2", coordinator))
        play.simulation.milestones.add("reached")

    play.when(ended, lambda: play.after(0.05, strike))
    play.expect("it ends the job", lambda: play.worker("w2.1").exit_code == 0)
    return play.simulation
