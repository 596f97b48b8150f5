"""The engine, mostly several of them in one process over real sockets."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orch_core.contracts.errors import StrategyError, ViewBroken
from orch_core.contracts.ids import Shard, Step
from orch_core.contracts.sync import GradientSync
from orch_core.dataplane import Bucket, Comm, rounds
from orch_core.dataplane.buffers import BufferLayout
from orch_core.dataplane.comm import generator
from orch_core.dataplane.engine import Engine
from orch_core.dataplane.group import Group
from orch_core.dataplane.kept import Results
from orch_core.dataplane.layout import Layout
from orch_core.testing.sync import Cluster, connect, even, random_gradients, same_bits, side_by_side

Deal = Sequence[Collection[int]]


class Mean(GradientSync[Tensor]):
    reads_grad_later = False

    async def reduce(self, bucket: Bucket, comm: Comm) -> Tensor:
        return await comm.mean(bucket.grad)


class MeanOfKept(Mean):
    reads_grad_later = True


class TwoRounds(GradientSync[Tensor]):
    """The second round depends on the first, and the state of the shard on both."""

    async def reduce(self, bucket: Bucket, comm: Comm) -> Tensor:
        grad = bucket.grad + comm.state("memory", like=bucket.grad)
        first = await comm.sum(grad.abs().amax().reshape(()) if grad.numel() else torch.zeros(()))
        noise = torch.rand(grad.shape, generator=comm.rng("shard"))
        second = await comm.mean(grad / (first + 1) + noise)
        comm.stage("memory", grad - second)
        comm.stage("common", second * 2, scope="job")
        return second + comm.state("common", like=second, scope="job")


class Custom(GradientSync[Tensor]):
    def __init__(self, reduce: Callable[[Bucket, Comm], Any]) -> None:
        self._reduce = reduce

    async def reduce(self, bucket: Bucket, comm: Comm) -> Tensor:
        return await self._reduce(bucket, comm)  # type: ignore[no-any-return]


def shards_of(deal: Deal) -> list[list[Shard]]:
    return [[Shard(shard) for shard in carried] for carried in deal]


def engine(sync: GradientSync[Tensor], shards: int, shape: tuple[int, ...] = (40,), **rest: Any) -> Engine:
    return Engine(sync, "tested", Layout.of([("w", torch.zeros(shape))], 1 << 20), seed=7, shards=shards, **rest)


def contribute(one: Engine, step: int, grads: dict[int, Tensor | None]) -> None:
    if one.step != step:
        one.open(Step(step))
    for shard, grad in grads.items():
        one.contribute(Shard(shard), [grad])


def finish_all(engines: Sequence[Engine], deal: Deal, **rest: Any) -> list[Any]:
    groups = connect(len(engines))

    def finish(me: int) -> Results:
        try:
            return engines[me].finish(shards_of(deal), me, groups[me], **rest)
        except BaseException:
            groups[me].abort()
            raise

    outcomes = side_by_side([lambda me=me: finish(me) for me in range(len(engines))])  # type: ignore[misc]
    for group in groups:
        group.close()
    return outcomes


def reference(values: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The canonical sum in numpy, from the words of the design."""
    if len(values) == 1:
        return values[0]
    left = max(2**k for k in range(5) if 2**k < len(values))
    return np.add(reference(values[:left]), reference(values[left:]))


