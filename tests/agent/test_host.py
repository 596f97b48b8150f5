"""The agent as a whole, with programs of some lines in place of workers and coordinators."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("host_program.py")
HANG_S = 60.0


class Run:
    """One agent in a process of its own, and everything that it has started."""

    def __init__(self, home, **scenario):
        self.home = home
        self.folder = home / "job"
        self.output = home / "output"
        self.token = f"ORCH_TEST={uuid.uuid4().hex}"
        name, value = self.token.split("=")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(home), "job", json.dumps(scenario)],
                env={**os.environ, name: value},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self):
        """(the outcome, or None; all output)"""
        self.process.wait(HANG_S)
        text = self.output.read_text("utf-8", "replace")
        told = [line for line in text.splitlines() if line.startswith("OUTCOME ")]
        return (json.loads(told[-1][8:]) if told else None), text

    def living(self):
        """Processes with this run's mark in their environment: pid -> command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX":
                    continue
                if self.token.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):
                continue
        return found

    def wait_until(self, condition, what):
        until = time.monotonic() + HANG_S
        while not condition():
            assert time.monotonic() < until, what
            time.sleep(0.01)

    def wait_for_files(self, *names):
        self.wait_until(lambda: all((self.folder / n).exists() for n in names), f"{names} never came")

    def nothing_left(self, within_s):
        until = time.monotonic() + within_s
        while left := self.living():
            assert time.monotonic() < until, left
            time.sleep(0.05)


@pytest.fixture
def run(tmp_path):
    runs = []

    def start(**scenario):
        runs.append(Run(tmp_path, **scenario))
        return runs[-1]

    yield start
    for one in runs:
        for pid in one.living():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        one.process.kill()
        one.process.wait()


FINISHES = """
open(f"{folder}/up-{place}", "w").close()
while not os.path.exists(f"{folder}/finish"): time.sleep(0.01)
time.sleep(0.2)
print("through", place)
"""
WAITS = """
open(f"{folder}/up-{place}.{life}", "w").close()
time.sleep(600)
"""


def test_a_job_that_trains_ends_with_zero_and_leaves_nothing(run):
    job = run(worker=FINISHES)
    job.wait_for_files("up-w0", "up-w1")
    (job.folder / "finish").touch()
    outcome, text = job.end()
    assert outcome == {"exit_code": 0, "status": "finished", "failure": None}, text
    assert "w0.1 | through w0" in text
    assert (job.folder / "logs" / "w1.1.out").read_text() == "through w1\n"
    assert not job.living()


def test_a_failure_record_ends_the_job_and_nobody_is_restarted(run):
    job = run(
        worker="""
open(f"{folder}/starts", "a").write("x")
if place == "w1":
    import json
    while not os.path.exists(f"{folder}/up-w0"): time.sleep(0.01)
    record = {"worker": "w1.1", "kind": "script", "message": "it broke", "at": time.time(), "exit_code": 1}
    open(f"{folder}/failures/w1.1.json", "w").write(json.dumps(record))
    sys.exit(1)
open(f"{folder}/up-w0", "w").close()
time.sleep(600)
"""
    )
    outcome, text = job.end()
    assert outcome == {"exit_code": 1, "status": "failed", "failure": "it broke"}, text
    assert (job.folder / "starts").read_text() == "xx"
    assert not job.living()


def test_used_up_restarts_end_the_job_with_the_worker_and_its_exit_code(run):
    job = run(worker='open(f"{folder}/starts-{place}", "a").write("x")\nos._exit(17)', max_restarts=1)
    outcome, text = job.end()
    assert outcome["exit_code"] == 1, text
    assert "ended with exit code 17" in outcome["failure"]
    assert "w0.2" in outcome["failure"] or "w1.2" in outcome["failure"]
    assert max(len(path.read_text()) for path in job.folder.glob("starts-*")) == 2


def test_a_used_up_job_ends_without_any_leader(run):
    job = run(worker="os._exit(17)", max_restarts=0, leader="none")
    outcome, text = job.end()
    assert outcome["exit_code"] == 1, text
    assert "exit code 17" in outcome["failure"]


def test_a_killed_worker_is_replaced_by_the_next_life(run):
    job = run(worker=WAITS, leader="starts")
    job.wait_for_files("up-w0.1", "up-w1.1")
    victim = next(pid for pid in job.living() if worker_of(pid) == "w0.1")
    os.kill(victim, signal.SIGKILL)
    job.wait_for_files("up-w0.2")
    job.process.send_signal(signal.SIGINT)
    assert job.end()[0]["exit_code"] == 130


