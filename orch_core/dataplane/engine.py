"""One worker's engine: contributions in, mean gradients out. Lives as long as the job, across views.

::

    engine = Engine(strategy, "topk", Layout.of(named_parameters, bucket_bytes), BufferLayout.of(named_buffers),
                    seed=7, shards=12)

    engine.open(s, buffers)                                   # step s; every earlier contribution is forgotten
    engine.restore_buffers(buffers)                           # before each pass: as at the step's start
    engine.contribute(shard, grads, buffers, logged)          # after each pass; starts the strategy's coroutines
    engine.held                                               # ((0, 1, 2, 3), (8,)): the partials, for the hello
    results = engine.finish(deal, me, group, stop=False, digests=None, asked=())     # all rounds, then the barrier
    results = engine.finish_from(results)                     # instead: results of this step, fed by a donor
    results.means, results.stop, results.difference, ...      # what the step decided, equal on all members
    engine.write(results, parameters, left_grads); engine.write_buffers(results, buffers)
    engine.apply(results)                                     # staged values become state; results are kept
    engine.results                                            # of the last applied step: for who is behind. A joiner
                                                              # sets it to what came with State(s), to feed others

* `deal` is one collection of shards per member of the view, `me` this member's index in it, `group` None for one
  member. `finish` raises ViewBroken when the view ends, changes nothing then, and is called again with the next
  view's deal and group (after the passes of shards that came to this member): all rounds run again, same bits.
* `grads` is one entry per parameter of the layout, `.grad` or None; `buffers` one entry per buffer of the layout: its
  present tensor, which may be another object than last time.
* State of strategies: `engine.state_shards` for the hello (`state_shards_when_applied` for one that may follow before
  `apply` has returned); `export_state()` / `import_state(blob)` for what all shards share (goes to a joiner with
  State(s)); `export_shard(shard)` / `import_shard(blob)` for moves, which may be left out while
  `engine.has_shard_state` is False. A shard whose state is not here starts from zeros and is told in `results.reset`.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from orch_core import failpoints
from orch_core.contracts.errors import StrategyError
from orch_core.contracts.ids import BEFORE_FIRST_STEP, Shard, Step
from orch_core.contracts.sync import GradientSync
from orch_core.dataplane import barrier, buffers
from orch_core.dataplane.barrier import BarrierPart
from orch_core.dataplane.buffers import BufferLayout
from orch_core.dataplane.comm import Run, ShardComm
from orch_core.dataplane.group import Blob, Group
from orch_core.dataplane.kept import Results
from orch_core.dataplane.layout import Layout
from orch_core.dataplane.partials import Partials
from orch_core.dataplane.rounds import Call, Deal, Operation, run_calls
from orch_core.dataplane.strategystate import StateKey, StrategyState
from orch_core.dataplane.tcp import Kind, UnexpectedFrame
from orch_core.protocol.tree import maximal

BARRIER_LIMIT = 0  # bytes of tensors in a barrier part: it is all JSON
PHANTOM = Shard(0)


@dataclass(slots=True)
class _Contribution:
    """What one shard brought to the open step."""

    runs: list[Run]  # per bucket, then per group of buffers
    logged: Mapping[str, float]
    presence: int


@dataclass(slots=True)
class _Round:
    operation: Operation
    partials: Partials


@dataclass(slots=True)
class _Open:
    """The open step. Contributions are immutable until it is applied."""

    step: Step
    start: list[Tensor]  # buffers
    contributions: dict[Shard, _Contribution] = field(default_factory=dict)
    rounds: dict[tuple[int, int], _Round] = field(default_factory=dict)
    sums: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    reset: set[Shard] = field(default_factory=set)
    phantom: list[Run] | None = None  # of a member without shards

    def runs(self) -> Iterator[Run]:
        for contribution in self.contributions.values():
            yield from contribution.runs
        yield from self.phantom or ()


class Engine:
    """See the top of this file. All methods are called from the script thread."""

    def __init__(
        self,
        strategy: GradientSync[Tensor],
        name: str,
        layout: Layout,
        buffer_layout: BufferLayout | None = None,
        *,
        seed: int,
        shards: int,
    ) -> None:
        self.layout = layout
        self.buffer_layout = buffer_layout or BufferLayout()
        self.shards = shards
        self.strategy = strategy
        self.name = name
        self.results: Results | None = None  # of the last applied step
        self._seed = seed
        self._state = StrategyState(shards)
        self._open = _Open(BEFORE_FIRST_STEP, [])
        self._reused: dict[int, Tensor] = {}  # per bucket, for strategies that do not read gradients later

    # The open step

    @property
    def step(self) -> Step:
        """The open one."""
        return self._open.step

    @property
    def held(self) -> tuple[tuple[Shard, ...], ...]:
        """The partials of the open step, each as the shards that are in it."""
        places = maximal(self._open.contributions, self.shards)
        return tuple(tuple(Shard(shard) for shard in range(place.lo, place.hi)) for place in places)

    def open(self, step: Step, present_buffers: Sequence[Tensor] = ()) -> None:
        """Begin a step: `present_buffers` are the buffers as State(step) has them."""
        self._forget()
        self._open = _Open(step, buffers.capture(present_buffers))

    def restore_buffers(self, present_buffers: Sequence[Tensor]) -> None:
        """Before a pass: buffers as they were at the step's start."""
        buffers.restore(self._open.start, present_buffers)

    def contribute(
        self,
        shard: Shard,
        grads: Sequence[Tensor | None],
        present_buffers: Sequence[Tensor] = (),
        logged: Mapping[str, float] | None = None,
    ) -> None:
        """Take what a pass left behind, and run the strategy's coroutines for this shard up to their first rounds.

        Raises ConfigurationError for a sparse gradient, StrategyError.
        """
        if shard in self._open.contributions:
            raise StrategyError(f"shard {shard} has contributed to step {self.step} before")
        if shard not in self._state.held:
            self._open.reset.add(shard)
        changed = buffers.changes(self._open.start, present_buffers)
        runs: list[Run] = []
        self._open.contributions[shard] = _Contribution(runs, dict(logged or {}), self.layout.presence(grads))
        try:
            for run in self._runs(shard, grads, changed):
                runs.append(run)
                self._advance(run, len(runs) - 1, None)
        except BaseException:
            self._open.contributions.pop(shard)
            raise

    def drop(self, shards: Collection[Shard]) -> None:
        """Forget what these shards contributed; they must be whole partials."""
        self._keep(set(self._open.contributions) - set(shards))

    # The end of the step

    def finish(
        self,
        deal: Deal,
        me: int,
        group: Group | None = None,
        *,
        stop: bool = False,
        left: Step | None = None,
        digests: Sequence[int] | None = None,
        asked: Sequence[tuple[str, int]] = (),
        cost: int = 0,
    ) -> Results:
        """Run all rounds of the step and its barrier. Every shard in `deal[me]` must have contributed.

        Raises ViewBroken (call again in the next view), StrategyError.
        """
        if sorted(shard for carried in deal for shard in carried) != list(range(self.shards)):
            raise StrategyError(f"the deal {[sorted(carried) for carried in deal]} is not one of {self.shards} shards")
        if missing := set(deal[me]) - set(self._open.contributions):
            raise StrategyError(f"shards {sorted(missing)} have not contributed to step {self.step} yet")
        self._keep(deal[me])
        if not self._open.contributions and self._open.phantom is None:
            self._start_phantom()
        with torch.no_grad():
            self._run_rounds(deal, me, group)
        part = replace(self._part(me, stop, left, digests), asked=tuple(asked), cost=cost)
        parts = self._run_barrier(part, group)
        return Results(self.step, self.shards, self._gradients(), dict(self._open.sums), parts)

    def finish_from(self, results: Results) -> Results:
        """Finish the open step with results that another member kept, as if our own rounds had ended."""
        if results.step != self.step or results.shards != self.shards:
            raise StrategyError(f"results of step {results.step} were fed to who is at step {self.step}")
        self._open.sums = dict(results.rounds)
        if not self._open.contributions and self._open.phantom is None:
            self._start_phantom()
        with torch.no_grad():
            for index in itertools.count():
                if not self._wave(index):
                    return results
                self._feed(index)
        raise AssertionError("unreachable")

    def write(self, results: Results, parameters: Sequence[Tensor], left: Sequence[Tensor | None]) -> None:
        """Put the mean gradients into the parameters' `.grad`, added to what the script had left there."""
        self.layout.write(results.gradients, results.presence, parameters, left)

    def write_buffers(self, results: Results, present_buffers: Sequence[Tensor]) -> None:
        """Set the buffers to what the step made of them."""
        first = len(self.layout.buckets)
        groups = range(first, first + len(self.buffer_layout.groups))
        rounds = [(results.rounds[index, 0], results.rounds.get((index, 1))) for index in groups]
        buffers.write(self.buffer_layout, rounds, self._open.start, present_buffers)

    def apply(self, results: Results) -> None:
        """The step is done: staged values become state, contributions go, results stay for who is behind."""
        staged: dict[StateKey, Tensor] = {}
        for shard, contribution in sorted(self._open.contributions.items()):
            for bucket, run in enumerate(contribution.runs):
                for (name, scope), value in run.comm.staged.items():
                    key = StateKey(name, shard if scope == "shard" else None, bucket)
                    staged.setdefault(key, value)
        for bucket, run in enumerate(self._open.phantom or ()):
            for (name, scope), value in run.comm.staged.items():
                if scope == "job":
                    staged.setdefault(StateKey(name, None, bucket), value)
                else:
                    self._state.know([(name, bucket, value)])
        self._state.apply(((key, self._lasting(key.bucket, value)) for key, value in staged.items()), self._carried())
        self.results = results
        self._forget()
        self._open = _Open(results.step, [])

    # State of strategies

    @property
    def state_shards(self) -> tuple[Shard, ...]:
        """Shards whose strategy state is here; all of them while the strategy has none."""
        return self._state.held

    @property
    def state_shards_when_applied(self) -> tuple[Shard, ...]:
        """What :attr:`state_shards` will be once the open step is applied, as it stands now."""
        staged = any(scope == "shard" for run in self._open.runs() for _, scope in run.comm.staged)
        return tuple(sorted(self._carried())) if staged or self._state.has_shard_state else self._state.held

    @property
    def has_shard_state(self) -> bool:
        """Some shard has staged state of its own, so it must move with the shards. Equal on all members."""
        return self._state.has_shard_state

    def export_state(self) -> Blob:
        """What all shards share: belongs to State(s)."""
        return self._state.export(None)

    def import_state(self, blob: Blob) -> None:
        """Take a donor's shared state. Whatever was here is gone. Raises MalformedMessage."""
        self._state.take(blob)

    def export_shard(self, shard: Shard) -> Blob:
        """One shard's strategy state, as of the last applied step."""
        return self._state.export(shard)

    def import_shard(self, blob: Blob) -> None:
        """Take one shard's state, before its pass. Raises MalformedMessage."""
        self._state.take(blob)

    # Rounds

    def _run_rounds(self, deal: Deal, me: int, group: Group | None) -> None:
        for index in itertools.count():
            wave = self._wave(index)
            if not wave:
                return
            calls = [self._call(bucket, index) for bucket in wave]
            try:
                sums = run_calls(calls, self.step, deal, me, group, self.shards)
            except UnexpectedFrame as error:
                raise self._disagreement(error) from error
            for bucket, total in zip(wave, sums, strict=True):
                self._open.sums.setdefault((bucket, index), total)  # of an earlier view: the same bits, already used
            self._feed(index)

    def _wave(self, index: int) -> list[int]:
        """Buckets in which round `index` takes place. All runs of a bucket must agree about that."""
        wave = []
        for bucket, runs in enumerate(self._by_bucket()):
            going = [run.rounds > index for run in runs]
            if any(going) and not all(going):
                raise StrategyError(
                    f"{runs[going.index(False)].where}: it returned after {index} rounds, but shard "
                    f"{runs[going.index(True)].comm.shard} goes on; every shard must issue the same rounds"
                )
            if going[0]:
                wave.append(bucket)
        return wave

    def _call(self, bucket: int, index: int) -> Call:
        found = self._open.rounds[bucket, index]
        return Call(self._named(bucket), bucket, index, found.operation, found.partials.sums)

    def _feed(self, index: int) -> None:
        """Hand round results to the runs that wait for them."""
        for bucket, runs in enumerate(self._by_bucket()):
            for run in runs:
                if run.rounds == index + 1 and run.result is None:
                    if (bucket, index) not in self._open.sums:
                        raise StrategyError(f"{run.where}: the results that were fed have no round {index}")
                    self._advance(run, bucket, self._open.sums[bucket, index])

    def _advance(self, run: Run, bucket: int, result: Tensor | None) -> None:
        with torch.no_grad():
            request = run.advance(result)
        if request is None:
            return
        key = (bucket, run.rounds - 1)
        operation = request.operation
        known = self._open.rounds.get(key)
        if known is None:
            try:
                _ = operation.added_in
            except StrategyError as error:
                raise StrategyError(f"{run.where}: {error}") from error
            known = self._open.rounds[key] = _Round(operation, Partials(self.shards))
        elif known.operation != operation:
            raise StrategyError(
                f"{run.where}: it asks for a {operation} in round {key[1]}, but another shard for a {known.operation}; "
                f"every shard must issue the same rounds with the same shapes"
            )
        if run is not self._phantom_run(bucket):
            value = operation.flatten(request.value)
            fresh = value.untyped_storage().data_ptr() != request.value.untyped_storage().data_ptr()
            reused = self._is_reused(bucket, value)
            known.partials.add(run.comm.shard, value, reused=reused, given=fresh)
            if not reused:
                run.protect(request.given)

    def _run_barrier(self, part: BarrierPart, group: Group | None) -> tuple[BarrierPart, ...]:
        parts = [part]
        if group is not None:
            blob = Blob(barrier.encode(part))
            sends = dict.fromkeys(group.peers, blob)
            try:
                got = group.exchange_blobs(
                    Kind.BARRIER, self.step, sends, group.peers, limit=BARRIER_LIMIT, sent=self._barrier_sent
                )
            except UnexpectedFrame as error:
                raise self._disagreement(error) from error
            parts.extend(barrier.decode(blob.header) for blob in got.values())
        parts.sort(key=lambda part: part.member)
        if wrong := barrier.uncovered(parts, self.shards):
            raise StrategyError(f"shards {list(wrong)} of step {self.step} were not carried by exactly one member")
        return tuple(parts)

    def _barrier_sent(self) -> None:
        failpoints.reach("barrier-sent", self.step)

    def _part(self, me: int, stop: bool, left: Step | None, digests: Sequence[int] | None) -> BarrierPart:
        contributions = sorted(self._open.contributions.items())
        bits = 0
        for _, contribution in contributions:
            bits |= contribution.presence
        return BarrierPart(
            member=me,
            shards=tuple(shard for shard, _ in contributions),
            logged={shard: contribution.logged for shard, contribution in contributions if contribution.logged},
            presence=bits,
            stop=stop,
            left=left,
            digests=None if digests is None else tuple(digests),
            reset=tuple(sorted(self._open.reset)),
        )

    def _gradients(self) -> tuple[Tensor, ...]:
        """What the strategy returned, once per bucket; every shard must have returned the same."""
        found = []
        for bucket, runs in zip(self.layout.buckets, self._by_bucket(), strict=False):
            first = runs[0].result
            for run in runs:
                assert run.result is not None
                assert first is not None
                if run.result.shape != (bucket.size,) or run.result.dtype != bucket.dtype:
                    raise StrategyError(
                        f"{run.where}: it returned {run.result.dtype} of shape {tuple(run.result.shape)}; the gradient "
                        f"is {bucket.dtype} of shape {(bucket.size,)}"
                    )
                if run.result is not first and not buffers.same_bits(run.result, first):
                    raise StrategyError(
                        f"{run.where}: it returned something else than shard {runs[0].comm.shard}; every shard must "
                        f"return the same tensor, so make it from results of rounds and rng('step') only"
                    )
            assert first is not None
            found.append(self._lasting(bucket.index, first.contiguous()))
        return tuple(found)

    # Coroutines

    def _runs(
        self, shard: Shard, grads: Sequence[Tensor | None] | None, changed: Mapping[int, Tensor]
    ) -> Iterator[Run]:
        """One per bucket, then one per group of buffers; `grads` None: all zeros."""
        for bucket in self.layout.buckets:
            flat = self._flat(bucket.index)
            if grads is None:
                flat.zero_()
            else:
                self.layout.gather(bucket, grads, flat)
            comm = self._comm(shard, bucket.index)
            coroutine: Any = self.strategy.reduce(self.layout.bucket(bucket, flat), comm)
            yield Run(self._named(bucket.index), bucket.index, comm, coroutine)
        for index, group in enumerate(self.buffer_layout.groups, len(self.layout.buckets)):
            comm = self._comm(shard, index)
            coroutine = buffers.reduce_buffers(group, self._open.start, changed, comm)
            yield Run(self._named(index), index, comm, coroutine)

    def _start_phantom(self) -> None:
        """A member without shards runs the strategy for a shard without gradients that counts nowhere.

        Every shard issues the same rounds whatever its gradient is, and all return the same tensor: so this tells which
        rounds take place, and what comes of them, without any word from others.
        """
        runs = list(self._runs(PHANTOM, None, {}))
        self._open.phantom = runs
        for bucket, run in enumerate(runs):
            self._advance(run, bucket, None)

    def _phantom_run(self, bucket: int) -> Run | None:
        return self._open.phantom[bucket] if self._open.phantom is not None else None

    def _comm(self, shard: Shard, bucket: int) -> ShardComm:
        return ShardComm(
            step=self.step, shard=shard, shards=self.shards, seed=self._seed, bucket=bucket, read=self._state.read
        )

    def _by_bucket(self) -> list[list[Run]]:
        """The local runs of each bucket, by shard."""
        everyone = [contribution.runs for _, contribution in sorted(self._open.contributions.items())]
        return [list(runs) for runs in zip(*(everyone or [self._open.phantom or []]), strict=True)]

    def _keep(self, shards: Collection[Shard]) -> None:
        """Drop contributions of shards that are dealt to somebody else, and the phantom if there are any of ours."""
        for shard in [shard for shard in self._open.contributions if shard not in shards]:
            for run in self._open.contributions.pop(shard).runs:
                run.close()
        for found in self._open.rounds.values():
            found.partials.keep(shards)
        self._open.reset &= set(shards)
        if self._open.contributions and self._open.phantom is not None:
            for run in self._open.phantom:
                run.close()
            self._open.phantom = None

    def _forget(self) -> None:
        for run in self._open.runs():
            run.close()

    def _carried(self) -> set[Shard]:
        return set(self._open.contributions)

    # Memory and messages

    def _flat(self, bucket: int) -> Tensor:
        if self.strategy.reads_grad_later:
            return self.layout.flat(self.layout.buckets[bucket])
        if bucket not in self._reused:
            self._reused[bucket] = self.layout.flat(self.layout.buckets[bucket])
        return self._reused[bucket]

    def _is_reused(self, bucket: int, value: Tensor) -> bool:
        flat = self._reused.get(bucket)
        return flat is not None and flat.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()

    def _lasting(self, bucket: int, value: Tensor) -> Tensor:
        """A value that the next pass does not overwrite."""
        return value.clone() if self._is_reused(bucket, value) else value

    def _named(self, bucket: int) -> str:
        return self.name if bucket < len(self.layout.buckets) else "buffers"

    def _disagreement(self, error: UnexpectedFrame) -> StrategyError:
        return StrategyError(
            f"strategy {self.name}: members do not issue the same rounds in step {self.step}: {error}; every shard "
            f"must issue the same rounds with the same shapes"
        )
