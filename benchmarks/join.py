"""What a replacement costs: from its exec to its first counted gradient, and what the others feel of it.

    python benchmarks/join.py [--rounds 5] [--kills 4] [--workers 3] [--wide-joins 4] [--json]

Trains the digits example and kills a random member once the job is calm, again and again. Jobs whose workers are forked
from the nursery (warm) and jobs whose workers start as programs (cold) take turns. The copy of the example that is
trained writes down when each life had the gradient of its first pass, and when it had applied each step. Times count
from the start of the replacement's process, which the kernel keeps in steps of 10 ms: they are too long by up to that.

Then a second worker joins one that trains 25 million parameters with AdamW (300 MB of state), again and again: how much
longer than its median is the slowest step of the first one, in copies of the state (measured in the same invocation)?
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from orch_core.testing.live import HANG_S, LiveJob, members

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits" / "train.py"
COLD = "ORCH_COLD_START"
CALM_S = 1.5  # between a join and the next kill
MARK = """
def mark(what: str, step: int) -> None:
    import os, time

    with open(os.path.join(os.environ["JOIN_MARKS"], os.environ["ORCH_WORKER"]), "a") as file:
        print(what, step, time.clock_gettime(time.CLOCK_BOOTTIME), os.getpid(), file=file)


if __name__"""


@dataclass(frozen=True, slots=True)
class Join:
    killed_to_gradient_s: float
    exec_to_gradient_s: float
    median_step_s: float  # the others', in the calm second before
    slowest_calm_step_s: float  # the others', in as long a time within that second
    slowest_step_s: float  # the others', of those that began between the replacement's exec and its gradient


def instrumented() -> str:
    text = EXAMPLE.read_text()
    for line, extra in (
        ("loss.backward()", 'mark("pass", run.step)'),
        ("optimizer.zero_grad()", 'mark("step", run.step)'),
    ):
        indent = text[: text.index(line)].rpartition("\n")[2]
        text = text.replace(f"{line}\n", f"{line}\n{indent}{extra}\n", 1)
    return text.replace("\nif __name__", MARK, 1)


def marks(folder: Path, worker: str) -> list[tuple[str, int, float, int]]:
    try:
        rows = [line.split() for line in (folder / worker).read_text().splitlines()]
    except OSError:
        return []
    return [(row[0], int(row[1]), float(row[2]), int(row[3])) for row in rows if len(row) == 4]


def started_at(pid: int) -> float:
    """Seconds since boot; the kernel's, not a Python's."""
    stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(stat[19]) / os.sysconf("SC_CLK_TCK")


def first_gradient(folder: Path, worker: str) -> tuple[float, float]:
    """(start of the process, its first gradient that counted), once that one's step is applied."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        rows = marks(folder, worker)
        applied = {step for what, step, _, _ in rows if what == "step"}
        counted = [row for row in rows if row[0] == "pass" and row[1] in applied]
        if counted:
            return started_at(counted[0][3]), counted[0][2]
        time.sleep(0.05)
    raise AssertionError(f"{worker} never joined")


def disturb(folder: Path, workers: int, kills: int, rng: random.Random, *, cold: bool) -> list[Join]:
    folder.mkdir(parents=True)
    (folder / "marks").mkdir()
    script = folder / "train.py"
    script.write_text(instrumented())
    env = {"JOIN_MARKS": str(folder / "marks"), **({COLD: "1"} if cold else {})}
    joins = []
    options = ["--max-restarts", "1000"]
    with LiveJob(folder, script, "--epochs", "100000", workers=workers, options=options, env=env) as job:
        for _ in range(kills):
            job.wait_members(workers)
            time.sleep(CALM_S + 0.2 * rng.random())
            rows = members(job.wait_members(workers))
            victim = rng.choice(rows)
            others = [row["id"] for row in rows if row is not victim]
            killed = time.clock_gettime(time.CLOCK_BOOTTIME)
            job.kill(victim["pid"])
            place, _, life = victim["id"].partition(".")
            replacement = f"{place}.{int(life) + 1}"
            try:
                began, gradient = first_gradient(folder / "marks", replacement)
            except AssertionError:
                print(job.output()[-2000:], (job.home / job.name / "agent.log").read_text()[-4000:], file=sys.stderr)
                raise
            calm, before, window = [], [], []
            for other in others:
                times = [at for what, _, at, _ in marks(folder / "marks", other) if what == "step"]
                calm += [b - a for a, b in pairwise(times) if killed - 1.0 <= a and b <= killed]
                before += [b - a for a, b in pairwise(times) if b >= killed - (gradient - began) and b <= killed]
                window += [b - a for a, b in pairwise(times) if began <= a <= gradient]
            median = statistics.median(calm)
            joins.append(Join(gradient - killed, gradient - began, median, max(before, default=median), max(window)))
    return joins


