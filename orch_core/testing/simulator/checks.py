"""What must hold after every event: the promises and invariants of the protocol.

Each is checked where its terms change: at a commit of the document, at an opened plan, at an applied step, at the end.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from orch_core.contracts.document import Cause, Document, LifeState, View
from orch_core.contracts.ids import BEFORE_FIRST_STEP, Shard, Step, ViewNumber, WorkerId, place_and_life
from orch_core.contracts.job import JobStatus
from orch_core.contracts.status import Phase
from orch_core.protocol.deal import IN_A_ROW, Deal, Position
from orch_core.protocol.member import Hello, Plan
from orch_core.testing.simulator.bits import Digest, Results
from orch_core.testing.simulator.world import Violation

if TYPE_CHECKING:
    from orch_core.testing.simulator.simulation import Simulation
    from orch_core.testing.simulator.worker import Worker


def hold(truth: bool, promise: str) -> None:
    if not truth:
        raise Violation(promise)


class Checks:
    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        self.views: dict[ViewNumber, View] = {}
        self.plans: dict[ViewNumber, Plan] = {}
        self.hellos: dict[tuple[ViewNumber, WorkerId], Hello] = {}
        self.left: set[WorkerId] = set()
        self.holders: dict[tuple[Step, Shard], set[WorkerId]] = {}
        self.furthest = BEFORE_FIRST_STEP  # applied by anybody since the last counted restart
        self.changed: dict[ViewNumber, tuple[Step, Deal]] = {}  # since when each view has its deal
        self.captures: dict[tuple[WorkerId, int], Step] = {}
        self.deals: dict[tuple[ViewNumber, Step], Deal] = {}
        self.lost_steps = 0
        self.rested = 0  # workers that ran the rest of the script

    # the document

    def committed(self, old: Document | None, new: Document) -> None:
        say = self.simulation.world.trace
        if say is not None:
            self._tell(old, new)
        dead = [w for w in new.dead if w in self.simulation.workers and self.simulation.workers[w].alive]
        hold(not dead, f"only the dead are called dead, and {dead} live")
        hold(new.failure is None, f"the job fails without a reason: {new.failure}")
        if old is None:
            return
        hold(new.revision == old.revision + 1, "revisions grow by one")
        hold(new.lost_steps >= old.lost_steps, "lost steps are never forgotten")
        hold(old.finished is None or new.finished is None or old.finished == new.finished, "the end is committed once")
        hold(not old.status.final, "nothing is written after the end")
        if new.finished is not None and old.finished is None:
            self._finished(new)
        if new.finished is None and old.finished is not None:
            self._taken_back(old)
        before, after = old.view, new.view
        if after is None or after == before:
            hold(after is not None or before is None, "a view does not vanish")
            return
        hold(after.number not in self.views, f"one view per number, and {after.number} has two")
        hold(after.number == (before.number + 1 if before is not None else 1), "numbers only grow, by one")
        hold(not old.ended and not new.ended, "nobody is admitted after an exit 0")
        self.views[after.number] = after
        self._members(old, after)
        if before is not None:
            self._keeps(old, before, after)

    def _members(self, old: Document, after: View) -> None:
        before = old.view
        places = [place_and_life(w)[0] for w in after.workers]
        hold(len(set(places)) == len(places), f"one life of each place: {after.workers}")
        hold(bool(after.workers), "a view has members")
        for worker in self.left & set(after.workers):
            self._returns(worker, old, after)
        if before is None:
            return
        for worker in before.workers:
            if worker not in after.workers:
                self.left.add(worker)
                self._blamed(worker, after)

    def _returns(self, worker: WorkerId, old: Document, after: View) -> None:
        """An id that has left a view never returns, unless it had not gone yet and nobody else seems to have a state.
        That it is too old to be of use is found out when the hellos are in: see `opened`."""
        hold(after.fresh, f"{worker} returns, and that is no restart")
        on_its_way = any(p.worker == worker and p.state is LifeState.LEAVING for p in old.places)
        hold(on_its_way, f"{worker} returns, and was not on its way")
        self.left.discard(worker)

    def _blamed(self, worker: WorkerId, after: View) -> None:
        process = self.simulation.workers[worker]
        fair = not process.alive or process.member.leaving or self.simulation.was_faulty(process.host)
        fair = fair or any(not self.simulation.workers[w].alive for w in after.workers)  # dead, and nobody knows
        hold(fair, f"nobody is blamed without a reason, and {worker} was: {after.reason}")

    def _keeps(self, old: Document, before: View, after: View) -> None:
        formed = set(old.formed_members)
        if formed & set(after.workers):
            back = formed & set(after.workers) - set(before.workers)
            hold(not after.fresh or bool(back) or old.begins_anew, "a view with a formed member is not fresh")
            return
        living = [w for w in formed if w in before.workers and self.simulation.workers[w].alive]
        hold(not living, f"view {after.number} keeps none of the formed {sorted(formed)}, and {living} live")
        workers = self.simulation.workers
        worthless = BEFORE_FIRST_STEP if before.fresh and before.number > 1 else None  # it has just begun anew
        applied = {w: workers[w].script.position().applied for w in before.workers if workers[w].alive}
        holding = [w for w, step in applied.items() if step not in (None, worthless)]
        kept = set(holding) & set(after.workers)
        hold(bool(kept) or not holding, f"view {after.number} keeps none of {holding}, who hold a state")
        stateful = [
            w for w in after.workers if workers[w].script.position().applied is not None
        ]  # some may just have died
        hold(after.fresh or bool(stateful), "a view without a state is fresh")
        if after.fresh:
            hold(after.cause is Cause.RESTART, "a fresh view is a counted restart")

    def _finished(self, new: Document) -> None:
        assert new.finished is not None
        assert new.view is not None
        steps = new.finished.steps
        workers = [self.simulation.workers[w] for w in new.view.workers]
        early = [w.name for w in workers if w.alive and w.script.phase is not Phase.DONE]
        hold(not early, f"the end is committed when all members are done, and {early} are not")
        expected = str(self.simulation.bits.undisturbed(steps))
        hold(new.finished.digest == expected, "the end has the bits of an undisturbed run")
        swarm = self.simulation.swarm
        if swarm.stop_at is None and not new.stop:
            hold(steps == swarm.steps, f"the job has {swarm.steps} steps, and ended after {steps}")
        if new.end_at is not None:
            hold(steps == new.end_at, f"a job that ended once ends there again: {new.end_at}, not {steps}")
        hold(steps <= swarm.steps, f"the job has {swarm.steps} steps, and ended after {steps}")

    def _taken_back(self, old: Document) -> None:
        assert old.view is not None
        through = [w for w in old.view.workers if self.simulation.workers[w].exit_code == 0]
        hold(not through, f"an end is not taken back once {through} went through all of the script")
        living = [w for w in old.view.workers if self.simulation.workers[w].alive]
        hold(not living, f"an end is not taken back while {living} hold it")

    # views

    def hello(self, worker: "Worker", hello: Hello) -> None:
        key = (hello.view.number, worker.id)
        hold(self.hellos.setdefault(key, hello) == hello, f"a hello is never amended: {hello}")

    def opened(self, worker: "Worker", plan: Plan) -> None:
        world, number = self.simulation.world, plan.view.number
        world.say(
            f"{worker.name} opens view {number} at step {plan.step}: donor {plan.donor}, behind {plan.behind}, "
            f"without state {plan.without_state}, deal {plan.first_deal}"
        ) if world.trace is not None else None
        first = number not in self.plans
        theirs = replace(self.plans.setdefault(number, plan), me=plan.me)
        hold(theirs == plan, f"all members of view {number} have one plan")
        if not first:
            return
        self._dealt(plan.first_deal, plan)
        self._dealt(plan.next_deal, plan)
        said = {w: self.hellos[number, w].position for w in plan.view.workers}
        applied = {p.applied for p in said.values() if p.applied is not None}
        if plan.view.fresh and plan.step == 0:
            applied |= {BEFORE_FIRST_STEP}
        hold(max(applied) - min(applied) <= 1, f"positions in one view differ by at most one step: {said}")
        hold(max(applied) == plan.step - 1, "a view goes on from the most advanced")
        if plan.view.fresh and number == max(self.plans):  # one that slept may open an old view, and goes at once
            lost = max(0, self.furthest - plan.step + 1)
            self.lost_steps += lost
            self.furthest = Step(plan.step - 1)
        hold(plan.step >= self.furthest, f"no step is lost: step {self.furthest} was applied, {plan.step} is open")
        for move in plan.first_moves:
            held = {w for w, p in said.items() if move.shard in self._state_of(w, p, plan.step)}
            if move.source is None:
                hold(not held or plan.view.fresh, f"the state of shard {move.shard} is lost, and {held} hold it")
            else:
                hold(move.source in held, f"{move.source} sends the state of shard {move.shard}, {held} hold it")

    def _state_of(self, worker: WorkerId, position: Position, step: Step) -> set[Shard]:
        """The shards whose state a member has when `step` begins: what it computed in the step before, or got since."""
        if position.applied == step - 1:
            return set(position.shard_state)
        if position.applied == step - 2:
            return {shard for (at, shard), who in self.holders.items() if at == step - 1 and worker in who}
        return set()

    def _dealt(self, dealt: Deal, plan: Plan) -> None:
        carried = sorted(shard for shards in dealt for shard in shards)
        hold(carried == list(range(self.simulation.swarm.shards)), f"every shard has one carrier: {dealt}")
        hold(len(dealt) == len(plan.view.members), "each member has a part of the deal")

    # steps

    def pass_started(self, worker: "Worker", step: Step, shard: Shard, shard_state: set[Shard]) -> None:
        if step > 0 and not self.simulation.restarted:
            hold(
                shard in shard_state or self._was_lost(worker, shard), f"{worker.name} lacks the state of shard {shard}"
            )

    def _was_lost(self, worker: "Worker", shard: Shard) -> bool:
        group = worker.script.started
        return group is not None and any(m.shard == shard and m.source is None for m in group.plan.first_moves)

    def held(self, worker: "Worker", step: Step, shard: Shard) -> None:
        self.holders.setdefault((step, shard), set()).add(worker.id)

    def applied(self, worker: "Worker", plan: Plan, results: Results) -> None:
        step = results.step
        world = self.simulation.world
        if world.trace is not None:
            world.say(
                f"{worker.name} applies step {step} in view {plan.view.number}{' (stop)' if results.stop else ''}"
            )
        script = worker.script
        hold(script.applied == step - 1, f"{worker.name} applies {step} after {script.applied}")
        hold(script.state == self.simulation.bits.undisturbed(step), f"{worker.name} has another State({step})")
        right = self.simulation.bits.undisturbed_result(step)
        hold(results.digest == right, f"{worker.name} applies another result of step {step}")
        hold(step <= self.furthest + 1, f"{worker.name} applies step {step}, a step ahead of everybody's next")
        self.furthest = max(self.furthest, step)
        for other in plan.view.workers:
            theirs = self.simulation.workers[other].script.position().applied
            near = (
                theirs >= step - 1 if theirs is not None else step < plan.step
            )  # fed while another waits for the state
            hold(near, f"{worker.name} applies step {step} while {other} of its view is at {theirs}")

    def installed(self, worker: "Worker", plan: Plan, state: Digest) -> None:
        right = state == self.simulation.bits.undisturbed(plan.step)
        hold(right, f"{worker.name} installs another State({plan.step})")

    def dealt(self, plan: Plan, step: Step, deal: Deal) -> None:
        first = self.deals.setdefault((plan.view.number, step), deal)
        hold(deal == first, f"all members have one deal of step {step} in view {plan.view.number}: {first} and {deal}")
        self._dealt(deal, plan)
        at, before = self.changed.get(plan.view.number, (Step(step - IN_A_ROW), deal))
        if before != deal:
            hold(
                step - at >= IN_A_ROW or at <= plan.step + 1, f"a deal does not flap: it changed at {at}, and at {step}"
            )
        if before != deal or plan.view.number not in self.changed:
            self.changed[plan.view.number] = (step, deal)

    def captured(self, follower: WorkerId, number: int, step: Step) -> None:
        first = self.captures.setdefault((follower, number), step)
        hold(step == first, f"all members capture one state for one wish: {first} and {step} for {follower}")

    def followed(self, worker: "Worker", step: Step, state: Digest) -> None:
        self.simulation.world.say(f"{worker.name} follows from step {step} on")
        hold(state == self.simulation.bits.undisturbed(step), f"{worker.name} follows with another State({step})")

    def fed(self, worker: "Worker", results: Results) -> None:
        """A follower has no view, and is never ahead of those that it follows."""
        script, step = worker.script, results.step
        hold(script.applied == step - 1, f"{worker.name} is fed {step} after {script.applied}")
        hold(
            script.state == self.simulation.bits.undisturbed(step), f"{worker.name} follows with another State({step})"
        )
        right = self.simulation.bits.undisturbed_result(step)
        hold(results.digest == right, f"{worker.name} is fed another result of step {step}")

    # the end

    def rest(self, worker: "Worker") -> None:
        """The code behind the loops runs."""
        document = self.simulation.register.document
        finished = document.finished if document is not None else None
        hold(finished is not None, f"{worker.name} runs the rest before the end")
        assert finished is not None
        hold(
            str(worker.script.state) == finished.digest,
            f"{worker.name} goes on with another state than the end's",
        )
        self.rested += 1

    def ended(self) -> None:
        document = self.simulation.register.document
        assert document is not None
        hold(document.status in (JobStatus.FINISHED, JobStatus.STOPPED), f"the job ends well, not {document.status}")
        if document.finished is None:
            hold(bool(document.stop), "a job without an end was asked to stop")
            return
        hold(self.rested > 0, "somebody ran the rest of the script")
        hold(
            document.lost_steps <= self.lost_steps,
            f"{document.lost_steps} steps said to be lost, {self.lost_steps} were",
        )
        if not self.simulation.restarted:
            hold(document.lost_steps == 0 and self.lost_steps == 0, "no lost step")

    def _tell(self, old: Document | None, new: Document) -> None:
        world = self.simulation.world
        fresh = new.events_total - (old.events_total if old is not None else 0)
        for event in new.events[len(new.events) - fresh :]:
            world.say(f"document {new.revision}: {event.kind}: {event.text}")
