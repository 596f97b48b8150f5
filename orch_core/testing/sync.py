"""For authors of gradient sync strategies: several workers in one process, and a suite that a strategy must pass.

::

    from orch_core.testing.sync import SyncSuite

    class TestTopK(SyncSuite):
        def make(self):
            return TopK(k=0.1)

A :class:`Cluster` is a job without scripts, processes and coordinators: real engines, one thread each, over real
sockets. It deals shards as it is told, kills members in the middle of a step, moves state, lets members join.
"""

import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from orch_core.contracts.errors import ViewBroken
from orch_core.contracts.ids import Shard, Step
from orch_core.contracts.sync import GradientSync
from orch_core.dataplane.buffers import BufferLayout
from orch_core.dataplane.engine import Engine
from orch_core.dataplane.group import Group, Link
from orch_core.dataplane.kept import Results
from orch_core.dataplane.layout import Layout
from orch_core.dataplane.tcp import Kind

T = TypeVar("T")

JOIN_S = 60.0  # a bound on hangs, not on speed
Gradients = Callable[[int, int], Sequence[Tensor | None]]  # (step, shard) -> one per parameter


def connect(members: int) -> list[Group]:
    """A view of `members` in this process."""
    links: list[dict[int, Link]] = [{} for _ in range(members)]
    for low in range(members):
        for high in range(low + 1, members):
            up, down = socket.socketpair(), socket.socketpair()
            links[low][high] = Link(sender=up[0], receiver=down[1])
            links[high][low] = Link(sender=down[0], receiver=up[1])
    return [Group(me, one) for me, one in enumerate(links)]


def side_by_side(acts: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Do all at once, a thread each: what they return or raise."""
    outcomes: list[T | Exception] = [TimeoutError("it hangs") for _ in acts]

    def do(index: int) -> None:
        try:
            outcomes[index] = acts[index]()
        except Exception as error:  # noqa: BLE001  (handed to the caller)
            outcomes[index] = error

    threads = [threading.Thread(target=do, args=(index,), daemon=True) for index in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_S)
    return outcomes


def even(members: int, shards: int) -> list[range]:
    """A contiguous deal."""
    cuts = [shards * member // members for member in range(members + 1)]
    return [range(lo, hi) for lo, hi in pairwise(cuts)]


class Cluster:
    """Workers of one job, in one process."""

    def __init__(
        self,
        make: Callable[[], GradientSync[Tensor]],
        members: int,
        *,
        shards: int,
        parameters: Sequence[tuple[str, Tensor]],
        gradients: Gradients,
        seed: int = 7,
        bucket_bytes: int = 1 << 20,
    ) -> None:
        self.shards = shards
        self.step = Step(0)
        self.reset: tuple[Shard, ...] = ()  # shards that have lost their state, over all steps
        self._make = make
        self._layout = Layout.of(parameters, bucket_bytes)
        self._gradients = gradients
        self._seed = seed
        self.engines = [self._engine() for _ in range(members)]

    def train(self, deal: Sequence[Collection[int]]) -> list[Tensor]:
        """One undisturbed step: the gradients to apply, one per bucket, which all members agree on."""
        self._begin(deal)
        self._compute(deal)
        return self._apply(self._finish(deal))

    def train_through_death(
        self, deal: Sequence[Collection[int]], victim: int, later: Callable[[int], Sequence[Collection[int]]]
    ) -> list[Tensor]:
        """One step in which a member dies before its rounds are through; `later` deals anew among the survivors.

        `later(survivors)` must leave every survivor the shards that it had.
        """
        self._begin(deal)
        self._compute(deal)
        groups = connect(len(self.engines))
        outcomes = side_by_side(
            [
                groups[me].abort if me == victim else lambda me=me: self._finish_one(me, deal, groups[me])  # type: ignore[misc]
                for me in range(len(self.engines))
            ]
        )
        for me, outcome in enumerate(outcomes):
            if me != victim and not isinstance(outcome, ViewBroken):
                raise AssertionError(f"member {me} should have left the view, but: {outcome!r}")
        for group in groups:
            group.close()
        self.kill(victim)
        deal = later(len(self.engines))
        self._move_state(deal)
        self._compute(deal)
        return self._apply(self._finish(deal))

    def kill(self, member: int) -> None:
        """Between two steps, or inside of one."""
        del self.engines[member]

    def join(self) -> None:
        """A new member, at the end of the list, with a copy of the state that all shards share."""
        donor, joiner = self.engines[0], self._engine()
        groups = connect(2)
        sends = {1: donor.export_state()}
        _, got = _good(
            side_by_side(
                [
                    lambda: groups[0].exchange_blobs(Kind.STATE, self.step, sends, []),
                    lambda: groups[1].exchange_blobs(Kind.STATE, self.step, {}, [0]),
                ]
            )
        )
        joiner.import_state(got[0])
        for group in groups:
            group.close()
        self.engines.append(joiner)

    def _engine(self) -> Engine:
        return Engine(self._make(), "tested", self._layout, BufferLayout(), seed=self._seed, shards=self.shards)

    def _begin(self, deal: Sequence[Collection[int]]) -> None:
        self._move_state(deal)
        for engine in self.engines:
            engine.open(self.step)

    def _move_state(self, deal: Sequence[Collection[int]]) -> None:
        """What a plan's moves do; a state that nobody holds is lost."""
        for engine, carried in zip(self.engines, deal, strict=True):
            for shard in map(Shard, carried):
                source = next((other for other in self.engines if shard in other.state_shards), None)
                if source is not None and source is not engine and shard not in engine.state_shards:
                    engine.import_shard(source.export_shard(shard))

    def _compute(self, deal: Sequence[Collection[int]]) -> None:
        for engine, carried in zip(self.engines, deal, strict=True):
            held = {shard for partial in engine.held for shard in partial}
            for shard in map(Shard, carried):
                if shard not in held:
                    engine.contribute(shard, self._gradients(self.step, shard), logged={"shard": float(shard)})

    def _finish(self, deal: Sequence[Collection[int]]) -> list[Results]:
        groups = connect(len(self.engines))
        try:
            return _good(
                side_by_side(
                    [lambda me=me: self._finish_one(me, deal, groups[me]) for me in range(len(groups))]  # type: ignore[misc]
                )
            )
        finally:
            for group in groups:
                group.close()

    def _finish_one(self, me: int, deal: Sequence[Collection[int]], group: Group) -> Results:
        try:
            return self.engines[me].finish([[Shard(shard) for shard in carried] for carried in deal], me, group)
        except BaseException:
            group.abort()
            raise

    def _apply(self, results: Sequence[Results]) -> list[Tensor]:
        first = results[0]
        for engine, one in zip(self.engines, results, strict=True):
            assert len(one.gradients) == len(first.gradients)
            for mine, reference in zip(one.gradients, first.gradients, strict=True):
                assert same_bits(mine, reference), "members disagree about the gradient"
            engine.apply(one)
        self.reset = tuple(sorted({*self.reset, *first.reset}))
        self.step = Step(self.step + 1)
        return [gradient.clone() for gradient in first.gradients]


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bytes(left.numpy()) == bytes(right.numpy())


def random_gradients(shapes: Mapping[str, tuple[int, ...]]) -> Gradients:
    """Normal, by (step, shard)."""

    def draw(step: int, shard: int) -> list[Tensor | None]:
        source = torch.Generator().manual_seed(1_000_003 * step + shard)
        return [torch.randn(shape, generator=source) for shape in shapes.values()]

    return draw


def _good(outcomes: Sequence[T | Exception]) -> list[T]:
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in sorted(errors, key=lambda error: isinstance(error, ViewBroken)):  # the cause before its consequences
        raise error
    return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]