@pytest.fixture(params=["one trip", "chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "chunks":
        use_chunks(monkeypatch)
    return str(request.param)


def use_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every value were big."""
    monkeypatch.setattr(rounds, "SMALL_BYTES", 0)
    monkeypatch.setattr(rounds, "CHUNK_BYTES", 64)


@st.composite
def deals(draw: st.DrawFn) -> list[list[int]]:
    shards = draw(st.integers(1, 16))
    members = draw(st.integers(1, 5))
    owners = draw(st.lists(st.integers(0, members - 1), min_size=shards, max_size=shards))
    return [[shard for shard, owner in enumerate(owners) if owner == member] for member in range(members)]


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("sync", [Mean, MeanOfKept])
def test_every_deal_gives_the_bits_of_the_reference(chunks: bool, sync: type[Mean]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if chunks:
            use_chunks(patch)

        @settings(max_examples=40, deadline=None)
        @given(deal=deals(), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
        def check(deal: list[list[int]], dtype: torch.dtype) -> None:
            shards = sum(len(carried) for carried in deal)
            source = torch.Generator().manual_seed(shards)
            grads = [(torch.randn(40, generator=source) * 10 ** (shard % 3 * 2)).to(dtype) for shard in range(shards)]
            layout = Layout.of([("w", torch.zeros(40, dtype=dtype))], 1 << 20)
            engines = [Engine(sync(), "tested", layout, seed=7, shards=shards) for _ in deal]
            for one, carried in zip(engines, deal, strict=True):
                contribute(one, 0, {shard: grads[shard] for shard in reversed(carried)})
            added_in = np.float64 if dtype == torch.float64 else np.float32
            exact = reference([grad.double().numpy().astype(added_in) for grad in grads]) * added_in(1.0 / shards)
            for outcome in finish_all(engines, deal):
                assert isinstance(outcome, Results), outcome
                [mean] = outcome.gradients
                assert bytes(mean.numpy()) == exact.astype(added_in).tobytes()

        check()


def test_special_values_pass_through(way: str) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3e38])
    for outcome in _finish_with([values.clone() for _ in range(4)], [[0], [1, 3], [2]]):
        mean = outcome.gradients[0]
        assert torch.isnan(mean[0])
        assert mean[1:5].tolist() == [float("inf"), -float("inf"), 0.0, pytest.approx(1e-45, abs=1e-45)]
        assert torch.signbit(mean[3])
        assert mean[5] == float("inf"), "summed in float32, as written"


def _finish_with(grads: Sequence[Tensor], deal: Deal, sync: Callable[[], GradientSync[Tensor]] = Mean) -> list[Results]:
    engines = [engine(sync(), len(grads), tuple(grads[0].shape)) for _ in deal]
    for one, carried in zip(engines, deal, strict=True):
        contribute(one, 0, {shard: grads[shard] for shard in carried})
    outcomes = finish_all(engines, deal)
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in sorted(errors, key=lambda error: isinstance(error, ViewBroken)):  # the cause before its consequences
        raise error
    return outcomes


def test_one_member_needs_no_sockets() -> None:
    one = engine(Mean(), 2)
    contribute(one, 0, {0: torch.ones(40), 1: torch.full((40,), 3.0)})
    results = one.finish(shards_of([[0, 1]]), 0)
    assert results.gradients[0].tolist() == [2.0] * 40
    one.apply(results)
    assert one.results is results


def test_members_without_shards_get_everything(way: str) -> None:
    cluster = Cluster(
        TwoRounds, 4, shards=2, parameters=[("w", torch.zeros(30, 30))], gradients=random_gradients({"w": (30, 30)})
    )
    alone = Cluster(
        TwoRounds, 1, shards=2, parameters=[("w", torch.zeros(30, 30))], gradients=random_gradients({"w": (30, 30)})
    )
    for deal in ([[], [0], [1], []], [[], [0, 1], [], []], [[1], [], [], [0]]):
        assert all(map(same_bits, cluster.train(deal), alone.train([[0, 1]])))
    assert not cluster.reset


def test_many_tiny_parameters_travel_in_one_bucket_and_one_round() -> None:
    parameters = [(str(i), torch.tensor(float(i))) for i in range(2000)]
    one = Engine(Mean(), "tested", Layout.of(parameters, 1 << 20), seed=0, shards=1)
    one.open(Step(0))
    one.contribute(Shard(0), [tensor for _, tensor in parameters])
    results = one.finish(shards_of([[0]]), 0)
    assert list(results.rounds) == [(0, 0)]
    targets = [torch.nn.Parameter(torch.tensor(0.0)) for _ in parameters]
    one.write(results, targets, [None] * 2000)
    assert [target.grad.item() for target in targets if target.grad is not None] == list(range(2000))


def test_a_model_without_parameters_has_steps(way: str) -> None:
    engines = [Engine(Mean(), "tested", Layout.of([], 1), seed=0, shards=2) for _ in range(2)]
    for shard, one in enumerate(engines):
        one.open(Step(0))
        one.contribute(Shard(shard), [], logged={"loss": float(shard)})
    for outcome in finish_all(engines, [[0], [1]]):
        assert outcome.means == {"loss": 0.5}


@pytest.mark.parametrize(
    ("dtype", "total"),
    [
        (torch.int64, 6),
        (torch.int32, 6),
        (torch.uint8, 6),
        (torch.float16, 6.0),
        (torch.bfloat16, 6.0),
        (torch.complex64, 6 + 6j),
        (torch.float64, 6.0),
    ],
)
def test_sums_keep_shape_and_dtype(dtype: torch.dtype, total: complex, way: str) -> None:
    async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
        value = torch.full((2, 3), comm.shard + 1).to(dtype)
        got = await comm.sum(value * (1 + 1j) if dtype.is_complex else value)
        assert got.dtype == dtype
        assert got.tolist() == [[total] * 3] * 2
        scalar = await comm.sum(torch.tensor(1.0))
        assert scalar.shape == ()
        nothing = await comm.sum(torch.zeros(0, 4))
        assert nothing.shape == (0, 4)
        return torch.zeros_like(bucket.grad)

    assert _finish_with([torch.ones(2)] * 3, [[0, 2], [1]], lambda: Custom(reduce))


class TestBreakingTheRules:
    """A clear error that names the strategy, bucket and shard, and never a hang."""

    def raises(self, reduce: Callable[[Bucket, Comm], Any], match: str, deal: Deal = ((0, 1),)) -> None:
        shards = sum(len(carried) for carried in deal)
        with pytest.raises(StrategyError, match=match):
            _finish_with([torch.ones(2)] * shards, deal, lambda: Custom(reduce))

    def test_different_numbers_of_rounds(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            mean = await comm.mean(bucket.grad)
            return mean if comm.shard == 0 else await comm.mean(mean)

        self.raises(reduce, "tested, bucket 0, shard 0, step 0: it returned after 1 rounds, but shard 1 goes on")

    def test_different_shapes(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return await comm.mean(torch.zeros(2 + comm.shard))

        self.raises(reduce, r"bucket 0, shard 1, .* a mean of float32\[3\] in round 0, but another .* of float32\[2\]")

    @pytest.mark.parametrize("members", [2, 3])
    def test_different_shapes_on_different_members(self, members: int, way: str) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return await comm.mean(torch.zeros(2 + (comm.shard == 1)))

        self.raises(
            reduce, "strategy tested: members . and . disagree in bucket 0, round 0", [[v] for v in range(members)]
        )

    @pytest.mark.parametrize("members", [2, 3])
    def test_different_numbers_of_rounds_on_different_members(self, members: int, way: str) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            mean = await comm.mean(bucket.grad)
            return mean if comm.shard == 1 else await comm.mean(mean)

        self.raises(reduce, "members do not issue the same rounds in step 0: it sent", [[v] for v in range(members)])

    def test_different_results(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return await comm.mean(bucket.grad) + comm.shard

        self.raises(reduce, "shard 1, step 0: it returned something else than shard 0")

    def test_a_result_of_another_shape(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return (await comm.mean(bucket.grad)).sum()

        self.raises(reduce, r"returned torch.float32 of shape \(\)")

    def test_no_result(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> None:
            await comm.mean(bucket.grad)

        self.raises(reduce, "it returned NoneType, not a tensor")

    def test_a_mean_of_integers(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return await comm.mean(torch.tensor([1]))

        self.raises(reduce, "there is no mean of torch.int64")

    def test_no_tensor(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return await comm.mean(3.0)  # type: ignore[arg-type]

        self.raises(reduce, "comm.mean takes a dense tensor, not float")

    def test_its_own_exception(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            raise ZeroDivisionError("oh")

        self.raises(reduce, "tested, bucket 0, shard 0, step 0: ZeroDivisionError: oh")

    def test_awaiting_something_else(self) -> None:
        class Foreign:
            def __await__(self) -> Iterator[int]:
                yield 3

        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            await Foreign()
            return bucket.grad

        self.raises(reduce, "may await nothing but its comm's rounds")

    def test_changing_a_contribution(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            value = bucket.grad * 2
            mean = await comm.mean(value)
            value.sub_(mean)
            return mean

        self.raises(reduce, "tested, bucket 0, shard 0, step 0: it changed, in place")

    def test_changing_a_result(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return (await comm.mean(bucket.grad)).mul_(2)

        self.raises(reduce, "tested, bucket 0, shard 0, step 0: it changed, in place")

    def test_changing_the_gradient(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            mean = await comm.mean(bucket.grad)
            bucket.grad.zero_()
            return mean

        self.raises(reduce, "shard 0, step 0: it changed, in place")

    def test_state_that_nobody_staged(self) -> None:
        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            return comm.state("momentum")

        self.raises(reduce, "no state 'momentum' yet: pass like=")

    def test_a_shard_twice_and_a_shard_too_few(self) -> None:
        one = engine(Mean(), 2)
        contribute(one, 0, {0: torch.ones(40)})
        with pytest.raises(StrategyError, match="shard 0 has contributed"):
            contribute(one, 0, {0: torch.ones(40)})
        with pytest.raises(StrategyError, match=r"shards \[1\] have not contributed"):
            one.finish(shards_of([[0, 1]]), 0)
        with pytest.raises(StrategyError, match="is not one of 2 shards"):
            one.finish(shards_of([[0]]), 0)


class TestDeaths:
    """A member dies at some instant of a step's exchanges. The others finish the same step, with the same bits."""

    shards = 6
    shape = (50, 30)

    def grads(self, step: int) -> list[Tensor]:
        draw = random_gradients({"w": self.shape})
        return [grad for shard in range(self.shards) for grad in draw(step, shard) if grad is not None]

    def undisturbed(self, sync: Callable[[], GradientSync[Tensor]], steps: int) -> list[Results]:
        one, found = engine(sync(), self.shards, self.shape), []
        for step in range(steps):
            contribute(one, step, dict(enumerate(self.grads(step))))
            found.append(one.finish(shards_of([range(self.shards)]), 0))
            one.apply(found[-1])
        return found

    @pytest.mark.parametrize("sync", [Mean, MeanOfKept, TwoRounds])
    @pytest.mark.parametrize("instant", [*range(12), 16, 24])
    def test_a_death_at_any_instant_of_the_first_step(
        self, sync: type[GradientSync[Tensor]], instant: int, way: str
    ) -> None:
        expected = self.undisturbed(sync, 2)
        engines = [engine(sync(), self.shards, self.shape) for _ in range(3)]
        deal: Deal = [[0, 1, 5], [2], [3, 4]]
        for one, carried in zip(engines, deal, strict=True):
            contribute(one, 0, {shard: self.grads(0)[shard] for shard in carried})
        outcomes = self.die_at(engines, deal, victim=1, instant=instant)
        survivors, done = [engines[0], engines[2]], [outcomes[0], outcomes[2]]
        later: Deal = [[0, 1, 5, 2], [3, 4]]
        if not any(isinstance(outcome, Results) for outcome in done):
            contribute(survivors[0], 0, {2: self.grads(0)[2]})
            done = finish_all(survivors, later)
        [donor, *_] = [outcome for outcome in done if isinstance(outcome, Results)]
        for one, outcome in zip(survivors, done, strict=True):
            if isinstance(outcome, Results):
                one.apply(outcome)
            else:
                assert isinstance(outcome, ViewBroken), outcome
                one.apply(one.finish_from(Results.decode(donor.encode())))
            assert one.results is not None
            assert same_bits(one.results.gradients[0], expected[0].gradients[0])
        if sync is TwoRounds and 2 not in survivors[0].state_shards:
            return  # the second step would start from a lost state: told elsewhere
        for one, carried in zip(survivors, later, strict=True):
            contribute(one, 1, {shard: self.grads(1)[shard] for shard in carried})
        for outcome in finish_all(survivors, later):
            assert isinstance(outcome, Results), outcome
            assert same_bits(outcome.gradients[0], expected[1].gradients[0])
            assert not outcome.reset

    def die_at(self, engines: Sequence[Engine], deal: Deal, victim: int, instant: int) -> list[Any]:
        """The victim's sockets end after it has served `instant` ready ends of links."""
        groups = connect(len(engines))
        served, pump = itertools.count(), groups[victim]._pump

        def pump_or_die(end: Any) -> None:
            if next(served) == instant:
                groups[victim].close()
            pump(end)

        groups[victim]._pump = pump_or_die  # type: ignore[method-assign]

        def finish(me: int, group: Group) -> Results:
            try:
                return engines[me].finish(shards_of(deal), me, group)
            finally:
                if me != victim and group.aborted:
                    group.close()

        def finish_or_leave(me: int) -> Results:
            try:
                return finish(me, groups[me])
            except ViewBroken:
                groups[me].abort()
                raise

        outcomes = side_by_side([lambda me=me: finish_or_leave(me) for me in range(len(engines))])  # type: ignore[misc]
        for group in groups:
            group.close()
        return outcomes

    def test_contributions_are_kept_through_many_views(self) -> None:
        expected = self.undisturbed(TwoRounds, 1)[0]
        engines = [engine(TwoRounds(), self.shards, self.shape) for _ in range(2)]
        deal: Deal = [[0, 1, 2], [3, 4, 5]]
        for one, carried in zip(engines, deal, strict=True):
            contribute(one, 0, {shard: self.grads(0)[shard] for shard in carried})
        for instant in range(10):
            if all(isinstance(outcome, Results) for outcome in self.die_at(engines, deal, 1, instant)):
                break
        for outcome in finish_all(engines, deal):
            assert same_bits(outcome.gradients[0], expected.gradients[0])

    def test_a_shard_that_went_to_somebody_else_is_forgotten(self) -> None:
        expected = self.undisturbed(Mean, 1)[0]
        engines = [engine(Mean(), self.shards, self.shape) for _ in range(2)]
        contribute(engines[0], 0, dict(enumerate(self.grads(0)[:5])))
        contribute(engines[1], 0, dict(enumerate(self.grads(0)[4:], 4)))
        assert engines[0].held == ((0, 1, 2, 3), (4,))
        for outcome in finish_all(engines, [[0, 1, 2, 3], [4, 5]]):
            assert same_bits(outcome.gradients[0], expected.gradients[0])
        assert engines[0].held == ((0, 1, 2, 3),)

    def test_half_a_partial_cannot_be_dealt(self) -> None:
        one = engine(Mean(), 2, self.shape)
        contribute(one, 0, dict(enumerate(self.grads(0)[:2])))
        with pytest.raises(StrategyError, match="dealt to two members"):
            one.drop([Shard(0)])

    def test_results_of_another_step_are_refused(self) -> None:
        results = self.undisturbed(Mean, 2)[1]
        one = engine(Mean(), self.shards, self.shape)
        contribute(one, 0, dict(enumerate(self.grads(0))))
        with pytest.raises(StrategyError, match="results of step 1 were fed to who is at step 0"):
            one.finish_from(results)

    def test_a_member_without_shards_can_be_fed(self) -> None:
        [results] = self.undisturbed(TwoRounds, 1)
        spare = engine(TwoRounds(), self.shards, self.shape)
        spare.open(Step(0))
        spare.apply(spare.finish_from(Results.decode(results.encode())))
        assert torch.equal(spare.export_state().tensors[0], results.gradients[0] * 2)


class TestTheBarrier:
    def members(self) -> list[Engine]:
        engines = [engine(Mean(), 3, (2,)) for _ in range(2)]
        for one in engines:
            one.open(Step(4))
        engines[0].contribute(Shard(0), [None], logged={"loss": 1.0, "rare": 5.0})
        engines[0].contribute(Shard(1), [None], logged={"loss": 2.0})
        engines[1].contribute(Shard(2), [torch.ones(2)], logged={"loss": 6.0})
        return engines

    def test_all_members_learn_the_same(self) -> None:
        left, right = finish_all(self.members(), [[0, 1], [2]], digests=[1, 2, 3])
        assert left.parts == right.parts
        assert left.means == {"loss": 3.0, "rare": 5.0}
        assert left.presence == 1
        assert left.difference is None
        assert not left.stop

    def test_one_members_word_reaches_all(self) -> None:
        engines, groups = self.members(), connect(2)
        deal = shards_of([[0, 1], [2]])
        outcomes = side_by_side(
            [
                lambda: engines[0].finish(deal, 0, groups[0], stop=False, digests=[1, 2]),
                lambda: engines[1].finish(deal, 1, groups[1], stop=True, left=Step(3), digests=[1, 7]),
            ]
        )
        for group in groups:
            group.close()
        for outcome in outcomes:
            assert isinstance(outcome, Results)
            assert outcome.stop
            assert outcome.parts[1].left == 3
            assert outcome.difference is not None
            assert outcome.difference.index == 1

    def test_results_survive_the_wire(self) -> None:
        [results, _] = finish_all(self.members(), [[0, 1], [2]])
        blob = results.encode()
        assert len(blob.tensors) == 1, "a gradient that is a round's result travels once"
        read = Results.decode(blob)
        assert read.parts == results.parts
        assert read.gradients[0] is read.rounds[0, 0]


class TestBuffers:
    def step(self, deal: Deal, passes: Callable[[int, list[Tensor]], None], start: Sequence[Tensor]) -> list[Tensor]:
        """The buffers after a step in which `passes(shard, buffers)` ran for each shard; all members must agree."""
        shards = sum(len(carried) for carried in deal)
        layout = BufferLayout.of([(str(i), tensor) for i, tensor in enumerate(start)])
        engines = [engine(Mean(), shards, (2,), buffer_layout=layout) for _ in deal]
        present = [[tensor.clone() for tensor in start] for _ in deal]
        for one, mine, carried in zip(engines, present, deal, strict=True):
            one.open(Step(0), mine)
            for shard in carried:
                one.restore_buffers(mine)
                assert all(map(same_bits, mine, start)), "every pass starts from the step's start"
                passes(shard, mine)
                one.contribute(Shard(shard), [torch.ones(2)], mine)
        for one, mine, outcome in zip(engines, present, finish_all(engines, deal), strict=True):
            assert isinstance(outcome, Results), outcome
            one.write_buffers(outcome, mine)
            one.apply(outcome)
        for mine in present[1:]:
            assert all(map(same_bits, mine, present[0]))
        return present[0]

    def test_floats_are_averaged_and_all_others_are_shard_zeros(self, way: str) -> None:
        def passes(shard: int, buffers: list[Tensor]) -> None:
            mean, double, count, flag, half = buffers
            mean.add_(shard)
            double.sub_(shard)
            count.add_(1 + shard)
            flag.fill_(shard == 0)
            half.fill_(shard)

        start = [torch.zeros(3), torch.zeros((), dtype=torch.float64), torch.tensor(5), torch.tensor(False)]
        for deal in ([[0, 1, 2]], [[1], [0, 2], []], [[2], [1], [0]]):
            got = self.step(deal, passes, [*start, torch.zeros(2).half()])
            assert [tensor.tolist() for tensor in got] == [[1, 1, 1], -1, 6, True, [1, 1]]

    def test_what_nobody_changed_keeps_its_bits(self) -> None:
        table = torch.tensor([0.1, -0.0, float("nan"), 1e-40])

        def passes(shard: int, buffers: list[Tensor]) -> None:
            buffers[1].add_(1.0)

        got = self.step([[0, 2, 4], [1, 3, 5, 6]], passes, [table, torch.zeros(1)])
        assert same_bits(got[0], table)
        assert got[1].tolist() == [1.0]

    def test_a_change_in_one_shard_counts_the_others_as_they_started(self) -> None:
        def passes(shard: int, buffers: list[Tensor]) -> None:
            if shard == 1:
                buffers[0].fill_(9.0)
                buffers[1].fill_(9)

        got = self.step([[0], [1], [2]], passes, [torch.tensor([3.0]), torch.tensor([3])])
        assert [tensor.tolist() for tensor in got] == [[5.0], [3]]

    def test_batch_norm_is_the_same_for_every_deal(self) -> None:
        def passes(shard: int, buffers: list[Tensor]) -> None:
            source = torch.Generator().manual_seed(shard)
            buffers[0].mul_(0.9).add_(torch.randn(8, generator=source))
            buffers[1].add_(1)

        start = [torch.zeros(8), torch.tensor(0)]
        expected = self.step([range(6)], passes, start)
        for deal in ([[5, 0], [1, 4], [2, 3]], even(4, 6)):
            assert all(map(same_bits, self.step(deal, passes, start), expected))

    def test_unchanged_buffers_do_not_travel(self) -> None:
        table = torch.zeros(100_000)
        one = engine(Mean(), 1, (2,), buffer_layout=BufferLayout.of([("table", table)]))
        one.open(Step(0), [table])
        one.contribute(Shard(0), [torch.ones(2)], [table])
        results = one.finish(shards_of([[0]]), 0)
        assert {key: tensor.numel() for key, tensor in results.rounds.items()} == {(0, 0): 2, (1, 0): 1}


class TestState:
    def test_staged_values_wait_for_the_step_to_be_applied(self) -> None:
        seen = []

        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            seen.append(comm.state("count", like=torch.zeros(1)).item())
            comm.stage("count", torch.tensor([float(comm.step) + 1]))
            return await comm.mean(bucket.grad)

        one = engine(Custom(reduce), 1, (2,))
        contribute(one, 0, {0: torch.ones(2)})
        one.open(Step(0))  # given up: the next plan begins the step anew
        contribute(one, 0, {0: torch.ones(2)})
        one.apply(one.finish(shards_of([[0]]), 0))
        contribute(one, 1, {0: torch.ones(2)})
        assert seen == [0.0, 0.0, 1.0]

    @pytest.mark.parametrize(
        ("sync", "after"), [(Mean, [(0, 1, 2), (0, 1, 2), (0, 1, 2)]), (TwoRounds, [(0, 2), (1,), ()])]
    )
    def test_whose_state_will_be_held_is_known_before_the_step_is_applied(
        self, sync: type[GradientSync[Tensor]], after: list[tuple[int, ...]]
    ) -> None:
        engines, deal = [engine(sync(), 3, (2,)) for _ in range(3)], [[0, 2], [1], []]
        for one, carried in zip(engines, deal, strict=True):
            contribute(one, 0, {shard: torch.ones(2) for shard in carried})
        engines[2].open(Step(0))
        outcomes = finish_all(engines, deal)
        assert [one.state_shards for one in engines] == [(0, 1, 2)] * 3
        assert [one.state_shards_when_applied for one in engines] == after
        for one, outcome in zip(engines, outcomes, strict=True):
            one.apply(outcome)
        assert [one.state_shards for one in engines] == after

    def test_a_reused_gradient_can_be_staged_and_returned(self) -> None:
        class Lazy(GradientSync[Tensor]):
            reads_grad_later = False

            async def reduce(self, bucket: Bucket, comm: Comm) -> Tensor:
                comm.stage("first", bucket.grad)
                return bucket.grad

        one = engine(Lazy(), 1, (2,))
        contribute(one, 0, {0: torch.ones(2)})
        results = one.finish(shards_of([[0]]), 0)
        one.apply(results)
        contribute(one, 1, {0: torch.zeros(2)})
        assert results.gradients[0].tolist() == [1, 1]
        assert one.export_shard(Shard(0)).tensors[0].tolist() == [1, 1]

    def test_dice_are_the_documented_ones_and_go_on(self) -> None:
        drawn = {}

        async def reduce(bucket: Bucket, comm: Comm) -> Tensor:
            drawn[comm.shard] = [torch.rand(2, generator=comm.rng(scope)) for scope in ("shard", "step", "shard")]  # type: ignore[arg-type]
            return await comm.mean(bucket.grad)

        contribute(engine(Custom(reduce), 2, (2,)), 3, {0: torch.ones(2), 1: torch.ones(2)})
        for shard, (first, common, second) in drawn.items():
            own = torch.rand(4, generator=generator(f"orch/1/sync/7/3/0/{shard}"))
            assert torch.equal(torch.cat([first, second]), own)
            assert torch.equal(common, torch.rand(2, generator=generator("orch/1/sync/7/3/0/step")))

    def test_a_generator_has_a_golden_vector(self) -> None:
        made = generator("orch/1/sync/7/3/0/step")
        assert made.initial_seed() == 9052513742798858935
        assert torch.randint(0, 1000, (4,), generator=made).tolist() == [643, 769, 303, 593]
