"""What a SIGKILL costs: the gap it tears into the survivors' steps, beside the longest gap of a calm run.

    python benchmarks/recovery.py [--kills 30] [--workers 3] [--loaders 0] [--json]

Kills a random member at a random instant, the next one when the replacement is a member, over as many jobs as it
takes. Every survivor writes down when it had applied each step; the gap of a kill is the longest pause between two of
them around it. Also checked: no step lost, no survivor restarted, the undisturbed run's weights.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from orch_core.testing.live import LiveJob, members, run_job

HERE = Path(__file__).parent
KILLS_PER_JOB = 10


def timeline(folder: Path) -> dict[int, list[float]]:
    """Per process: when it had applied each step."""
    return {
        int(p.name): [float(line.split()[1]) for line in p.read_text().splitlines() if len(line.split()) == 2]
        for p in folder.iterdir()
    }


def longest_gap(times: list[float], since: float = 0.0, until: float = float("inf")) -> float:
    """Of the pauses between neighbours that overlap [since, until]."""
    return max((b - a for a, b in pairwise(times) if b >= since and a <= until), default=0.0)


def calm(folder: Path, workers: int, env: dict[str, str]) -> tuple[float, float, str]:
    """Longest gap, median step and hash of a run that nobody disturbs."""
    (folder / "t").mkdir(parents=True)
    ended = run_job(
        folder, HERE / "workloads" / "timeline.py", workers=workers, env={**env, "TIMELINE": str(folder / "t")}
    )
    assert ended.code == 0 and ended.summary, ended.output[-3000:]
    times = [t[5:] for t in timeline(folder / "t").values()]  # the first steps warm up
    steps = [b - a for t in times for a, b in pairwise(t)]
    return max(longest_gap(t) for t in times), statistics.median(steps), ended.summary["weights_sha256"]


def disturbed(
    folder: Path, workers: int, kills: int, env: dict[str, str], rng: random.Random
) -> tuple[list[float], Any]:
    (folder / "t").mkdir(parents=True)
    gaps: list[tuple[float, list[int]]] = []
    options = ["--max-restarts", "1000"]
    with LiveJob(
        folder,
        HERE / "workloads" / "timeline.py",
        workers=workers,
        options=options,
        env={**env, "TIMELINE": str(folder / "t")},
    ) as job:
        for _ in range(kills):
            status = job.wait("every place is a member", lambda s: len(members(s)) == workers)
            time.sleep(0.3 + rng.random() * 0.2)
            status = job.wait("every place is a member", lambda s: len(members(s)) == workers)
            rows = members(status)
            victim = rng.choice(rows)
            at = time.monotonic()
            job.kill(victim["pid"])
            gaps.append((at, [w["pid"] for w in rows if w is not victim]))
            after = job.wait_out(victim["id"])
            now = {w["id"]: w["pid"] for w in after["workers"]}
            assert all(now[w["id"]] == w["pid"] for w in rows if w is not victim), "a survivor was restarted"
        job.wait("every place is a member", lambda s: len(members(s)) == workers)
        ended = job.finish(600)
    assert ended.code == 0 and ended.summary, ended.output[-3000:]
    times = timeline(folder / "t")
    measured = [max(longest_gap(times[p], at, at + 0.5) for p in pids if p in times) for at, pids in gaps]
    return measured, ended.summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=400, help="of 5 steps each, in a disturbed job")
    parser.add_argument("--loaders", type=int, default=0, help="data-loader processes of each worker")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    gaps: list[float] = []
    recoveries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        env = {"EPOCHS": str(options.epochs), "LOADERS": str(options.loaders), "OMP_NUM_THREADS": "1"}
        gap, step, sha = calm(Path(name) / "calm", options.workers, env)
        number = 0
        while len(gaps) < options.kills:
            kills = min(KILLS_PER_JOB, options.kills - len(gaps))
            number += 1
            measured, summary = disturbed(Path(name) / f"job{number}", options.workers, kills, env, rng)
            print(
                f"job {number}: {len(measured)} kills, lost steps {summary['lost_steps']}", file=sys.stderr, flush=True
            )
            assert summary["lost_steps"] == 0
            assert summary["weights_sha256"] == sha, "other weights than the calm run"
            gaps += measured
            recoveries += summary["recoveries"]
    extra = [1000 * (g - gap) for g in gaps]
    result = {
        "version": 1,
        "cores": os.cpu_count(),
        "workers": options.workers,
        "kills": len(gaps),
        "calm_step_ms": round(1000 * step, 1),
        "calm_longest_gap_ms": round(1000 * gap, 1),
        "kill_gap_median_ms": round(1000 * statistics.median(gaps), 1),
        "kill_gap_max_ms": round(1000 * max(gaps), 1),
        "beyond_calm_median_ms": round(statistics.median(extra), 1),
        "beyond_calm_max_ms": round(max(extra), 1),
        "phases_median_ms": {
            k: round(statistics.median(r[k] for r in recoveries), 1)
            for k in ("detect_ms", "agree_ms", "reform_ms", "redo_ms", "total_ms")
            if recoveries
        },
    }
    print(json.dumps(result, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