class SyncSuite:
    """Subclass it, name the class Test..., and define `make`. Every promise of the contract is a test."""

    shards = 6
    steps = 4
    shapes: Mapping[str, tuple[int, ...]] = {"bias": (3,), "embedding": (40, 7), "scale": (), "weight": (150, 200)}

    def make(self) -> GradientSync[Tensor]:
        """A new instance, as each worker process makes one."""
        raise NotImplementedError

    def cluster(self, members: int, gradients: Gradients | None = None) -> Cluster:
        return Cluster(
            self.make,
            members,
            shards=self.shards,
            parameters=[(name, torch.zeros(shape)) for name, shape in self.shapes.items()],
            gradients=gradients or random_gradients(self.shapes),
            bucket_bytes=80_000,
        )

    def alone(self, gradients: Gradients | None = None) -> list[list[Tensor]]:
        """What one worker computes."""
        cluster = self.cluster(1, gradients)
        return [cluster.train(even(1, self.shards)) for _ in range(self.steps)]

    def test_any_number_of_workers_gives_the_same_bits(self) -> None:
        expected = self.alone()
        for members in (2, 3, self.shards + 1):
            cluster = self.cluster(members)
            got = [cluster.train([*even(min(members, self.shards), self.shards), []][:members]) for _ in expected]
            _assert_same(got, expected)

    def test_any_deal_gives_the_same_bits(self) -> None:
        expected = self.alone()
        cluster = self.cluster(3)
        deals = [
            [[shard for shard in range(self.shards) if (shard * 5 + step) % 3 == member] for member in range(3)]
            for step in range(self.steps)
        ]
        _assert_same([cluster.train(deal) for deal in deals], expected)

    def test_a_death_in_the_step_gives_the_same_bits_unless_shard_state_was_lost(self) -> None:
        expected = self.alone()
        cluster = self.cluster(3)
        deal = even(3, self.shards)

        def later(survivors: int) -> list[list[int]]:
            return [[*deal[0], deal[1][0]], [*deal[2], *deal[1][1:]]]

        got = [cluster.train(deal)]
        has_state = cluster.engines[0].has_shard_state
        got.append(cluster.train_through_death(deal, 1, later))
        got.extend(cluster.train(even(2, self.shards)) for _ in expected[2:])
        if has_state:
            assert self.make().lossy, "it has shard state, which a death may lose: declare lossy = True"
            assert cluster.reset == tuple(deal[1])
        else:
            _assert_same(got, expected)

    def test_a_joining_worker_gives_the_same_bits(self) -> None:
        expected = self.alone()
        cluster = self.cluster(1)
        got = [cluster.train(even(1, self.shards))]
        cluster.join()
        got.extend(cluster.train(even(2, self.shards)) for _ in expected[1:])
        _assert_same(got, expected)
        assert not cluster.reset

    def test_a_step_without_gradients_goes_through(self) -> None:
        def none(step: int, shard: int) -> list[Tensor | None]:
            return [None] * len(self.shapes)

        cluster = self.cluster(2, none)
        for gradient in cluster.train(even(2, self.shards)):
            assert bool(torch.isfinite(gradient).all())

    def test_the_same_inputs_give_the_same_bits(self) -> None:
        if self.make().deterministic:
            _assert_same(self.alone(), self.alone())


def _assert_same(got: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> None:
    for step, (mine, reference) in enumerate(zip(got, expected, strict=True)):
        for bucket, (left, right) in enumerate(zip(mine, reference, strict=True)):
            assert same_bits(left, right), f"step {step}, bucket {bucket}: other bits than with one worker"
