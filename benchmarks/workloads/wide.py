"""25 million parameters and AdamW: 300 MB of state. Writes down when each step was applied."""

import os
import time

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import orch_core as orch

WIDTH = 5000
run = orch.init()
data = TensorDataset(torch.arange(64.0).reshape(64, 1))
model = torch.nn.Linear(WIDTH, WIDTH)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
run.prepare(model, optimizer)
for _ in run.epochs(100_000):
    for batch in run.batches(data, batch_size=run.shards):
        for (x,) in batch:
            loss = F.mse_loss(model(x.expand(-1, WIDTH) / 64), torch.zeros(len(x), WIDTH))
            loss.backward()
            run.log(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
        with open(os.path.join(os.environ["JOIN_MARKS"], os.environ["ORCH_WORKER"]), "a") as file:
            print("step", run.step, time.clock_gettime(time.CLOCK_BOOTTIME), os.getpid(), file=file)
