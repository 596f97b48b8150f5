"""Coordinator processes, with the Raft plugin as it is installed."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orch_core import plugins
from orch_core.contracts import codec
from orch_core.contracts.consensus import Committed
from orch_core.contracts.errors import OrchError, Unreachable
from orch_core.contracts.ids import CoordinatorId, JobName
from orch_core.contracts.job import CoordinatorAddress, JobFile, JobSpec
from orch_core.contracts.status import Phase
from orch_core.coordinator import main as main_module
from orch_core.rpc import client
from orch_core.rpc.stream import LeaderStream
from orch_core.testing.consensus_fake import FakeCluster, FakeConsensus
from orch_core.testing.control import HANG_S, worker_status

TOKEN = "a secret"
MODULE = "orch_core.coordinator.main"
RESIDENT_LIMIT = 120 * 1024  # KiB


class Job:
    """A job folder with reserved ports, and the coordinators that run on it."""

    def __init__(self, folder: Path, replicas: int = 3) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets: list[socket.socket] = []
        rows = tuple(
            CoordinatorAddress(CoordinatorId(f"c{i}"), self.reserve(), self.reserve()) for i in range(replicas)
        )
        spec = JobSpec(JobName("test"))
        self.file = JobFile(JobName("test"), os.getpid(), rows, TOKEN, spec, time.time())
        self.write(self.file)

    def reserve(self) -> str:
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        self._sockets.append(reserved)
        host, port = reserved.getsockname()
        return f"{host}:{port}"

    def write(self, file: JobFile) -> None:
        self.path.write_bytes(codec.encode(file))

    @property
    def path(self) -> Path:
        return self.folder / "job.json"

    @property
    def addresses(self) -> list[str]:
        return [row.address for row in self.file.coordinators]

    def start(self, *names: str) -> None:
        for name in names or [row.id for row in self.file.coordinators]:
            command = [sys.executable, "-m", MODULE, "--job-file", str(self.path), "--id", name]
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)

    def signal(self, number: signal.Signals, *names: str) -> None:
        for name in names:
            self.processes[name].send_signal(number)

    def kill(self, *names: str) -> None:
        for name in names:
            self.processes[name].kill()
            self.processes.pop(name).wait()

    def status(self, fits: Callable[[client.StatusJson], bool]) -> client.StatusJson:
        """The first one that fits."""
        deadline, last = time.monotonic() + HANG_S, None
        while time.monotonic() < deadline:
            try:
                last = client.inspect(self.addresses, TOKEN)
            except Unreachable:
                time.sleep(0.02)
                continue
            if fits(last):
                return last
            time.sleep(0.02)
        raise AssertionError(f"no status fits; the last one: {last}; the logs:\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for reserved in self._sockets:
            reserved.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.close()


def led(status: client.StatusJson) -> bool:
    return status["quorum"] and not status["stale"]


def test_three_coordinators_elect_a_leader_and_end_on_sigterm(job: Job) -> None:
    job.start()
    status = job.status(lambda s: led(s) and all(row["pid"] for row in s["coordinators"]))
    assert {row["pid"] for row in status["coordinators"]} == {p.pid for p in job.processes.values()}
    assert sorted(row["role"] for row in status["coordinators"]) == ["follower", "follower", "leader"]
    for process in job.processes.values():
        resident = Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()[0]
        assert int(resident) < RESIDENT_LIMIT
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    job.signal(signal.SIGTERM, *job.processes)
    assert [process.wait(HANG_S) for process in job.processes.values()] == [0, 0, 0], job.logs()
    assert "Traceback" not in job.logs()
    assert all(oct(path.stat().st_mode & 0o777) == "0o700" for path in job.folder.glob("coordinator-*"))


def test_a_worker_follows_when_the_leading_process_is_killed(job: Job) -> None:
    async def scenario() -> None:
        async with LeaderStream(job.addresses, TOKEN, "w0.1") as stream, asyncio.timeout(HANG_S):
            stream.send(worker_status("w0.1", phase=Phase.READY))
            updates = stream.updates()
            while (update := await anext(updates)).revision < 2:  # view 1
                pass
            leader = next(row.id for row in job.file.coordinators if row.address == stream.leader)
            await asyncio.to_thread(job.kill, leader)
            term = update.term
            while (update := await anext(updates)).term == term:
                pass
            assert update.document is not None or update.progress is not None

    job.start()
    asyncio.run(scenario())
    status = job.status(led)
    assert status["leader_changes"] == 1
    assert status["view"]["number"] == 1
    assert [row["role"] for row in status["coordinators"]].count("unreachable") == 1


def test_all_coordinators_killed_at_once_go_on_from_disk(job: Job) -> None:
    job.start()
    job.status(led)
    client.command(job.addresses, TOKEN, "stop", {})
    before = job.status(led)
    job.kill("c0", "c1", "c2")
    with pytest.raises(Unreachable):
        client.inspect(job.addresses, TOKEN)
    job.start()
    after = job.status(led)
    assert after["stop"] == "stopped"
    assert after["revision"] > before["revision"]
    assert after["term"] > before["term"]


def test_a_minority_says_that_it_has_no_quorum_until_the_others_are_back(job: Job) -> None:
    job.start()
    leader = job.status(led)["leader"]
    followers = [name for name in job.processes if name != leader]
    job.signal(signal.SIGSTOP, *followers)
    status = job.status(lambda s: not s["quorum"])
    assert status["stale"]
    assert [row["role"] for row in status["coordinators"]].count("unreachable") == 2
    job.signal(signal.SIGCONT, *followers)
    job.status(led)


def test_a_stopped_leader_is_left_and_takes_its_place_again_as_a_follower(job: Job) -> None:
    async def scenario() -> str:
        async with LeaderStream(job.addresses, TOKEN, "w0.1") as stream, asyncio.timeout(HANG_S):
            stream.send(worker_status("w0.1", phase=Phase.READY))
            updates = stream.updates()
            first = await anext(updates)
            stopped = next(row.id for row in job.file.coordinators if row.address == stream.leader)
            job.signal(signal.SIGSTOP, stopped)
            while (await anext(updates)).term == first.term:
                pass
            job.signal(signal.SIGCONT, stopped)
            return stopped

    job.start()
    stopped = asyncio.run(scenario())
    follows = {"id": stopped, "role": "follower"}  # right after SIGCONT it may still say otherwise
    status = job.status(lambda s: led(s) and any(follows.items() <= row.items() for row in s["coordinators"]))
    assert status["views"] == 1  # it has accused nobody


def test_a_coordinator_ends_when_its_agent_is_gone(tmp_path: Path) -> None:
    """The agent here is a process that starts a coordinator and ends without a word."""
    job = Job(tmp_path, replicas=1)
    agent = (
        "import os, subprocess, sys\n"
        "from dataclasses import replace\n"
        "from orch_core.contracts import codec\n"
        "from orch_core.contracts.job import JobFile\n"
        "from pathlib import Path\n"
        f"path = Path({str(job.path)!r})\n"
        "file = codec.decode(JobFile, path.read_bytes())\n"
        "path.write_bytes(codec.encode(replace(file, agent_pid=os.getpid())))\n"
        f"command = [sys.executable, '-m', {MODULE!r}, '--job-file', str(path), '--id', 'c0']\n"
        "child = subprocess.Popen(command, stderr=open(path.parent / 'c0.log', 'wb'))\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
        "os._exit(0)\n"
    )
    try:
        with subprocess.Popen(
            [sys.executable, "-c", agent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            job.status(led)
            parent.stdin.write("\n")
            parent.stdin.flush()
            parent.wait(HANG_S)
            deadline = time.monotonic() + HANG_S
            while _lives(pid):
                assert time.monotonic() < deadline, job.logs()
                time.sleep(0.02)
        assert "event=orphaned" in job.logs()
    finally:
        job.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# ---- one sentence, and an exit code ----------------------------------------------------------------------------------


@pytest.fixture
def run(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    monkeypatch.setattr(main_module, "raise_priority", lambda *, inherit: "left alone")

    def run(*more: str, id: str = "c0") -> tuple[int, str]:
        code = main_module.main(["--job-file", str(job.path), "--id", id, *more])
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("orch coordinator: ")]
        assert len(said) == 1
        return code, said[0]

    return run


def test_a_missing_or_broken_job_file_is_a_sentence(job: Job, run: Callable[..., tuple[int, str]]) -> None:
    job.path.write_text('{"version": 2}')
    code, said = run()
    assert (code, "job.json cannot be read" in said) == (2, True)
    job.path.unlink()
    code, said = run()
    assert (code, "job.json cannot be read" in said) == (2, True)


def test_an_unknown_id_is_a_sentence(run: Callable[..., tuple[int, str]]) -> None:
    code, said = run(id="c9")
    assert (code, "it has c0, c1, c2" in said) == (2, True)


def test_other_addresses_than_loopback_are_refused(job: Job, run: Callable[..., tuple[int, str]]) -> None:
    rows = (replace(job.file.coordinators[0], address="0.0.0.0:0"), *job.file.coordinators[1:])
    job.write(replace(job.file, coordinators=rows))
    code, said = run()
    assert (code, "is not on loopback" in said) == (2, True)


def test_a_folder_that_cannot_be_made_is_a_sentence(job: Job, run: Callable[..., tuple[int, str]]) -> None:
    (job.folder / "coordinator-c0").write_text("a file is in the way")
    code, said = run()
    assert (code, "cannot make the folder" in said) == (2, True)


@pytest.mark.parametrize("which", ["address", "peer_address"])
def test_a_port_in_use_is_a_sentence(job: Job, run: Callable[..., tuple[int, str]], which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        row = job.file.coordinators[0]
        changed = replace(row, address=address) if which == "address" else replace(row, peer_address=address)
        job.write(replace(job.file, coordinators=(changed, *job.file.coordinators[1:])))
        code, said = run()
    assert (code, f"cannot listen on {address}" in said) == (2, True)


def test_an_unknown_consensus_is_a_sentence(job: Job, run: Callable[..., tuple[int, str]]) -> None:
    job.write(replace(job.file, spec=replace(job.file.spec, consensus="rafd")))
    code, said = run()
    assert (code, "'rafd'" in said) == (2, True)


class Broken(FakeConsensus):
    """Its disk is full, or it is not what it should be."""

    error: Exception

    async def watch(self) -> AsyncIterator[Committed]:
        raise self.error
        yield


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/jobs/log"), "No space left on device): /jobs/log"),
        (OrchError("the replica stopped"), "the replica stopped"),
    ],
)
def test_a_consensus_that_breaks_ends_the_process_with_a_sentence(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    replica = Broken(FakeCluster([CoordinatorId("c0")]), CoordinatorId("c0"))
    replica.error = error
    monkeypatch.setattr(plugins.Plugins, "make_consensus", lambda *_: replica)
    code, said = run()
    assert code == 1
    assert sentence in said
