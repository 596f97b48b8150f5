"""One round per bucket: the mean over all shards."""

from orch_core.dataplane import Bucket, Comm, GradientSync, Tensor


class AllReduce(GradientSync):
    """What DistributedDataParallel does, in the canonical order."""

    reads_grad_later = False

    async def reduce(self, bucket: Bucket, comm: Comm) -> Tensor:
        return await comm.mean(bucket.grad)
