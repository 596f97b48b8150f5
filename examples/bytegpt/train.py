"""Learn to write Python: a small GPT on bytes, trained on the sources of Python's own standard library.

Three workers:                       orch run --workers 3 examples/bytegpt/train.py
One process, and the same weights:   python examples/bytegpt/train.py
"""

import argparse
import math
import random
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import orch_core as orch

BATCH = 48  # windows in one optimizer step, whatever the number of workers
HELD_OUT = 10  # every tenth file is only tested on
TEST_WINDOWS = 256
NOT_READ = {  # folders below the standard library
    *("site-packages", "dist-packages"),  # not part of it, and different on each machine
    *("test", "tests", "idle_test"),  # twice as much as all the rest, and odd on purpose
    *("encodings", "pydoc_data"),  # tables, and one very long string
}
SIZES = {  # layers, width, heads, context
    "nano": (2, 64, 2, 64),  # 0.1 million parameters
    "tiny": (2, 128, 4, 128),  # 0.4
    "small": (6, 256, 8, 256),  # 4.9
    "medium": (8, 512, 8, 256),  # 25.5
}


def main() -> None:
    options = arguments()
    run = orch.init()
    model = GPT(*SIZES[options.size], dropout=options.dropout).to(run.device)
    train, test = corpus(int(options.megabytes * 1e6), model.context, run.seed)
    optimizer = torch.optim.AdamW(groups(model), lr=options.lr, betas=(0.9, 0.95))
    steps = math.ceil(options.epochs * len(train) / BATCH)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    run.prepare(model, optimizer, scheduler)
    if run.is_main:
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{size:,} parameters, {len(train):,} windows of {model.context} bytes, {steps} steps")

    for _ in run.epochs(options.epochs):
        for batch in run.batches(train, batch_size=BATCH):
            for window in batch:  # this worker's shards of the batch
                logits, targets = model(window[:, :-1]), window[:, 1:]
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
                loss.backward()
                run.log(loss=loss, accuracy=(logits.argmax(-1) == targets).float().mean())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # here .grad is the mean over the whole batch, the same bits on every worker
            scheduler.step()
            optimizer.zero_grad()

    run.save(options.out, model.state_dict())
    if run.is_main:
        bits, accuracy = evaluate(model, test, run.device)
        print(f"on files that it has never seen: {bits:.2f} bits per byte, {accuracy:.1%} of the next bytes right")
        print(f"after {run.step} steps it writes:\n{sample(model, options.prompt, options.sample, run.generator)}")


class GPT(nn.Module):
    """Bytes in, a score for each possible next byte out: (batch, length) -> (batch, length, 256)."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.embed = nn.Embedding(256, width)
        self.position = nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        self.apply(initialize)
        self.head.weight = self.embed.weight  # tied

    def forward(self, window: Tensor) -> Tensor:
        positions = torch.arange(window.shape[1], device=window.device)
        hidden = self.drop(self.embed(window) + self.position(positions))
        scores: Tensor = self.head(self.norm(self.blocks(hidden)))
        return scores


class Block(nn.Module):
    """Attention to what came before, then a small network for each byte, both added to what comes in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.drop(self.attend(self.norm1(hidden)))
        both: Tensor = hidden + self.drop(self.mlp(self.norm2(hidden)))
        return both

    def attend(self, hidden: Tensor) -> Tensor:
        q, k, v = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        mixed: Tensor = self.project(seen.transpose(1, 2).flatten(2))
        return mixed


def initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def groups(model: nn.Module) -> list[dict[str, object]]:
    """Matrices decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def schedule(step: int, steps: int) -> float:
    """The factor of the learning rate: a warm-up over the first twentieth, then half a cosine down to a tenth."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


class Windows(Dataset[Tensor]):
    """A text cut into windows, each with the byte that follows it: `context` + 1 numbers."""

    def __init__(self, text: bytes, context: int) -> None:
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.context = context

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index: int) -> Tensor:
        begin = index * self.context
        return self.text[begin : begin + self.context + 1].long()


def corpus(limit: int, context: int, seed: int) -> tuple[Windows, Windows]:
    """What is trained on and what is only tested on, `limit` bytes together: whole files (the last one is cut), in an
    order that depends on the seed, not on the file system."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in stdlib.rglob("*.py") if NOT_READ.isdisjoint(path.relative_to(stdlib).parts))
    random.Random(seed).shuffle(files)
    parts: tuple[list[bytes], list[bytes]] = [], []
    for number, path in enumerate(files):
        if limit <= 0:
            break
        text = path.read_bytes()[:limit]
        limit -= len(text)
        parts[number % HELD_OUT == 0].append(text)
    train, test = (b"\n".join(part) for part in parts)
    return Windows(train, context), Windows(test, context)


@torch.no_grad()
def evaluate(model: GPT, test: Windows, device: torch.device) -> tuple[float, float]:
    """(bits per byte, share of bytes whose best score is right), over evenly spread windows of the held-out files."""
    model.eval()
    every = max(1, len(test) // TEST_WINDOWS)
    window = torch.stack([test[i] for i in range(0, len(test), every)]).to(device)
    logits, targets = model(window[:, :-1]), window[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return float(loss) / math.log(2), float((logits.argmax(-1) == targets).float().mean())


@torch.no_grad()
def sample(model: GPT, prompt: str, length: int, generator: torch.Generator) -> str:
    model.eval()
    text = torch.tensor([list(prompt.encode())], device=model.embed.weight.device)
    for _ in range(length):
        scores = model(text[:, -model.context :])[0, -1]
        chances = torch.softmax(scores / 0.8, -1)  # a little bolder than what it believes
        text = torch.cat([text, torch.multinomial(chances, 1, generator=generator)[None]], 1)
    return bytes(text[0].tolist()).decode("utf-8", "replace")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small GPT on the sources of Python's standard library.")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="how large the model is")
    parser.add_argument("--megabytes", type=float, default=2.0, help="how much source it reads")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--prompt", default="def ", help="how the sample begins")
    parser.add_argument("--sample", type=int, default=300, metavar="BYTES", help="how long the sample is")
    parser.add_argument("--out", default="bytegpt.pt", help="where the model is saved")
    return parser.parse_args()


if __name__ == "__main__":
    main()
