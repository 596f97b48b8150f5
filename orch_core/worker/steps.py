"""The script thread's way through steps and views (ARCHITECTURE.md, "The life of a step" and "... of a failure").

::

    begin()                 State(s) is complete here: follow plans, feed others, take or move state, open step s
      next_pass() ... end_pass()      as long as shards dealt to this worker are missing
      next_pass() -> None             all rounds and the barrier are done: s is applied, `.grad` holds the mean
    ...                     the outer body
    end()                   the last step is applied: serve the state until the end of the job is committed

A view can end wherever this thread talks to others. Then :class:`ViewBroken` comes up here, the next plan is awaited,
and the same place is tried again: contributions are kept, and all rounds run again with the same bits.

A joiner *follows* before it is a member: State(s) comes to it beside the view, and then the results of every step. It
goes the same way, without passes; once a plan includes it, it goes on from where it is.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orch_core import failpoints, telemetry
from orch_core.contracts.document import Finished, Training
from orch_core.contracts.errors import ConfigurationError, MalformedMessage, OrchError, ViewBroken
from orch_core.contracts.ids import BEFORE_FIRST_STEP, Shard, Step, WorkerId
from orch_core.contracts.job import JobSpec
from orch_core.dataplane.engine import Engine
from orch_core.dataplane.group import Blob, Group, LinkLost
from orch_core.dataplane.kept import Results
from orch_core.dataplane.tcp import Kind
from orch_core.protocol.deal import Deal, Deals, Move
from orch_core.protocol.member import Plan
from orch_core.worker import state
from orch_core.worker.gradients import Gradients
from orch_core.worker.handover import Ended, Followed, Handover, Offer
from orch_core.worker.prepared import Prepared

PASSES_KEPT = 15

logger = logging.getLogger(__name__)


class StatesDiffer(OrchError):
    """Members hold different bits at one step. Always an error in what the script does."""


@dataclass(frozen=True, slots=True)
class Received:
    """State(s) from a donor, not yet put into the script's objects."""

    step: Step
    blob: Blob
    training: Training
    over: str
    outer: dict[str, float]


