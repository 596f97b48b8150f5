"""What fluid shards gain when one worker is slow: throughput against equal shards, and equal weights.

    python benchmarks/fluid.py [--rounds 3] [--workers 3] [--slower 4] [--json]

The passes of one worker take `--slower` times as long as the others': it runs a busy loop in each, they sleep, so that
two cores are enough. Jobs with `--deal fluid` and `--deal equal` take turns; both must end with one hash.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from orch_core.testing.live import LiveJob

SCRIPT = Path(__file__).parent / "workloads" / "uneven.py"


def run(folder: Path, workers: int, deal: str, env: dict[str, str]) -> tuple[float, str]:
    """Steps per second, and the hash."""
    folder.mkdir(parents=True)
    with LiveJob(folder, SCRIPT, workers=workers, options=["--deal", deal], env=env) as job:
        ended = job.finish()
    if ended.code != 0 or ended.summary is None:
        raise SystemExit(ended.output[-3000:])
    return float(ended.summary["steps_per_s"]), str(ended.summary["weights_sha256"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of one fluid and one equal job")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--slower", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=12, help="of 10 steps")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    env = {"EPOCHS": str(options.epochs), "SLOWER": str(options.slower), "SLOW_PLACE": "w1"}
    found: dict[str, list[float]] = {"fluid": [], "equal": []}
    hashes = set()
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            for deal, speeds in found.items():
                speed, digest = run(Path(name) / f"{deal}{number}", options.workers, deal, env)
                speeds.append(speed)
                hashes.add(digest)
                print(f"{deal}: {speed:.1f} steps/s", file=sys.stderr, flush=True)
    ratio = statistics.median(a / b for a, b in zip(found["fluid"], found["equal"], strict=True))
    result: dict[str, Any] = {"version": 1, "cores": os.cpu_count(), "workers": options.workers}
    result |= {"slower": options.slower, "ratio_median": round(ratio, 2), "one_hash": len(hashes) == 1}
    result |= {f"{deal}_steps_per_s_median": round(statistics.median(speeds), 1) for deal, speeds in found.items()}
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
    return 0 if len(hashes) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
