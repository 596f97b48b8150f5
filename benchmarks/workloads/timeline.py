"""The workload of the recovery benchmarks: an MLP whose every applied step is written down with its time."""

import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import orch_core as orch

run = orch.init()
width, depth = int(os.environ.get("WIDTH", "512")), int(os.environ.get("DEPTH", "4"))
g = torch.Generator().manual_seed(5)
data = TensorDataset(torch.randn(1200, 64, generator=g), torch.randint(0, 10, (1200,), generator=g))
layers: list[torch.nn.Module] = [torch.nn.Linear(64, width), torch.nn.ReLU()]
for _ in range(depth - 2):
    layers += [torch.nn.Linear(width, width), torch.nn.ReLU()]
model = torch.nn.Sequential(*layers, torch.nn.Linear(width, 10)).to(run.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
run.prepare(model, optimizer)
times = (Path(os.environ["TIMELINE"]) / str(os.getpid())).open("a", buffering=1)

for epoch in run.epochs(int(os.environ.get("EPOCHS", "20"))):
    for batch in run.batches(data, batch_size=240, num_workers=int(os.environ.get("LOADERS", "0"))):
        for x, y in batch:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            run.log(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
        times.write(f"{run.step} {time.monotonic()}\n")