class Steps:
    """One per job and worker. All methods belong to the script thread."""

    def __init__(
        self, spec: JobSpec, handover: Handover, prepared: Prepared, make_engine: Callable[[], Engine]
    ) -> None:
        self._spec = spec
        self._feeds = handover.feeds
        self._handover = handover
        self._prepared = prepared
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._gradients: Gradients | None = None
        self._plan: Plan | None = None
        self._deals: Deals | None = None
        self._passes_took: deque[int] = deque(maxlen=PASSES_KEPT)  # microseconds
        self._pass_began = 0.0
        self._group: Group | None = None
        self._good = False  # the group has not broken under our hands
        self._fed: Results | None = None  # of the open step: they end it
        self._beside = False  # they came beside the view
        self._received: Received | None = None
        self._inner = False
        self._start: state.Start | None = None  # of the open step
        self._moved: tuple[int, int] | None = None  # (view, step) for which strategy state has moved
        self._reset = False
        self._compared: tuple[list[str], tuple[WorkerId, ...]] = ([], ())  # what the newest digests were of, and where
        self.training: Training | None = None
        self.applied: Step | None = None
        self.means: dict[str, float] = {}
        self.outer: dict[str, float] = {}  # what the outer body of the last step logged
        self.over = ""  # "" | "steps" | "stop" | "left": why there are no more steps
        self.stop_wanted = False
        self.passes = 0  # of this worker in the open step
        self._held: set[Shard] = set()  # shards whose contributions to the open step are here

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    @property
    def gradients(self) -> Gradients:
        assert self._gradients is not None
        return self._gradients

    @property
    def next_step(self) -> Step:
        return Step((BEFORE_FIRST_STEP if self.applied is None else self.applied) + 1)

    @property
    def is_first(self) -> bool | None:
        """Whether this worker is the view's lowest member; None before there is a view."""
        if self._plan is None:
            return False if self._handover.follows else None
        return self._plan.index == 0

    @property
    def started(self) -> bool:
        return self._engine is not None

    def start(self, complain: Callable[[Any], Any]) -> None:
        """Fix what is trained. Raises ConfigurationError."""
        self._prepared.close()
        self._gradients = Gradients(self._prepared, complain)
        self._engine = self._make_engine()
        state.capture(self._prepared, state.Start.of(self._prepared))  # refuse now what could not travel later

    def train(self, training: Training) -> None:
        """The loops' numbers are known. Raises ConfigurationError if other workers have others."""
        if self.training is not None and self.training != training:
            raise ConfigurationError(
                f"the loops of this worker do not fit the job: {_numbers(training)} here, {_numbers(self.training)} "
                f"there; give epochs() and batches() the same numbers on every worker"
            )
        self.training = training
        self._handover.tell(training=training)

    # ---------------------------------------------------------------- between two steps

    def join(self) -> Step:
        """Wait to be taken into a job that runs; the step that is open there. Raises Ended."""
        while self.applied is None:
            try:
                self._await_word()
            except ViewBroken as error:
                self._lose(error)
        return self.next_step

    def begin(self) -> Step | None:
        """State(s) is complete: everything that belongs between two steps. None: there are no more steps."""
        self._inner = False
        while not self.is_over():
            try:
                self._await_word()
                if self.is_over():  # a state that came in may be the last
                    break
                plan, step = self._plan, self.next_step
                if plan is not None and plan.paused and step > plan.step and not self._handover.stop_asked:
                    self._handover.tell_now(doing=f"paused: {len(plan.view.members)} of {plan.min_workers} workers")
                    self._wait(or_stop=True)
                    continue
                self._install()
                if self._is_member(step):
                    self._move(step)
                self._open(step)
                return step
            except ViewBroken as error:
                self._lose(error)
        self._install()
        return None

    def is_over(self) -> bool:
        training, end_at = self.training, self._handover.end_at
        if not self.over and training is not None and self.applied is not None:
            if self.next_step >= training.steps:
                self.over = "steps"
            elif end_at is not None and self.next_step >= end_at:
                self.over = "stop"  # training ended here once, and everybody who knew its state has died
        return bool(self.over)

    def _open(self, step: Step) -> None:
        self._prepared.check()
        self._start = state.Start.of(self._prepared)
        self.engine.open(step, self._start.buffers)
        self._held = set()
        self.passes = 0
        self._capture_for_followers(step)
        plan = self._plan
        shards = self._mine(step) if plan is not None and self._is_member(step) else ()
        self._handover.tell(shards=shards, doing="", reset=self._reset)

    def _is_member(self, step: Step) -> bool:
        """It takes part in `step`: it neither follows nor waits for that step's results."""
        return self._plan is not None and self._fed is None and step >= self._plan.step

    # ---------------------------------------------------------------- in the inner loop

    def restore_buffers(self) -> None:
        """Every pass, a redone one too, starts from the buffers at the step's start."""
        if self._prepared.buffers:
            self.engine.restore_buffers(self._prepared.buffer_tensors())

    def enter(self) -> None:
        """The script's inner loop begins."""
        self._inner = True
        self.gradients.begin_step()
        self._handover.tell(entered=self.engine.step)

    def next_pass(self) -> Shard | None:
        """The shard to compute next. None: the step is applied, and the mean gradient is in `.grad`."""
        step = self.engine.step
        while True:
            try:
                if self._fed is None:
                    self._await_word()
                plan = self._plan
                if self._fed is None and plan is not None and step < plan.step:
                    self._fed = self._receive_results(plan)
                if self._fed is not None:
                    results = self.engine.finish_from(self._fed)
                    self._apply(results)
                    return None
                assert plan is not None
                self._move(step)
                for shard in self._mine(step):
                    if shard not in self._held:
                        self._handover.start_pass(shard)
                        self.passes += 1
                        self._pass_began = time.perf_counter()
                        return shard
                self._apply(self._finish(plan, step))
                return None
            except ViewBroken as error:
                self._lose(error)

    def end_pass(self, shard: Shard, grads: Sequence[Tensor | None], logged: dict[str, float]) -> None:
        self.engine.contribute(shard, grads, self._prepared.buffer_tensors(), logged)
        self._held.add(shard)
        self._handover.end_pass(shard)
        self._passes_took.append(max(1, int(1e6 * (time.perf_counter() - self._pass_began))))
        self._handover.pass_ms = self.cost / 1000
        self._handover.cost = self._told_cost
        telemetry.PASS_DURATION.set(self.cost / 1e6)
        failpoints.reach("contributed", self.engine.step)

    def outer_body_over(self) -> None:
        if self.outer:
            self._handover.tell(means={**self.means, **self.outer})

    @property
    def cost(self) -> int:
        """Of one of its passes, in microseconds: the lower median of the newest ones. 0: not known."""
        if len(self._passes_took) < 2:
            return 0
        return sorted(self._passes_took)[(len(self._passes_took) - 1) // 2]

    @property
    def _told_cost(self) -> int:
        """What deals are made from: with equal ones nothing is told."""
        return 0 if self._spec.deal == "equal" else self.cost

    def _dealt(self, step: Step) -> Deal:
        assert self._deals is not None
        return self._deals.dealt(step)

    def _mine(self, step: Step) -> tuple[Shard, ...]:
        assert self._plan is not None
        return self._dealt(step)[self._plan.index]

    def shards_wanted(self, step: Step) -> tuple[Shard, ...]:
        """What this worker is to load for `step`, as far as the present plan goes."""
        plan = self._plan
        if plan is None or step < plan.step:
            return ()
        mine = self._mine(step)
        if self._engine is None or step != self.engine.step:
            return mine
        return tuple(shard for shard in mine if shard not in self._held)

    def _finish(self, plan: Plan, step: Step) -> Results:
        digests = None
        if step % self._spec.check_every == 0 and len(plan.view.members) > 1:
            captured = self._capture()
            digests, self._compared = captured.digests(), (captured.entries(), plan.view.workers)
        deal, mine = self._dealt(step), set(self._mine(step))
        if self._held - mine:  # finish() drops what others carry
            self._held &= mine
            self._handover.contributions(self._held)
        if self._feeds.any:
            self._feeds.size_up(state.size(self._prepared))
        stop = self.stop_wanted or self._handover.stop_asked
        group = self._group
        before = 0 if group is None else group.bytes_sent
        results = self.engine.finish(
            deal, plan.index, group, stop=stop, digests=digests, asked=self._feeds.waiting(), cost=self._told_cost
        )
        if group is not None:
            telemetry.SYNC_BYTES.add(group.bytes_sent - before)
        return results

    def _apply(self, results: Results) -> None:
        """Handed to the outer body: from the first line on the step counts as applied. Raises ViewBroken before it."""
        step, means = results.step, results.means
        if self._beside:
            self._handover.caught_up(means)
        else:
            self._handover.apply(step, self.engine.state_shards_when_applied, means)
        self.gradients.leave_pass()
        self.engine.write(results, self._prepared.parameters, self.gradients.left)
        self.engine.write_buffers(results, self._prepared.buffer_tensors())
        self.engine.apply(results)
        self.applied, self.means, self.outer = step, means, {}
        self._after(results)
        if self._deals is not None and self._deals.applied(step, results.costs):
            if self.is_first:
                telemetry.DEAL_CHANGES.add(1)  # one of all members counts it
            counts = [len(shards) for shards in self._dealt(Step(step + 1))]
            logger.info("event=deal-changed step=%d shards=%s costs_us=%s", step + 1, counts, list(results.costs))
        self._feeds.push(results)
        failpoints.reach("applied", step)
        if results.difference is not None and self._plan is not None:
            raise StatesDiffer(self._explain(results))
        if self._plan is not None and self._plan.step == step + 1:
            self._handover.tell_now(holds=self._plan.view.number)

    def _after(self, results: Results) -> None:
        self._inner, self._fed, self._beside = False, None, False
        self._reset = self._reset or bool(results.reset)
        if results.stop:
            self.over = "stop"

    def _explain(self, results: Results) -> str:
        difference = results.difference
        assert difference is not None
        entries, workers = self._compared
        groups = [", ".join(workers[m] for m in group if m < len(workers)) for group in difference.groups]
        known = difference.index is not None and difference.index < len(entries)
        where = f"in {entries[difference.index or 0]}" if known else "in number"
        step = results.step
        if step == 0:
            return (
                f"the initial states differ {where}: {' and '.join(groups)} do not match; build the same model on "
                f"every worker, after orch.init(), and do not seed by process, clock or random device"
            )
        since = max(0, step - self._spec.check_every)
        return (
            f"the states of {' and '.join(groups)} differ {where}: they drifted apart between step {since} and {step}; "
            f"the usual causes are an outer body that decides by a local loss, a clock or a counter of its own instead "
            f"of batch.means, run.step and kept objects, and random numbers from a generator of its own"
        )

    # ---------------------------------------------------------------- views

    def _await_word(self) -> None:
        """Return with the plan of an open group, after everything that it asks for first, or with what came beside it.

        Raises ViewBroken, Ended.
        """
        while self._fed is None:
            match self._handover.next_word():
                case None:
                    if not self._good:
                        raise ViewBroken("waits for the next view")
                    return
                case Offer() as offer:
                    self._adopt(offer)
                case Followed(step, state=None, results=results):
                    if step != self.next_step:
                        raise ConfigurationError(f"results of step {step} came to who is at step {self.next_step}")
                    self._fed, self._beside = results, True
                case Followed(step, state=blob):
                    assert blob is not None
                    self._read_state(step, blob)
                    return

    def _wait(self, *, or_stop: bool = False) -> None:
        """For another view. Raises ViewBroken, Ended."""
        match self._handover.next_word(newer=True, or_stop=or_stop):
            case Offer() as offer:
                self._adopt(offer)
            case Followed():
                raise ConfigurationError("results came behind the last step")

    def _lose(self, error: ViewBroken) -> None:
        """Let go of the group. The keeper says how it goes on."""
        plan, group = self._plan, self._group
        self._group, self._good = None, False
        if not self._beside:
            self._fed = None
        if group is not None:
            group.close()
        if plan is not None:
            self._handover.lose(plan.view.number, error.peer if isinstance(error, LinkLost) else None)

    def _adopt(self, offer: Offer) -> None:
        """Follow a plan: feed those behind, give or take the state. Raises ViewBroken."""
        if self._group is not None:
            self._group.close()
        plan, self._plan, self._group, self._good = offer.plan, offer.plan, offer.group, True
        self._deals = plan.deals()
        self._held = {shard for partial in self.engine.held for shard in partial}
        self._handover.contributions(self._held)
        if self.applied is None and plan.me not in plan.without_state:
            self._hold(Step(plan.step))
        place = {worker: index for index, worker in enumerate(plan.view.workers)}
        if plan.me == plan.donor:
            self._give(plan, [place[w] for w in plan.behind], [place[w] for w in plan.without_state])
        elif plan.donor is not None and plan.me in plan.without_state:
            self._receive(plan, place[plan.donor])
        elif plan.me in plan.behind:
            return  # it holds the state once it has been fed, in its inner loop
        if self.applied is not None and self.applied + 1 != plan.step:
            raise ConfigurationError(
                f"view {plan.view.number} is at step {plan.step}, but this worker has applied {self.applied}"
            )
        shards = self._mine(plan.step)
        self._handover.tell_now(holds=plan.view.number, shards=shards)

    def _hold(self, step: Step) -> None:
        self._handover.hold_state(step, self.engine.state_shards)
        self.applied = Step(step - 1)

    def _give(self, plan: Plan, behind: list[int], without: list[int]) -> None:
        group = self._group
        if group is None or not (behind or without):
            return
        results = None if self.engine.results is None else self.engine.results.encode()
        if behind:
            assert results is not None
            group.exchange_blobs(Kind.RESULTS, plan.step - 1, dict.fromkeys(behind, results), ())
        if without:
            header, tensors = self._outgoing_state(plan.step, results)
            half = len(tensors) // 2
            group.exchange_blobs(Kind.STATE, plan.step, dict.fromkeys(without, Blob(header, tensors[:half])), ())
            failpoints.reach("state-half-sent", plan.step)
            group.exchange_blobs(Kind.STATE, plan.step, dict.fromkeys(without, Blob(None, tensors[half:])), ())

    def _outgoing_state(self, step: Step, results: Blob | None) -> tuple[dict[str, Any], list[Tensor]]:
        """State(step), the strategy's part of it, and the results of the step before: whoever has it can feed, too."""
        captured, shared = self._capture(), self.engine.export_state()
        self.is_over()
        training = self.training
        assert training is not None
        header = {
            "version": 1,
            "step": step,
            "training": [training.epochs, training.samples, training.batch_size],
            "over": self.over,
            "means": self.means,
            "outer": self.outer,
            "reset": self._reset,
            "state": captured.header,
            "shared": shared.header,
            "results": None if results is None else results.header,
            "counts": [len(captured.tensors), len(shared.tensors)],
        }
        return header, [*captured.tensors, *shared.tensors, *(() if results is None else results.tensors)]

    def _receive(self, plan: Plan, donor: int) -> None:
        group = self._group
        assert group is not None
        first = group.exchange_blobs(Kind.STATE, plan.step, {}, [donor])[donor]
        failpoints.reach("state-half-received", plan.step)
        second = group.exchange_blobs(Kind.STATE, plan.step, {}, [donor])[donor]
        self._hold(plan.step)  # raises if the view is over: then nothing of this may stay behind
        self._read_state(plan.step, Blob(first.header, [*first.tensors, *second.tensors]))

    def _read_state(self, step: Step, sent: Blob) -> None:
        """Take what :meth:`_outgoing_state` of another member has packed. Raises MalformedMessage."""
        raw, tensors = sent.header, list(sent.tensors)
        try:
            if raw["version"] != 1 or raw["step"] != step:
                raise MalformedMessage(f"a state of step {raw['step']} came where {step} was expected")
            own, shared = (int(count) for count in raw["counts"])
            training = Training(*(int(number) for number in raw["training"]))
            blob = Blob(raw["state"], tensors[:own])
            received = Received(step, blob, training, str(raw["over"]), dict(raw["outer"]))
            of_strategy = Blob(raw["shared"], tensors[own : own + shared])
            results = None if raw["results"] is None else Results.decode(Blob(raw["results"], tensors[own + shared :]))
            means, reset = {str(k): float(v) for k, v in raw["means"].items()}, bool(raw["reset"])
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedMessage(f"a state cannot be read: {error!r}") from error
        self.applied = Step(step - 1)
        self._received = received
        self.engine.import_state(of_strategy)
        self.engine.results = results
        self.means, self.outer, self.over = means, received.outer, received.over
        self._reset = self._reset or reset
        if self.training is None:
            self.train(training)
        elif self.training != training:
            self.train(training)  # says what differs

    def _receive_results(self, plan: Plan) -> Results:
        group = self._group
        assert group is not None
        assert plan.donor is not None
        step, donor = Step(plan.step - 1), plan.view.workers.index(plan.donor)
        if step != self.engine.step:
            raise ConfigurationError(f"this worker was to be fed step {step}, but is at step {self.engine.step}")
        return Results.decode(group.exchange_blobs(Kind.RESULTS, step, {}, [donor])[donor])

    def _install(self) -> None:
        received, self._received = self._received, None
        if received is not None:
            state.install(self._prepared, received.blob)

    def _move(self, step: Step) -> None:
        """Strategy state of shards that change hands before `step`. Raises ViewBroken."""
        plan, group = self._plan, self._group
        assert plan is not None
        if group is None or not self.engine.has_shard_state or self._moved == (plan.view.number, step):
            return
        assert self._deals is not None
        place = {worker: index for index, worker in enumerate(plan.view.workers)}
        moves = [m for m in self._deals.moves(step) if m.source is not None and m.source != m.target]
        sends = self._packed([move for move in moves if move.source == plan.me], place)
        receives = sorted({place[move.source] for move in moves if move.target == plan.me and move.source is not None})
        for blob in group.exchange_blobs(Kind.SHARD_STATE, step, sends, receives).values():
            tensors = list(blob.tensors)
            for header, count in blob.header:
                self.engine.import_shard(Blob(header, tensors[:count]))
                del tensors[:count]
        self._handover.hold_shards(self.engine.state_shards)
        self._moved = (plan.view.number, step)

    def _packed(self, moves: Sequence[Move], place: dict[Any, int]) -> dict[int, Blob]:
        packed: dict[int, tuple[list[Any], list[Tensor]]] = {}
        for move in moves:
            headers, tensors = packed.setdefault(place[move.target], ([], []))
            blob = self.engine.export_shard(move.shard)
            headers.append([blob.header, len(blob.tensors)])
            tensors.extend(blob.tensors)
        return {target: Blob(headers, tensors) for target, (headers, tensors) in packed.items()}

    # ---------------------------------------------------------------- the state

    def _capture(self) -> state.Captured:
        """State(next step), from between two steps or from inside the inner loop."""
        if self._received is not None:  # not yet in the objects; whoever asks now gets what came
            received = self._received.blob
            return state.Captured(received.header, list(received.tensors), [])
        start = self._start if self._inner and self._start is not None else state.Start.of(self._prepared)
        return state.capture(self._prepared, start)

    def _capture_for_followers(self, step: Step) -> None:
        """All members do this between the same two steps, for the same followers."""
        results = self.engine.results
        asked = results.asked if results is not None and results.step == step - 1 else ()
        if results is not None and self._feeds.knows(asked):
            kept = results.encode()
            header, tensors = self._outgoing_state(step, kept)
            changing = sum(tensor.nbytes for tensor in tensors[: len(tensors) - len(kept.tensors)])
            self._feeds.capture(asked, step, Blob(header, tensors), changing)

    # ---------------------------------------------------------------- the end

    def end(self) -> None:
        """Serve the state until the end is committed."""
        self._inner = False
        self._install()
        self.gradients.stop_watching()
        self._handover.tell_now(done=self.finished(), entered=None, shards=())
        while True:
            try:
                self._wait()
            except ViewBroken as error:
                self._lose(error)
            except Ended:
                break
            else:
                continue
        if self._group is not None:
            self._group.close()
            self._group = None

    def finished(self) -> Finished:
        training = self.training
        assert training is not None
        assert self.applied is not None
        return Finished(
            steps=self.next_step,
            digest=self._capture().sha256(),
            weights_sha256=state.weights_sha256(self._prepared.models),
            final=self.means | self.outer,
            training=training,
            bit_exact=self.engine.strategy.deterministic and not self._reset,
            stopped=self.over in ("stop", "left"),
        )


def _numbers(training: Training) -> str:
    return f"{training.epochs} epochs of {training.samples} samples in batches of {training.batch_size}"
