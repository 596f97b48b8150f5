"""What the death of the leading coordinator costs: nothing in steps, and how long until another one leads.

    python benchmarks/failover.py [--kills 10] [--workers 2] [--json]

Kills the leader again and again while a job trains, and compares the longest pause between two applied steps around
each kill with the longest pause of a calm run in the same invocation.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from recovery import HERE, calm, longest_gap, timeline

from orch_core.testing.live import LiveJob

AROUND_S = 2.0  # a kill's pauses are looked for this long after it
BETWEEN_S = 1.0


def disturbed(folder: Path, workers: int, kills: int, env: dict[str, str]) -> tuple[list[float], list[float], str]:
    """Per kill: the longest pause in seconds, and the seconds until `status` knows another leader; the hash."""
    (folder / "t").mkdir(parents=True)
    at, took = [], []
    with LiveJob(
        folder, HERE / "workloads" / "timeline.py", workers=workers, env={**env, "TIMELINE": str(folder / "t")}
    ) as job:
        job.wait_step(10)
        for _ in range(kills):
            job.coordinator_pids()
            time.sleep(BETWEEN_S)
            old = job.leader_pid()
            at.append(time.monotonic())
            job.kill(old)
            job.wait_leader(other_than=old, timeout_s=10)
            took.append(time.monotonic() - at[-1])
        ended = job.finish(600)
    assert ended.code == 0, ended.output[-3000:]
    assert ended.summary
    assert ended.summary["lost_steps"] == 0
    assert ended.summary["recoveries"] == []
    assert ended.summary["leader_changes"] >= kills
    times = timeline(folder / "t").values()
    return [max(longest_gap(t, a, a + AROUND_S) for t in times) for a in at], took, ended.summary["weights_sha256"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=200, help="of 5 steps each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        env = {"EPOCHS": str(options.epochs), "OMP_NUM_THREADS": "1"}
        gap, step, sha = calm(Path(name) / "calm", options.workers, env)
        gaps, took, other = disturbed(Path(name) / "kills", options.workers, options.kills, env)
    assert other == sha, "other weights than the calm run"
    result = {
        "version": 1,
        "cores": os.cpu_count(),
        "workers": options.workers,
        "kills": len(gaps),
        "calm_step_ms": round(1000 * step, 1),
        "calm_longest_gap_ms": round(1000 * gap, 1),
        "kill_gap_median_ms": round(1000 * statistics.median(gaps), 1),
        "kill_gap_max_ms": round(1000 * max(gaps), 1),
        "kill_gap_max_over_calm": round(max(gaps) / gap, 2),
        "new_leader_median_ms": round(1000 * statistics.median(took), 1),
        "new_leader_max_ms": round(1000 * max(took), 1),
    }
    print(json.dumps(result, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
