"""How long a commit takes on three replicas, and how long it takes from a leader's death to the next leadership.

Three processes on loopback with real disks, as coordinators run. The commit is measured in the leader (where `decide`
asks for it); beside it, in the same process and on the same disk, one synced append of the same size, which is the
least that durability costs. Then the leader is killed with SIGKILL, again and again; each time the next leader's clock
(CLOCK_MONOTONIC is one for all processes of a host) tells when it led.

    python benchmarks/raft_commit.py [--commits 500] [--bytes 30000] [--deaths 20] [--json]
"""

import argparse
import asyncio
import json
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orch_consensus_raft.replica import RaftReplica
from orch_core.contracts.consensus import Leadership, ReplicaSpec
from orch_core.contracts.errors import LeadershipLost
from orch_core.contracts.ids import CoordinatorId

PATIENCE_S = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--bytes", type=int, default=30_000, help="size of the document (default: that of 8 workers)")
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure")
    parser.add_argument("--replica", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replica is not None:
        asyncio.run(serve(json.loads(arguments.replica)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix=".raft-commit-") as folder:
        result = measure(Path(folder), arguments)
    print(json.dumps(result, indent=2) if arguments.json else describe(result))


# ---- one replica's process -------------------------------------------------------------------------------------------


async def serve(what: Mapping[str, Any]) -> None:
    """Lead whenever possible: say when, measure, go on. Ends by a signal."""
    peers = {CoordinatorId(name): address for name, address in what["peers"].items()}
    spec = ReplicaSpec(CoordinatorId(what["id"]), peers, Path(what["folder"]), what["token"])
    replica = RaftReplica(spec)
    await replica.start()
    while not replica.status().quorum:  # noqa: ASYNC110 - a status is asked for, it does not ring
        await asyncio.sleep(0.01)
    print(json.dumps({"id": what["id"], "ready": True}), flush=True)
    while True:
        leadership = await replica.lead()
        led_at = time.monotonic()
        try:
            commits = await time_commits(leadership, what["commits"], what["bytes"])
            syncs = time_syncs(Path(what["folder"]) / "sync", what["commits"], what["bytes"])
            print(json.dumps({"id": what["id"], "led_at": led_at, "commits": commits, "syncs": syncs}), flush=True)
            await leadership.lost()
        except LeadershipLost:
            continue


async def time_commits(leadership: Leadership, count: int, size: int) -> list[float]:
    times = []
    for number in range(count):
        document, began = number.to_bytes(8, "big").ljust(size, b"x"), time.perf_counter()
        await leadership.commit(document)
        times.append(time.perf_counter() - began)
    return times


def time_syncs(path: Path, count: int, size: int) -> list[float]:
    times = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for _ in range(count):
        began = time.perf_counter()
        os.write(file, bytes(size))
        os.fdatasync(file)
        times.append(time.perf_counter() - began)
    os.close(file)
    return times


# ---- the one that kills ----------------------------------------------------------------------------------------------


class Replicas:
    """Three processes. Each says when it is in touch with a majority, and when it led."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._reserved = {f"c{number}": reserve() for number in range(3)}
        self._peers = {name: f"127.0.0.1:{one.getsockname()[1]}" for name, one in self._reserved.items()}
        self._lines: queue.Queue[str] = queue.Queue()
        self._processes: dict[str, tuple[subprocess.Popen[str], threading.Thread]] = {}

    def start(self, name: str, commits: int) -> None:
        what: dict[str, Any] = {"id": name, "peers": self._peers, "folder": str(self._folder / name)}
        what |= {"token": "benchmark", "commits": commits, "bytes": self._size}
        command = [sys.executable, __file__, "--replica", json.dumps(what)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        reader = threading.Thread(target=self._read, args=(process,), name=f"reads {name}")
        reader.start()
        self._processes[name] = process, reader

    def wait_for(self, key: str) -> dict[str, Any]:
        while True:
            try:
                line = json.loads(self._lines.get(timeout=PATIENCE_S))
            except queue.Empty as error:
                raise SystemExit(f"no replica said {key!r} within {PATIENCE_S} s") from error
            if key in line:
                return dict(line)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put(line)

    def kill(self, name: str) -> float:
        process, reader = self._processes.pop(name)
        died_at = time.monotonic()
        process.send_signal(signal.SIGKILL)
        process.wait()
        reader.join()
        return died_at

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)
        for one in self._reserved.values():
            one.close()


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    replicas = Replicas(folder, arguments.bytes)
    try:
        began = time.monotonic()
        for name in ("c0", "c1", "c2"):
            replicas.start(name, arguments.commits)
        first = replicas.wait_for("led_at")
        leader, failovers = first, []
        for _ in range(arguments.deaths):
            died_at = replicas.kill(leader["id"])
            dead, leader = leader["id"], replicas.wait_for("led_at")
            failovers.append(leader["led_at"] - died_at)
            replicas.start(dead, 1)
            replicas.wait_for("ready")  # three again: what is measured is the death of a calm cluster's leader
        return {
            "version": 1,
            "bytes": arguments.bytes,
            "first_leader_ms": round(1e3 * (first["led_at"] - began), 2),
            "commit_ms": quantiles(first["commits"]),
            "synced_append_ms": quantiles(first["syncs"]),
            "death_to_leader_ms": quantiles(failovers),
        }
    finally:
        replicas.close()


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    picked = {"p50": statistics.median(ordered), "p99": p99, "max": ordered[-1]}
    return {name: round(1e3 * value, 3) for name, value in picked.items()} | {"count": len(ordered)}


def describe(result: Mapping[str, Any]) -> str:
    lines = [f"three replicas on loopback, {result['bytes']} bytes, real syncs (times in ms)"]
    lines.append(f"  processes started -> first leader: {result['first_leader_ms']}")
    for name in ("commit_ms", "synced_append_ms", "death_to_leader_ms"):
        figures = ", ".join(f"{key} {value}" for key, value in result[name].items())
        lines.append(f"  {name.removesuffix('_ms').replace('_', ' ')}: {figures}")
    return "\n".join(lines)


def reserve() -> socket.socket:
    """Hold a port that the replica then binds, too (SO_REUSEPORT), as the agent does."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", 0))
    return one


if __name__ == "__main__":
    main()
