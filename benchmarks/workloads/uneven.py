"""Passes of equal length on every worker but one, whose passes take SLOWER times as long (a busy loop)."""

import os
import time

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import orch_core as orch

PASS_S = 0.006
slow = os.environ.get("ORCH_WORKER", "").split(".")[0] == os.environ.get("SLOW_PLACE", "nobody")
run = orch.init()
g = torch.Generator().manual_seed(3)
data = TensorDataset(torch.randn(480, 16, generator=g), torch.randn(480, 4, generator=g))
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.1), torch.nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
run.prepare(model, optimizer)
for _ in run.epochs(int(os.environ["EPOCHS"])):
    for batch in run.batches(data, batch_size=48):
        for x, y in batch:
            until = time.perf_counter() + PASS_S * float(os.environ["SLOWER"])
            loss = F.mse_loss(model(x), y)
            loss.backward()
            if slow:
                while time.perf_counter() < until:
                    pass
            else:
                time.sleep(PASS_S)
            run.log(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
