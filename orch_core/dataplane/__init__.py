"""The tensor room. Its public face: the gradient sync contract, bound to :class:`torch.Tensor`.

What a strategy's author imports::

    from orch_core.dataplane import Bucket, Comm, GradientSync

    class AllReduce(GradientSync):
        async def reduce(self, bucket: Bucket, comm: Comm) -> Tensor:
            return await comm.mean(bucket.grad)
"""

from typing import TypeAlias

from torch import Tensor

from orch_core.contracts import sync as _sync

Bucket: TypeAlias = _sync.Bucket[Tensor]
BucketParameter: TypeAlias = _sync.BucketParameter[Tensor]
Comm: TypeAlias = _sync.Comm[Tensor]
GradientSync: TypeAlias = _sync.GradientSync[Tensor]

__all__ = ["Bucket", "BucketParameter", "Comm", "GradientSync", "Tensor"]
