"""The shell: full disks, wrong tokens, nonsense on the wire, silent links, and what is left behind."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from orch_consensus_raft import plugin, wal
from orch_consensus_raft.replica import DOCUMENT_LIMIT, RaftReplica
from orch_core.contracts.consensus import ReplicaSpec
from orch_core.contracts.errors import ConfigurationError, LeadershipLost
from orch_core.contracts.ids import CoordinatorId

A, B, C = (CoordinatorId(name) for name in ("c0", "c1", "c2"))
PATIENCE_S = 20.0


def bound() -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", 0))
    return one


def specs(folder: Path, count: int = 1, tokens: tuple[str, ...] = ("t", "t", "t")) -> list[ReplicaSpec]:
    """Each with its listener: bound, not listening."""
    listeners = dict(zip((A, B, C), [bound() for _ in range(count)], strict=False))
    peers = {me: f"127.0.0.1:{one.getsockname()[1]}" for me, one in listeners.items()}
    return [
        ReplicaSpec(me, peers, folder / me, token, one)
        for (me, one), token in zip(listeners.items(), tokens, strict=False)
    ]


@contextlib.asynccontextmanager
async def running(*replicas: RaftReplica) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(replica.start() for replica in replicas))
            yield
    finally:
        for replica in replicas:
            await replica.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(debug=True) as runner:
        runner.get_loop().slow_callback_duration = 10
        runner.run(scenario)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0.005)


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_plugin_makes_a_replica(tmp_path: Path) -> None:
    (spec,) = specs(tmp_path)
    replica = plugin.orch_make_consensus(spec)
    assert isinstance(replica, RaftReplica)
    run(replica.close())
    assert not (tmp_path / A).exists()


def test_a_full_disk_ends_the_leadership_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        replica = RaftReplica(specs(tmp_path)[0])
        async with running(replica):
            leadership = await replica.lead()
            await leadership.commit(b"fits")
            monkeypatch.setattr(wal.os, "fdatasync", full)
            with pytest.raises(LeadershipLost):
                await leadership.commit(b"does not fit")
            await leadership.lost()
            with pytest.raises(ConfigurationError, match=r"cannot write its log .*raft\.log: No space left.*make room"):
                await replica.lead()
            assert not replica.status().quorum

    run(scenario())
    monkeypatch.undo()

    async def again() -> None:
        replica = RaftReplica(specs(tmp_path)[0])
        async with running(replica):
            assert (await replica.lead()).document in (b"fits", b"does not fit")

    run(again())


def test_a_disk_that_is_full_from_the_start_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        replica = RaftReplica(specs(tmp_path)[0])
        with pytest.raises(ConfigurationError, match="No space left"):
            await replica.start()
        await replica.close()

    monkeypatch.setattr(wal.os, "write", full)
    run(scenario())


def test_the_others_lead_on_when_the_leaders_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wal.WriteAheadLog.write

    async def scenario() -> None:
        replicas = {spec.id: RaftReplica(spec) for spec in specs(tmp_path, 3)}
        async with running(*replicas.values()):
            await until(lambda: any(one.status().role == "leader" for one in replicas.values()))
            me, broken = next((me, one) for me, one in replicas.items() if one.status().role == "leader")
            leadership = await broken.lead()
            await leadership.commit(b"before")
            log = broken._wal
            monkeypatch.setattr(
                wal.WriteAheadLog, "write", lambda self, *rest: full() if self is log else real(self, *rest)
            )
            with contextlib.suppress(LeadershipLost):  # the others may commit it while the leader's disk fails
                await leadership.commit(b"at the end")
            await leadership.lost()
            rest = [one for name, one in replicas.items() if name != me]
            tasks = [asyncio.create_task(one.lead()) for one in rest]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            after = done.pop().result()
            assert after.document in (b"before", b"at the end")
            await after.commit(b"goes on")

    run(scenario())


def test_a_slow_disk_of_a_leader_stops_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A majority is durable without it, and its heartbeats go on."""
    import threading

    hold, real = threading.Event(), wal.WriteAheadLog.write

    async def scenario() -> None:
        replicas = [RaftReplica(spec) for spec in specs(tmp_path, 3)]
        async with running(*replicas):
            await until(lambda: any(one.status().role == "leader" for one in replicas))
            leader = next(one for one in replicas if one.status().role == "leader")
            leadership = await leader.lead()
            log = leader._wal

            def slow(self: wal.WriteAheadLog, *rest: Any) -> None:
                if self is log:
                    hold.wait(PATIENCE_S)
                real(self, *rest)

            monkeypatch.setattr(wal.WriteAheadLog, "write", slow)
            term = leadership.term
            for number in range(5):
                await leadership.commit(b"%d" % number)
            await asyncio.sleep(0.7)  # longer than any election timeout: time itself is the event
            assert leader.status().role == "leader"
            assert leader.status().term == term
            hold.set()

    try:
        run(scenario())
    finally:
        hold.set()


