"""Top-k with error feedback (Stich et al. 2018, "Sparsified SGD with Memory"), and a momentum of the mean.

Residuals are state of a shard, the momentum is state of the job; ties are broken by a shard's own dice, and a tenth of
the coordinates rests in each step, the same for all shards.
"""

import torch

from orch_core.dataplane import Bucket, Comm, GradientSync, Tensor


class TopK(GradientSync):
    lossy = True  # a death loses the residuals of its shards

    def __init__(self, fraction: float = 0.1) -> None:
        self.fraction = fraction

    async def reduce(self, bucket: Bucket, comm: Comm) -> Tensor:
        grad = bucket.grad + comm.state("residual", like=bucket.grad)
        awake = torch.rand(grad.shape, generator=comm.rng("step")) < 0.9
        dice = 1 + 1e-3 * torch.rand(grad.shape, generator=comm.rng("shard"))
        kept = torch.zeros_like(grad)
        best = (grad.abs() * awake * dice).topk(max(1, int(self.fraction * grad.numel()))).indices
        kept[best] = grad[best]
        comm.stage("residual", grad - kept)
        mean = await comm.mean(kept)
        how_many = await comm.sum(torch.tensor([int(kept.count_nonzero())]))
        velocity = 0.9 * comm.state("velocity", like=mean, scope="job") + mean * (how_many > 0)
        comm.stage("velocity", velocity, scope="job")
        return velocity
