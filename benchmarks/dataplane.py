"""All-reduce over loopback: orch's canonical rounds beside gloo, in the same processes and the same run.

    python benchmarks/dataplane.py [--members 2 3] [--sizes 4KiB 1MiB 16MiB 64MiB] [--json FILE]

Payload GB/s: bytes of the value divided by the median time of one all-reduce. Trust the ratio, not the figures: each
member times orch and gloo in turn.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from orch_core.contracts.ids import Shard
from orch_core.dataplane.group import Group, Link
from orch_core.dataplane.rounds import Call, Operation, run_calls
from orch_core.protocol.tree import maximal

SHARDS = 12
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--sizes", type=_bytes, nargs="+", default=["4KiB", "1MiB", "16MiB", "64MiB"])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    sizes = [size if isinstance(size, int) else _bytes(size) for size in arguments.sizes]
    rows = [row for members in arguments.members for row in measure(members, sizes, arguments.seconds)]
    print(
        f"{'members':>7} {'bytes':>10} {'orch ms':>9} {'gloo ms':>9} {'orch GB/s':>10} {'gloo GB/s':>10} {'ratio':>6}"
    )
    for row in rows:
        print(
            f"{row['members']:>7} {row['bytes']:>10} {row['orch_ms']:>9.3f} {row['gloo_ms']:>9.3f} "
            f"{row['orch_gb_s']:>10.3f} {row['gloo_gb_s']:>10.3f} {row['ratio']:>6.2f}"
        )
    if arguments.json:
        with open(arguments.json, "w") as out:
            json.dump({"version": 1, "rows": rows}, out, indent=1)


def measure(members: int, sizes: list[int], seconds: float) -> list[dict[str, Any]]:
    """Rows of the first member."""
    context = multiprocessing.get_context("spawn")
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=members) for _ in range(members + 1)]
    port = listeners.pop().getsockname()[1]  # gloo's store; free again when the last reference goes
    results: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_member, args=(me, members, listeners, port, sizes, seconds, results))
        for me in range(members)
    ]
    for process in processes:
        process.start()
    rows: list[dict[str, Any]] = results.get()
    for process in processes:
        process.join()
    return rows


def _member(
    me: int, members: int, listeners: list[socket.socket], port: int, sizes: list[int], seconds: float, results: Any
) -> None:
    torch.set_num_threads(1)
    group = _connect(me, listeners)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=me, world_size=members, timeout=timedelta(seconds=60)
    )
    rows = [_compare(me, members, group, size, seconds) for size in sizes]
    if me == 0:
        results.put(rows)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    group.close()


def _compare(me: int, members: int, group: Group, size: int, seconds: float) -> dict[str, Any]:
    cuts = [SHARDS * member // members for member in range(members + 1)]
    deal = [[Shard(shard) for shard in range(cuts[member], cuts[member + 1])] for member in range(members)]
    operation = Operation("mean", torch.float32, (size // 4,))
    partials = {place: torch.randn(size // 4) for place in maximal(deal[me], SHARDS)}
    call = Call("benchmark", 0, 0, operation, partials)
    value = torch.randn(size // 4)

    def orch() -> None:
        run_calls([call], 0, deal, me, group, SHARDS)

    def gloo() -> None:
        torch.distributed.all_reduce(value)
        value.mul_(1 / members)

    times: dict[str, list[float]] = {"orch": [], "gloo": []}
    _timed(orch), _timed(gloo)
    rounds = torch.tensor(max(3, int(seconds / max(_timed(orch), _timed(gloo)))))
    torch.distributed.broadcast(rounds, 0)
    for _ in range(int(rounds)):
        times["orch"].append(_timed(orch))
        times["gloo"].append(_timed(gloo))
    orch_s, gloo_s = statistics.median(times["orch"]), statistics.median(times["gloo"])
    return {
        "members": members,
        "bytes": size,
        "orch_ms": orch_s * 1e3,
        "gloo_ms": gloo_s * 1e3,
        "orch_gb_s": size / orch_s / 1e9,
        "gloo_gb_s": size / gloo_s / 1e9,
        "ratio": gloo_s / orch_s,
    }


def _timed(act: Callable[[], None]) -> float:
    torch.distributed.barrier()
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _connect(me: int, listeners: list[socket.socket]) -> Group:
    """Dial everybody; the first byte on a connection says who dialled."""
    senders: dict[int, socket.socket] = {}
    for peer, listener in enumerate(listeners):
        if peer != me:
            senders[peer] = socket.create_connection(listener.getsockname())
            senders[peer].sendall(bytes([me]))
    receivers: dict[int, socket.socket] = {}
    for _ in senders:
        connection, _ = listeners[me].accept()
        receivers[connection.recv(1)[0]] = connection
    return Group(me, {peer: Link(senders[peer], receivers[peer]) for peer in senders})


def _bytes(text: str) -> int:
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


if __name__ == "__main__":
    main()
