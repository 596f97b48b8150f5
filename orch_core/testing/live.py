"""A real ``orch run`` under test: start it, watch it by ``status``, kill parts of it, and look at what it leaves.

Every process of the job carries a marker in its environment, so that leftovers are found in /proc whoever their
parent is by then.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orch_core.contracts.errors import OrchError
from orch_core.rpc import client

MARKER = "ORCH_TEST_MARKER"
HANG_S = 120.0
POLL_S = 0.02


class Hung(AssertionError):
    """Something did not happen in time. The text says what, and ends with the job's output."""


class Refused(AssertionError):
    """A command of orch that did not end with 0. The text holds what it said."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What an ``orch run`` left."""

    code: int
    output: str
    summary: dict[str, Any] | None
    wall_s: float
    leftovers: tuple[str, ...]


class LiveJob:
    """One job in a folder of its own. A context manager: whatever is left at its end is killed."""

    def __init__(
        self,
        folder: Path,
        script: Path | str,
        *args: str,
        workers: int = 3,
        shards: int | None = None,
        seed: int = 7,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        name: str = "live",
    ) -> None:
        self.folder, self.name = folder, name
        self.home = folder / "home"
        self.summary_path = folder / f"{name}.json"
        self.output_path = folder / f"{name}.out"
        self.marker = uuid.uuid4().hex
        self.env = {
            **os.environ,
            **(env or {}),
            MARKER: self.marker,
            "ORCH_HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
        }
        cut = [] if shards is None else ["--shards", str(shards)]
        given = ["--workers", str(workers), "--seed", str(seed), *cut, *options]
        self.command = [
            *(sys.executable, "-m", "orch_core.cli.main", "run", "--job", name, "--summary", str(self.summary_path)),
            *(*given, str(script), *args),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.began = 0.0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        with self.output_path.open("wb") as out:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.processes():
            _signal(pid, signal.SIGKILL)

    # looking

    def output(self) -> str:
        return self.output_path.read_text(errors="replace") if self.output_path.exists() else ""

    def job_file(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.home / self.name / "job.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    def status(self, timeout_s: float = 1.0) -> dict[str, Any] | None:
        """What ``orch status --json`` says; None while nobody answers."""
        job = self.job_file()
        if job is None:
            return None
        try:
            return client.inspect([c["address"] for c in job["coordinators"]], job["token"], timeout_s)
        except OrchError:
            return None

    def wait(self, what: str, found: Callable[[dict[str, Any]], Any], timeout_s: float = HANG_S) -> dict[str, Any]:
        """Poll the status until `found` says yes. Raises Hung when time is up or the job has ended before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = self.process is not None and self.process.poll() is not None
            status = None if ended else self.status()
            if status is not None and found(status):
                return status
            if ended:
                raise Hung(f"the job ended before {what}\n{self.output()[-4000:]}")
            time.sleep(POLL_S)
        raise Hung(f"{what}: not within {timeout_s:.0f} s\n{self.output()[-4000:]}")

    def wait_step(self, step: int, timeout_s: float = HANG_S) -> dict[str, Any]:
        return self.wait(f"step {step}", lambda s: s["step"] >= step, timeout_s)

    def wait_members(self, count: int, timeout_s: float = HANG_S) -> dict[str, Any]:
        """Until the present view has `count` members and all of them are alive."""
        return self.wait(f"{count} members", lambda s: len(members(s)) >= count, timeout_s)

    def wait_out(self, worker: str, timeout_s: float = HANG_S) -> dict[str, Any]:
        """Until the present view goes on without `worker`."""
        return self.wait(f"a view without {worker}", lambda s: worker not in {w["id"] for w in members(s)}, timeout_s)

    def wait_settled(self, count: int, timeout_s: float = HANG_S) -> set[str]:
        """Until `count` members train in a formed view and no process of another worker is left; who they are."""

        def is_settled(status: dict[str, Any]) -> bool:
            living = [w for w in status["workers"] if w["state"] != "gone"]
            return len(members(status)) == len(living) == count and status["formed"] == status["view"]["number"]

        status = self.wait(f"{count} workers", is_settled, timeout_s)
        staying = {w["pid"] for w in members(status)}
        self.wait("the others' end", lambda _: set(self.workers()) == staying, timeout_s)
        return {str(w["id"]) for w in members(status)}

    def wait_leader(self, other_than: int | None = None, timeout_s: float = HANG_S) -> int:
        """Until a coordinator leads, another one than the process `other_than`; its pid."""
        status = self.wait("a leader", lambda s: (leader(s) or {"pid": other_than})["pid"] != other_than, timeout_s)
        found = leader(status)
        assert found is not None
        return int(found["pid"])

    def processes(self) -> list[int]:
        """Every living process of this job, found by its marker."""
        needle = f"{MARKER}={self.marker}".encode()
        return [pid for pid in _pids() if pid != os.getpid() and needle in _environment(pid) and not _zombie(pid)]

    def workers(self) -> list[int]:
        """Every living worker's process, whether anybody knows of it or not."""
        return [pid for pid in self.processes() if "orch_core.worker.main" in _command(pid)]

    # acting

    def orch(self, *argv: str) -> str:
        """`orch VERB ... --job` of this job: what it prints. Raises Refused if it fails."""
        command = [sys.executable, "-m", "orch_core.cli.main", *argv, "--job", self.name]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise Refused(f"orch {' '.join(argv)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def kill(self, pid: int, sig: int = signal.SIGKILL) -> None:
        _signal(pid, sig)

    def kill_worker(self, worker: str | None = None, sig: int = signal.SIGKILL) -> str:
        """Signal one member, the last of the view unless named; its id."""
        status = self.wait_members(1)
        row = next(w for w in reversed(members(status)) if worker in (None, w["id"]))
        _signal(row["pid"], sig)
        return str(row["id"])

    def leader_pid(self) -> int:
        return self.wait_leader()

    def coordinator_pids(self) -> dict[str, int]:
        status = self.wait("all coordinators", lambda s: all(c["pid"] for c in s["coordinators"]))
        return {c["id"]: int(c["pid"]) for c in status["coordinators"]}

    def finish(self, timeout_s: float = HANG_S, grace_s: float = 5.0) -> Ended:
        """Wait for the end of `orch run`, then for its processes; Hung if it does not end."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Hung(f"the job did not end within {timeout_s:.0f} s\n{self.output()[-6000:]}") from None
        wall_s = time.monotonic() - self.began
        left = self.leftovers(grace_s)
        summary = json.loads(self.summary_path.read_text()) if self.summary_path.exists() else None
        return Ended(code, self.output(), summary, wall_s, left)

    def leftovers(self, grace_s: float) -> tuple[str, ...]:
        """Processes that are still there `grace_s` seconds from now; returns as soon as there is none."""
        deadline = time.monotonic() + grace_s
        while (pids := self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return tuple(f"{pid} {_command(pid)}" for pid in pids)


def members(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the workers that are in the present view."""
    present = {m["worker"] if isinstance(m, dict) else m for m in (status.get("view") or {}).get("members", ())}
    return [w for w in status["workers"] if w["id"] in present and w["state"] == "member" and w["pid"]]


def leader(status: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of the leading coordinator."""
    return next((c for c in status["coordinators"] if c["role"] == "leader" and c["pid"]), None)


def run_job(folder: Path, script: Path | str, *args: str, **options: Any) -> Ended:
    """Start a job and wait for its end, undisturbed."""
    with LiveJob(folder, script, *args, **options) as job:
        return job.finish()


def run_plain(
    folder: Path,
    script: Path | str,
    *args: str,
    seed: int = 7,
    shards: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """The same script under plain Python: a job of one."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = folder / "plain.json"
    full = {**os.environ, **(env or {}), "ORCH_SEED": str(seed), "ORCH_SUMMARY": str(summary), "OMP_NUM_THREADS": "1"}
    if shards is not None:
        full["ORCH_SHARDS"] = str(shards)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), *args],
        cwd=folder,
        env=full,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=HANG_S,
        check=False,
    )
    found = json.loads(summary.read_text()) if summary.exists() else None
    return Ended(done.returncode, done.stdout.decode(errors="replace"), found, time.monotonic() - began, ())


def _signal(pid: int, sig: int) -> None:
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "?"
