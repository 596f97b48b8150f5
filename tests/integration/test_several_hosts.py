"""Coordinators and agents that are started by hand, as on several hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orch_core.testing.live import HANG_S, run_plain

SMALL = Path(__file__).parents[1] / "scripts" / "small.py"
ENV = {"EPOCHS": "40", "PAUSE": "0.01", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.live


def free_ports(count: int, host: str) -> list[int]:
    """Nobody holds them, and nobody is given them soon."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.create_server((host, 0), family=family) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Hosts:
    """Programs of one job, each with a folder of its own, as if it were a host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *argv: str, **env: str) -> None:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        with (self.folder / f"{name}.out").open("ab") as out:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "orch_core.cli.main", *argv],
                env={**os.environ, **ENV, "ORCH_HOME": str(home), **env},
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ask(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "ORCH_HOME": str(self.folder / name)}
        command = [sys.executable, "-m", "orch_core.cli.main", *argv]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    def wait_for(self, name: str, job: str, truth: Any) -> dict[str, Any]:

        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            answer = self.ask(name, "status", "--json", "--job", job)
            status = json.loads(answer.stdout) if answer.returncode == 0 and answer.stdout else None
            if status is not None and truth(status):
                return dict(status)
            time.sleep(0.1)
        raise AssertionError(f"it never came about; {name}: {self.output(name)[-3000:]}")

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def end(self, name: str) -> int:
        return self.running.pop(name).wait(HANG_S)


@contextmanager
def hosts(folder: Path) -> Iterator[Hosts]:
    made = Hosts(folder)
    try:
        yield made
    finally:
        for process in made.running.values():
            process.send_signal(signal.SIGTERM)
        for process in made.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def members(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [w for w in status["workers"] if w["state"] == "member"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_job_of_three_coordinators_and_two_agents_survives_a_worker_and_an_agent(tmp_path: Path, host: str) -> None:
    plain = run_plain(tmp_path / "plain", SMALL, env=ENV)
    assert plain.summary is not None
    written = f"[{host}]" if ":" in host else host
    ports = free_ports(6, host)
    replicas = [f"c{i}={written}:{ports[2 * i]},{ports[2 * i + 1]}" for i in range(3)]
    join = ",".join(f"{written}:{ports[2 * i]}" for i in range(3))
    with hosts(tmp_path) as job:
        options = ["--job", "far", "--token-file", "token", "--workers", "3", "--seed", "7"]
        for i in range(3):
            which = [word for replica in replicas for word in ("--replica", replica)]
            job.start(f"c{i}", "coordinator", "--id", f"c{i}", *which, *options, str(SMALL))
            if i == 0:
                deadline = time.monotonic() + HANG_S
                while not (tmp_path / "token").exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
        agent = ["agent", "--join", join, "--token-file", "token", "--host", host]
        job.start("a", *agent, "--name", "a", "--places", "w0,w1", "--summary", str(tmp_path / "a.json"))
        job.start("b", *agent, "--name", "b", "--places", "w2")
        status = job.wait_for("a", "far", lambda s: s["step"] > 10 and len(members(s)) == 3)
        assert {w["id"].split(".")[0]: w["host"] for w in members(status)}.keys() == {"w0", "w1", "w2"}
        os.kill(next(w["pid"] for w in members(status) if w["id"] == "w2.1"), signal.SIGKILL)
        job.wait_for("b", "far", lambda s: "w2.2" in [w["id"] for w in members(s)])
        job.running["b"].kill()
        job.end("b")
        job.start("b", *agent, "--name", "b", "--places", "w2")
        job.wait_for("a", "far", lambda s: any(w["id"] in ("w2.3", "w2.4") for w in members(s)))
        assert (job.end("a"), job.end("b")) == (0, 0), job.output("a")[-3000:] + job.output("b")[-3000:]
        assert [job.end(f"c{i}") for i in range(3)] == [0, 0, 0]

    summary = json.loads((tmp_path / "a.json").read_text())
    assert summary["weights_sha256"] == plain.summary["weights_sha256"]
    assert summary["lost_steps"] == 0


TWO = ["coordinator", "--job", "x", "--id", "c0", "--replica", "c0=127.0.0.1:1,2", "--replica", "c1=127.0.0.1:3,4"]
WRONG = {
    "an option of another verb": ([*TWO, "--coordinators", "3", str(SMALL)], "No such option"),
    "no token": (["agent", "--join", "127.0.0.1:1", "--places", "w0"], "token is missing"),
    "no place": (["agent", "--join", "127.0.0.1:1", "--places", "0", "--token-file", "t"], "--places 0 is wrong"),
    "no address": (["agent", "--join", "here", "--places", "w0", "--token-file", "t"], "is no address"),
    "off loopback": (["agent", "--join", "10.0.0.5:1", "--places", "w0", "--token-file", "t"], "--insecure"),
    "a listener off loopback": (
        ["agent", "--join", "127.0.0.1:1", "--places", "w0", "--host", "10.0.0.5", "--token-file", "t"],
        "--insecure",
    ),
    "a replica": (
        ["coordinator", "--job", "x", "--id", "c0", "--replica", "c0", "--token-file", "t", str(SMALL)],
        "should look like c0=",
    ),
    "another id": (
        ["coordinator", "--job", "x", "--id", "c9", "--replica", "c0=127.0.0.1:1,2", "--token-file", "t", str(SMALL)],
        "is not one of the replicas (c0)",
    ),
    "two replicas": (
        [*TWO, "--token-file", "t", str(SMALL)],
        "an odd number",
    ),
    "a replica off loopback": (
        ["coordinator", "--job", "x", "--id", "c0", "--replica", "c0=10.0.0.5:1,2", "--token-file", "t", str(SMALL)],
        "--insecure",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(case: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("secret\n")
    argv, words = WRONG[case]
    command = [sys.executable, "-m", "orch_core.cli.main", *argv]
    env = {**os.environ, "ORCH_HOME": str(tmp_path / "home")}
    env.pop("ORCH_TOKEN", None)
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