@pytest.mark.parametrize("group", [False, True])
def test_ctrl_c_ends_with_130_and_leaves_nothing(run, group):
    job = run(worker=FINISHES.replace("finish", "never").replace("time.sleep(0.2)", ""), leader="starts")
    job.wait_for_files("up-w0", "up-w1")
    (os.killpg if group else os.kill)(job.process.pid, signal.SIGINT)
    began = time.monotonic()
    outcome, text = job.end()
    assert outcome == {"exit_code": 130, "status": "interrupted", "failure": None}, text
    assert "Traceback" not in text
    assert time.monotonic() - began < 15
    assert not job.living()


def test_a_second_ctrl_c_kills_at_once(run):
    job = run(worker="signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS)
    job.wait_for_files("up-w0.1", "up-w1.1")
    job.process.send_signal(signal.SIGINT)
    time.sleep(0.7)  # one Ctrl-C may arrive twice within half a second
    job.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    outcome, text = job.end()
    assert outcome["exit_code"] == 130, text
    assert time.monotonic() - began < 3
    assert not job.living()


def test_ctrl_c_does_not_wait_for_a_leader_that_is_not_there(run):
    job = run(worker=WAITS, leader="none")
    job.wait_for_files("up-w0.1", "up-w1.1")
    job.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert job.end()[0]["exit_code"] == 130
    assert time.monotonic() - began < 8


HELPERS = """
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.3, None])
def test_kill_9_of_the_agent_leaves_nothing_at_any_moment(run, delay_s):
    job = run(worker=HELPERS + WAITS, coordinator=HELPERS + "time.sleep(600)")
    job.wait_until(lambda: "STARTED" in job.output.read_text(), "it never started")
    if delay_s is None:
        job.wait_for_files("up-w0.1", "up-w1.1")
        job.wait_until(lambda: len(job.living()) >= 10, "some never came")
    else:
        time.sleep(delay_s)
    job.process.kill()
    job.process.wait()
    job.nothing_left(within_s=5)


def test_helpers_of_a_killed_worker_go_with_it(run):
    job = run(worker=HELPERS + WAITS, leader="starts")
    job.wait_for_files("up-w0.1", "up-w1.1")
    mine = {pid for pid in job.living() if worker_of(pid) == "w0.1"}
    assert len(mine) == 3
    os.kill(min(mine), signal.SIGKILL)
    job.wait_until(lambda: not mine & set(job.living()), "helpers stayed")
    job.process.send_signal(signal.SIGINT)
    assert job.end()[0]["exit_code"] == 130
    assert not job.living()


def test_a_killed_guardian_is_no_harm(run):
    job = run(worker=HELPERS + WAITS, leader="starts")
    job.wait_for_files("up-w0.1", "up-w1.1")
    os.kill(next(pid for pid, command in job.living().items() if "guardian.py" in command), signal.SIGKILL)
    os.kill(next(pid for pid in job.living() if worker_of(pid) == "w0.1"), signal.SIGKILL)
    job.wait_for_files("up-w0.2")
    job.process.kill()
    job.nothing_left(within_s=5)


def test_a_coordinator_that_dies_is_started_again(run):
    job = run(
        worker=WAITS, coordinator='open(f"{folder}/born-{os.getpid()}", "w").close()\ntime.sleep(600)', leader="starts"
    )
    job.wait_until(lambda: len(list(job.folder.glob("born-*"))) == 1, "no coordinator")
    os.kill(int(next(job.folder.glob("born-*")).name[5:]), signal.SIGKILL)
    job.wait_until(lambda: len(list(job.folder.glob("born-*"))) == 2, "it was not started again")
    job.process.send_signal(signal.SIGTERM)
    assert job.end()[0]["exit_code"] == 130


def test_coordinators_that_cannot_live_end_the_job_with_their_last_words(run):
    job = run(worker=WAITS, coordinator="sys.exit('orch coordinator: no space for a vote')", leader="none")
    outcome, text = job.end()
    assert outcome["exit_code"] == 1, text
    assert "no space for a vote" in outcome["failure"]
    assert not job.living()


def test_children_have_the_jobs_environment_and_not_torchruns(run, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    job = run(
        worker="""
import json
open(f"{folder}/env-{place}.new", "w").write(json.dumps(dict(os.environ)))
os.rename(f"{folder}/env-{place}.new", f"{folder}/env-{place}")
assert os.sched_getscheduler(0) == os.SCHED_OTHER, "a worker must not run in real time"
assert os.getsid(0) == os.getpid()
assert sys.stdin.read() == ""
time.sleep(600)
""",
        leader="starts",
    )
    job.wait_for_files("env-w0", "env-w1")
    env = json.loads((job.folder / "env-w0").read_text())
    assert env["ORCH_WORKER"] == "w0.1"
    assert env["ORCH_JOB_FOLDER"] == str(job.folder)
    assert env["ORCH_HOME"] == str(job.home)
    assert env["PYTHONHASHSEED"] == "7"
    assert env["OMP_NUM_THREADS"] == "5"
    assert env["MKL_NUM_THREADS"] == "1"
    assert "RANK" not in env
    job.process.send_signal(signal.SIGINT)
    outcome, text = job.end()
    assert outcome["exit_code"] == 130
    assert "Traceback" not in text


def test_a_flood_reaches_the_log_whole_and_the_job_ends(run):
    job = run(
        worker="""
os.write(1, b"a line of forty characters, more or less\\n" * 50000 + b"x" * 1000000 + b"\\xff\\xfe\\n")
print("AFTER THE FLOOD", flush=True)
"""
        + FINISHES,
        workers=1,
    )
    job.wait_for_files("up-w0")
    (job.folder / "finish").touch()
    outcome, text = job.end()
    assert outcome["exit_code"] == 0
    assert text.count("a line of forty") == 50000
    assert "AFTER THE FLOOD" in text
    assert (job.folder / "logs" / "w0.1.out").stat().st_size == 50000 * 41 + 1000003 + 16 + 11


def worker_of(pid):
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((e[12:].decode() for e in environ if e.startswith(b"ORCH_WORKER=")), "")


def test_training_goes_on_when_the_coordinators_cannot_live_any_more(run):
    job = run(
        worker=FINISHES,
        coordinator="""
while not os.path.exists(f"{folder}/full"): time.sleep(0.01)
sys.exit("no space for a vote")
""",
    )
    job.wait_for_files("up-w0", "up-w1")
    (job.folder / "full").touch()
    job.wait_until(lambda: "training goes on" in job.output.read_text(), "nobody was told")
    (job.folder / "finish").touch()
    outcome, text = job.end()
    assert outcome == {"exit_code": 0, "status": "finished", "failure": None}, text
    assert "no space for a vote" in text


def nursery_of(job):
    return next((pid for pid, command in job.living().items() if "orch_core.worker.nursery" in command), None)


def test_workers_that_were_forked_outlive_the_nursery_and_are_replaced_like_any(run):
    job = run(script=WAITS, leader="starts")
    job.wait_for_files("up-w0.1", "up-w1.1")
    forked = {worker_of(pid): pid for pid in job.living() if worker_of(pid).startswith("w")}
    first = nursery_of(job)
    os.kill(first, signal.SIGKILL)
    os.kill(forked["w0.1"], signal.SIGKILL)
    job.wait_for_files("up-w0.2")
    job.wait_until(lambda: nursery_of(job) not in (None, first), "no other nursery came")
    assert forked["w1.1"] in job.living()
    assert not (job.folder / "up-w1.2").exists()
    job.process.send_signal(signal.SIGINT)
    outcome, text = job.end()
    assert outcome["exit_code"] == 130, text
    assert text.count("event=cold-start") <= 1
    assert not job.living()


@pytest.mark.parametrize("delay_s", [0.2, 1.0, 2.0, 3.0, None])
def test_kill_9_of_the_agent_leaves_no_nursery_and_nobody_born_there(run, delay_s):
    job = run(script=HELPERS + WAITS, leader="starts", workers=3)
    if delay_s is None:
        job.wait_for_files("up-w0.1", "up-w1.1", "up-w2.1")
        job.wait_until(lambda: len(job.living()) >= 12, "some never came")
    else:
        time.sleep(delay_s)
    job.process.kill()
    job.process.wait()
    job.nothing_left(within_s=5)


def test_ctrl_c_while_the_nursery_imports_ends_at_once(run):
    job = run(script=WAITS, leader="starts")
    job.wait_until(lambda: nursery_of(job), "no nursery")
    job.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert job.end()[0]["exit_code"] == 130
    assert time.monotonic() - began < 5
    assert not job.living()
