"""The gradient sync contract: a strategy is a coroutine over shards, written as if there were one worker per shard.

::

    class TopK(GradientSync[Tensor]):
        lossy = True

        async def reduce(self, bucket, comm):
            grad = bucket.grad + comm.state("residual", like=bucket.grad)
            kept = top(grad, self.k)
            comm.stage("residual", grad - kept)
            return await comm.mean(kept)

Rules that make fault tolerance free:

* no mutation except through :meth:`Comm.stage`, and never of ``bucket.grad`` or of a round's result;
* randomness from :meth:`Comm.rng` only;
* address shards, never workers;
* every shard issues the same rounds with the same shapes, and all of them return the same tensor.

Results of rounds are kept until the step is applied, so a lost shard is replayed on a survivor.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from orch_core.contracts.ids import Shard, Step

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BucketParameter(Generic[T]):
    """One parameter's part of a bucket; `grad` is a view into the bucket's flat tensor, in the parameter's shape."""

    name: str
    shape: tuple[int, ...]
    grad: T


@dataclass(frozen=True, slots=True)
class Bucket(Generic[T]):
    """Parameters whose gradients travel together.

    `grad` is flat, contiguous and 64-byte aligned: float32 for parameters of float32, bfloat16 and float16 (they are
    added in float32), float64 for float64; complex parameters appear as pairs of reals. It is one shard's gradient.
    """

    index: int
    grad: T
    parameters: Sequence[BucketParameter[T]]


class Comm(ABC, Generic[T]):
    """What a strategy may do, for one shard, bucket and step."""

    step: Step
    shard: Shard
    shards: int  # V

    @abstractmethod
    async def sum(self, value: T) -> T:
        """One round: the canonical sum of every shard's `value`. All shards get the same tensor: do not change it."""

    @abstractmethod
    async def mean(self, value: T) -> T:
        """:meth:`sum` times 1/V (for integers: an error)."""

    @abstractmethod
    def state(self, name: str, *, like: T | None = None, scope: Literal["shard", "job"] = "shard") -> T:
        """The state staged under `name` in an earlier step; zeros shaped as `like` if there is none.

        Scope "shard" is this shard's own and travels with it; "job" is the same for all shards. Do not change it.
        """

    @abstractmethod
    def stage(self, name: str, value: T, *, scope: Literal["shard", "job"] = "shard") -> None:
        """Make `value` the state from the next step on, if this step is applied.

        With scope "job" every shard must stage the same bits (from results of rounds and rng("step")).
        """

    @abstractmethod
    def rng(self, scope: Literal["shard", "step"]) -> Any:
        """A generator (torch.Generator on the CPU) seeded from (seed, step, bucket) and, for "shard", the shard."""


class GradientSync(ABC, Generic[T]):
    """A gradient sync strategy. One instance per worker process; keep no state of training in it."""

    lossy: ClassVar[bool] = False  # shard state may be reset by a death; the summary then says bit_exact: false
    deterministic: ClassVar[bool] = True  # same inputs, same bits
    reads_grad_later: ClassVar[bool] = True  # bucket.grad is read after the first await; False saves a copy per shard

    @abstractmethod
    async def reduce(self, bucket: Bucket[T], comm: Comm[T]) -> T:
        """Called once per shard, bucket and step. Returns the gradient to apply, shaped like bucket.grad."""