def copy_s() -> float:
    """Of 300 MB, into memory that is there: the median of some."""
    state = torch.ones(75_000_000)
    copy, took = torch.empty_like(state), []
    for _ in range(5):
        began = time.perf_counter()
        copy.copy_(state)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def widen(folder: Path, joins: int) -> dict[str, Any]:
    """A job of one is scaled to two and back."""
    folder.mkdir(parents=True)
    (folder / "marks").mkdir()
    script = Path(__file__).parent / "workloads" / "wide.py"
    stalls, medians, copied = [], [], copy_s()
    with LiveJob(
        folder, script, workers=1, shards=4, options=["--max-workers", "2"], env={"JOIN_MARKS": str(folder / "marks")}
    ) as job:
        for _ in range(joins):
            began = time.clock_gettime(time.CLOCK_BOOTTIME)
            time.sleep(6 * CALM_S)
            scaled = time.clock_gettime(time.CLOCK_BOOTTIME)
            job.orch("scale", "2")
            job.wait_members(2)
            times = [at for _, _, at, _ in marks(folder / "marks", "w0.1")]
            calm = statistics.median([b - a for a, b in pairwise(times) if a >= began and b <= scaled])
            stalls.append(max(b - a for a, b in pairwise(times) if b >= scaled) - calm)
            medians.append(calm)
            print(f"wide join: step {calm:.3f} s, slowest + {stalls[-1]:.3f} s", file=sys.stderr, flush=True)
            job.orch("scale", "1")
            job.wait_members(1)
    stall = statistics.median(stalls)
    return {
        "joins": joins,
        "step_median_ms": round(1000 * statistics.median(medians)),
        "copy_of_state_ms": round(1000 * copied),
        "stall_median_ms": round(1000 * stall),
        "stall_in_copies_median": round(stall / copied, 2),
    }


def told(joins: list[Join]) -> dict[str, Any]:
    to_gradient = [j.exec_to_gradient_s for j in joins]
    return {
        "joins": len(joins),
        "exec_to_gradient_median_ms": round(1000 * statistics.median(to_gradient)),
        "exec_to_gradient_max_ms": round(1000 * max(to_gradient)),
        "kill_to_gradient_median_ms": round(1000 * statistics.median(j.killed_to_gradient_s for j in joins)),
        "others_step_median_ms": round(1000 * statistics.median(j.median_step_s for j in joins), 1),
        "calm_slowest_step_ratio_median": round(
            statistics.median(j.slowest_calm_step_s / j.median_step_s for j in joins), 2
        ),
        "others_slowest_step_ratio_median": round(
            statistics.median(j.slowest_step_s / j.median_step_s for j in joins), 2
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of one warm and one cold job")
    parser.add_argument("--kills", type=int, default=4, help="in each job")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--wide-joins", type=int, default=4, help="0: none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    found: dict[str, list[Join]] = {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            for how, joins in found.items():
                folder = Path(name) / f"{how}{number}"
                joins += disturb(folder, options.workers, options.kills, rng, cold=how == "cold")
                print(f"{how} job {number + 1}: {told(joins[-options.kills :])}", file=sys.stderr, flush=True)
        wide = widen(Path(name) / "wide", options.wide_joins) if options.wide_joins else None
    result: dict[str, Any] = {"version": 1, "cores": os.cpu_count(), "workers": options.workers}
    result |= {how: told(joins) for how, joins in found.items() if joins}
    result |= {"wide": wide} if wide else {}
    print(json.dumps(result, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