def test_a_replica_with_another_token_gets_no_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        good, bad = (RaftReplica(spec) for spec in specs(tmp_path, 2, ("right", "wrong")))
        async with running(good, bad):
            await until(lambda: "does not know the job's token" in caplog.text)
            assert good.status().role != "leader"
            assert bad.status().role != "leader"
            assert not good._transport._inward
            assert not good._transport._outward

    run(scenario())


@pytest.mark.parametrize(
    "nonsense",
    [b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff" * 100, struct.pack("!I", 2) + b"[]", struct.pack("!I", 3) + b"\xff{}"],
)
def test_nonsense_from_a_stranger_is_refused_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, nonsense: bytes
) -> None:
    async def scenario() -> None:
        (spec,) = specs(tmp_path)
        replica = RaftReplica(spec)
        async with running(replica):
            leadership = await replica.lead()
            host, _, port = spec.peers[A].rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(nonsense)
            await until(lambda: "connection refused" in caplog.text)
            writer.transport.abort()
            await leadership.commit(b"undisturbed")

    run(scenario())
    assert caplog.text.count("connection refused") == 1


def test_a_malformed_message_from_a_peer_closes_that_link_and_it_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        replicas = [RaftReplica(spec) for spec in specs(tmp_path, 3)]
        async with running(*replicas):
            await until(lambda: any(one.status().role == "leader" for one in replicas))
            leader = next(one for one in replicas if one.status().role == "leader")
            peer, writer = next(iter(leader._transport._outward.items()))
            writer.write(struct.pack("!I", 5) + b"what?")
            await until(lambda: "malformed message" in caplog.text)
            await until(lambda: leader._transport._outward.get(peer) not in (None, writer))
            leaders = [asyncio.create_task(one.lead()) for one in replicas]
            done, pending = await asyncio.wait(leaders, return_when=asyncio.FIRST_COMPLETED)
            await done.pop().result().commit(b"on")
            for task in pending:
                task.cancel()

    run(scenario())


def test_a_taken_port_is_a_configuration_error_naming_the_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            replica = RaftReplica(ReplicaSpec(A, {A: address}, tmp_path, "t"))
            with pytest.raises(ConfigurationError, match=f"cannot listen on {address}"):
                await replica.start()
            await replica.close()

    run(scenario())


def test_a_replica_waits_for_its_last_life_to_let_go_of_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        old = wal.WriteAheadLog(tmp_path / A, A)
        old.open()
        replica = RaftReplica(specs(tmp_path)[0])
        starting = asyncio.create_task(replica.start())
        await asyncio.sleep(0.05)
        assert not starting.done()
        old.close()
        await starting
        await (await replica.lead()).commit(b"mine now")
        await replica.close()

    run(scenario())


def test_a_document_that_is_too_large_is_refused_before_it_is_written(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = RaftReplica(specs(tmp_path)[0])
        async with running(replica):
            leadership = await replica.lead()
            with pytest.raises(ConfigurationError, match="larger than"):
                await leadership.commit(bytes(DOCUMENT_LIMIT + 1))
            await leadership.commit(b"small")

    run(scenario())


def test_options_and_unlisted_replicas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no option speed"):
        RaftReplica(ReplicaSpec(A, {A: "127.0.0.1:1"}, tmp_path, "t", options={"speed": "9"}))
    with pytest.raises(ConfigurationError, match="not among"):
        RaftReplica(ReplicaSpec(B, {A: "127.0.0.1:1"}, tmp_path, "t"))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    import threading

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def scenario() -> None:
        before = open_files()
        replicas = [RaftReplica(spec) for spec in specs(tmp_path, 3)]
        async with running(*replicas):
            await until(lambda: any(one.status().quorum for one in replicas))
        await asyncio.sleep(0)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("raft-disk")]
        await until(lambda: open_files() <= before)

    run(scenario())
