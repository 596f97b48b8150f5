"""A small model with everything that could make weights depend on the machines."""

import os
import time

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import orch_core as orch


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(32, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.body = torch.nn.Linear(16, 16)
        self.drop = torch.nn.Dropout(0.2)
        self.out = torch.nn.Linear(16, 32)
        self.out.weight = self.embed.weight  # tied
        self.unused = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.embed(x).mean(1))
        return self.out(self.drop(torch.relu(self.body(h))))


run = orch.init()
g = torch.Generator().manual_seed(5)
data = TensorDataset(torch.randint(0, 32, (240, 5), generator=g), torch.randint(0, 32, (240,), generator=g))
model = Net().to(run.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=os.environ.get("SCALER", "1") == "1")
run.prepare(model, optimizer, scheduler, scaler)
pause = float(os.environ.get("PAUSE", "0"))
if os.environ.get("ORCH_WORKER", "").split(".")[0] == os.environ.get("SLOW_PLACE", "nobody"):
    pause *= 5
gate = os.environ.get("GATE", "")  # while there is no such file, the last steps take for ever; then nothing pauses
crawl_at = int(os.environ.get("CRAWL_AT", "0"))
workers = int(os.environ.get("LOADERS", "0"))


def rest() -> None:
    if not gate:
        time.sleep(pause)
    elif not os.path.exists(gate):
        time.sleep(pause if run.step < crawl_at else 1.0)


for epoch in run.epochs(int(os.environ.get("EPOCHS", "3"))):
    for batch in run.batches(data, batch_size=48, num_workers=workers):
        for x, y in batch:
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            run.log(loss=loss)
            rest()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
if run.is_main:
    print("THE END", run.step, flush=True)
