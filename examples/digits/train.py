"""Learn to read handwritten digits: 1797 real images of 8 x 8 pixels that come with scikit-learn.

Three workers:                       orch run --workers 3 examples/digits/train.py
One process, and the same weights:   python examples/digits/train.py
"""

import argparse
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import orch_core as orch

BATCH = 120  # one optimizer step, whatever the number of workers
TEST = 360  # images that are kept for the test


def main() -> None:
    options = arguments()
    run = orch.init()
    train, test = data(run.seed)
    model = Net().to(run.device)  # built after init(): so it starts the same on every worker
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = math.ceil(options.epochs * len(train) / BATCH)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    run.prepare(model, optimizer, scheduler)

    for _ in run.epochs(options.epochs):
        for batch in run.batches(train, batch_size=BATCH):
            for images, labels in batch:  # this worker's shards of the batch
                scores = model(images)
                loss = F.cross_entropy(scores, labels)
                loss.backward()
                run.log(loss=loss, accuracy=(scores.argmax(1) == labels).float().mean())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # here .grad is the mean over the whole batch, the same bits on every worker
            scheduler.step()
            optimizer.zero_grad()

    run.save(options.out, model.state_dict())
    if run.is_main:
        print(f"test accuracy {accuracy(model, test, run.device):.2%} after {run.step} steps; model in {options.out}")


class Net(nn.Module):
    """Three convolutions and a linear layer: 94,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images))
        return scores


def data(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Pixels in [0, 1] and labels, shuffled and cut into what is trained on and what is only tested on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[TEST:], order[:TEST]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


@torch.no_grad()
def accuracy(model: nn.Module, test: TensorDataset, device: torch.device) -> float:
    model.eval()
    images, labels = (tensor.to(device) for tensor in test.tensors)
    return float((model(images).argmax(1) == labels).float().mean())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--out", default="digits.pt", help="where the model is saved")
    return parser.parse_args()


if __name__ == "__main__":
    main()
