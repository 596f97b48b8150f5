"""SIGKILL, SIGSTOP and failpoints against real jobs: the step is kept, the bits are the same, nothing is left."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from orch_core.testing.live import Ended, LiveJob, leader, members, run_plain

SMALL = Path(__file__).parents[1] / "scripts" / "small.py"
CALM = {"EPOCHS": "3", "PAUSE": "0.02"}
LONG = {"EPOCHS": "80", "PAUSE": "0.01"}
MEDIUM = {"EPOCHS": "40", "PAUSE": "0.01"}

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash that every disturbed run must end with, by number of epochs."""
    hashes = {}
    for epochs in ("3", "40", "80"):
        ended = run_plain(tmp_path_factory.mktemp("plain"), SMALL, env={"EPOCHS": epochs})
        assert ended.code == 0, ended.output
        assert ended.summary is not None
        hashes[epochs] = ended.summary["weights_sha256"]
    return hashes


def check(ended: Ended, expected: str) -> dict[str, object]:
    assert ended.code == 0, ended.output[-4000:]
    assert ended.summary is not None
    assert ended.summary["lost_steps"] == 0
    assert ended.summary["weights_sha256"] == expected, ended.output[-4000:]
    assert not ended.leftovers
    return ended.summary


def test_killed_workers_cost_no_step_and_no_bit(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    rng = random.Random(1)
    with LiveJob(tmp_path, SMALL, workers=3, env=LONG, options=["--max-restarts", "99"]) as job:
        for _ in range(5):
            status = job.wait_members(3)
            rows = members(status)
            victim = rng.choice(rows)
            time.sleep(rng.random() * 0.3)
            job.kill(victim["pid"])
            survivors = {w["id"]: w["pid"] for w in rows if w is not victim}
            after = job.wait_out(victim["id"])
            now = {w["id"]: w["pid"] for w in after["workers"]}
            assert survivors.items() <= now.items(), "a survivor was restarted"
        summary = check(job.finish(), undisturbed["80"])
    assert summary["restarts"] >= 4
    assert summary["recoveries"]


ONE_WORKER = {
    "contributed": "4",
    "barrier-sent": "4",
    "applied": "4",
    "outer-body": "4",
    "before-first-view": "*",
}
TWO_WORKERS = {
    "in two shards": "contributed:4:kill@w2.1,contributed:4:kill@w1.1",
    "in the barrier and behind it": "barrier-sent:4:kill@w2.1,applied:4:kill@w1.1",
    "while greeting": "applied:4:kill@w2.1,hello-sent:2:kill@w1.1",
    "the donor in the middle of the state": "applied:4:kill@w2.1,state-half-sent:*:kill@w0.1",
    "the joiner in the middle of the state": "applied:4:kill@w2.1,state-half-received:*:kill@w2.2",
    "the joiner with the whole state": "applied:4:kill@w2.1,followed:*:kill@w2.2",
    "the rest of the view but one": "outer-body:4:kill@w2.1,outer-body:5:kill@w1.1",
}
COORDINATORS = ["before-end-commit", "after-end-commit", "persist", "persisted", "send"]


def check_fired(job: LiveJob, armed: str) -> None:
    """Each failpoint has left its last words: a test that kills nobody proves nothing."""
    folder = job.home / job.name
    for entry in armed.split(","):
        point, who = entry.split(":")[0], entry.split("@")[1]
        log = folder / f"coordinator-{who}" / "log" if who.startswith("c") else folder / "logs" / f"{who}.out"
        assert f"failpoint {point} fires" in log.read_text(errors="replace"), f"{entry} has not fired"


@pytest.mark.parametrize("point", ONE_WORKER)
def test_a_worker_killed_at(point: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    armed = f"{point}:{ONE_WORKER[point]}:kill@w1.1"
    with LiveJob(tmp_path, SMALL, workers=3, env={**CALM, "ORCH_FAILPOINTS": armed}) as job:
        check(job.finish(), undisturbed["3"])
        check_fired(job, armed)


@pytest.mark.skipif(os.environ.get("ORCH_CHAOS") != "full", reason="the whole matrix takes minutes: make chaos")
@pytest.mark.parametrize("partner", ["another worker", "the leader"])
@pytest.mark.parametrize("point", [*ONE_WORKER, "hello-sent", "state-half-sent", "state-half-received", "followed"])
def test_every_failpoint_with_a_second_death(
    point: str, partner: str, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """Points of joins and view changes need a first death that brings them about: then there are three."""
    needs_first = point not in ONE_WORKER
    step = ONE_WORKER.get(point, "2" if point == "hello-sent" else "*")  # a hello's step is its view
    victim = {"state-half-sent": "w0.1", "state-half-received": "w2.2", "followed": "w2.2"}.get(point, "w1.1")
    armed = ["applied:4:kill@w2.1"] if needs_first else []
    armed.append(f"{point}:{step}:kill@{victim}")
    if partner == "another worker":
        armed.append(
            f"outer-body:40:kill@{'w0.1' if victim == 'w1.1' else 'w1.1'}"
            if needs_first
            else f"{point}:{step}:kill@w2.1"
        )
    with LiveJob(tmp_path, SMALL, workers=3, env={**MEDIUM, "ORCH_FAILPOINTS": ",".join(armed)}) as job:
        if partner == "the leader":
            pid = job.leader_pid()
            job.wait("a death", lambda s: s["restarts"] >= 1 or any(w["state"] == "gone" for w in s["workers"]))
            job.kill(pid)
        check(job.finish(), undisturbed["40"])
        check_fired(job, ",".join(armed))


@pytest.mark.parametrize("case", TWO_WORKERS)
def test_two_deaths(case: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    env = {**MEDIUM, "ORCH_FAILPOINTS": TWO_WORKERS[case]}
    with LiveJob(tmp_path, SMALL, workers=3, env=env) as job:
        check(job.finish(), undisturbed["40"])
        check_fired(job, TWO_WORKERS[case])


@pytest.mark.parametrize("armed", ["state-half-sent:*:kill@w0.1", "state-half-received:*:kill@w2.2"])
def test_a_death_while_a_state_is_copied_in_a_view(armed: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """Too few workers to go on: the joiner has nobody to follow, and is taken in without a state."""
    armed = f"applied:4:kill@w2.1,{armed}"
    env = {**CALM, "ORCH_FAILPOINTS": armed}
    with LiveJob(tmp_path, SMALL, workers=3, options=["--min-workers", "3"], env=env) as job:
        check(job.finish(), undisturbed["3"])
        check_fired(job, armed)


@pytest.mark.parametrize("point", COORDINATORS)
def test_a_coordinator_killed_at(point: str, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    armed = f"{point}:*:kill@c0"
    with LiveJob(tmp_path, SMALL, workers=2, env={**MEDIUM, "ORCH_FAILPOINTS": armed}) as job:
        while "commit" in point and job.wait("a leader", lambda s: leader(s) is not None)["leader"] != "c0":
            job.kill(job.leader_pid())  # the end is committed by who leads then
        check(job.finish(), undisturbed["40"])
        check_fired(job, armed)


def test_a_worker_and_the_leader_die_together(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with LiveJob(tmp_path, SMALL, workers=3, env=MEDIUM) as job:
        job.wait_step(5)
        job.wait_members(3)
        pid = job.leader_pid()
        job.kill_worker()
        job.kill(pid)
        summary = check(job.finish(), undisturbed["40"])
    assert summary["leader_changes"]


def test_a_stopped_worker_is_replaced_and_does_no_harm_when_it_thaws(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    with LiveJob(tmp_path, SMALL, workers=3, env=LONG) as job:
        job.wait_step(5)
        rows = members(job.wait_members(3))
        victim = rows[1]
        job.kill(victim["pid"], signal.SIGSTOP)
        job.wait_out(victim["id"])
        job.kill(victim["pid"], signal.SIGCONT)
        check(job.finish(), undisturbed["80"])


def test_the_leader_dies_and_training_does_not_notice(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env=MEDIUM) as job:
        before = job.wait_step(5)
        job.kill(job.leader_pid())
        job.wait("a new leader", lambda s: leader(s) is not None and s["leader"] != before["leader"], 10)
        summary = check(job.finish(), undisturbed["40"])
    assert summary["leader_changes"] == 1
    assert summary["recoveries"] == []
    assert summary["restarts"] == 0


def test_without_a_majority_training_goes_on_and_views_wait(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env=LONG) as job:
        job.wait_step(5)
        leading = job.leader_pid()
        stopped = [leading, next(pid for pid in job.coordinator_pids().values() if pid != leading)]
        for pid in stopped:
            job.kill(pid, signal.SIGSTOP)
        job.wait("no quorum", lambda s: s["quorum"] is False, 15)
        for pid in stopped:
            job.kill(pid, signal.SIGCONT)
        job.wait("a quorum again", lambda s: s["quorum"] is True and leader(s) is not None, 15)
        victim = job.kill_worker()
        job.wait_out(victim, 30)
        check(job.finish(), undisturbed["80"])


def test_all_coordinators_die_at_once_and_come_back_from_disk(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env=LONG) as job:
        job.wait_step(5)
        old = job.coordinator_pids()
        for pid in old.values():
            job.kill(pid)
        job.wait(
            "a leader among new ones", lambda s: leader(s) is not None and leader(s)["pid"] not in old.values(), 30
        )
        job.kill_worker()
        check(job.finish(), undisturbed["80"])


@pytest.mark.parametrize("after_s", [0.2, 1.5, 4.0, 8.0])
def test_a_killed_orch_run_leaves_nothing(after_s: float, tmp_path: Path) -> None:
    with LiveJob(tmp_path, SMALL, workers=3, env={**LONG, "EPOCHS": "400", "LOADERS": "1"}) as job:
        time.sleep(after_s)  # any moment will do
        assert job.process is not None
        job.kill(job.process.pid)
        job.process.wait()
        assert job.leftovers(5.0) == ()


def test_every_worker_dies_at_once_and_the_summary_counts_the_lost_steps(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env=MEDIUM) as job:
        job.wait_step(5)
        for row in members(job.wait_members(2)):
            job.kill(row["pid"])
        ended = job.finish()
    assert ended.code == 0, ended.output[-4000:]
    assert ended.summary is not None
    assert ended.summary["lost_steps"] >= 5
    assert ended.summary["weights_sha256"] == undisturbed["40"]


def test_lost_steps_are_counted_although_the_leader_dies_with_the_workers(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    with LiveJob(tmp_path, SMALL, workers=2, env=MEDIUM) as job:
        job.wait_step(60)
        leading = job.leader_pid()
        for row in members(job.wait_members(2)):
            job.kill(row["pid"])
        job.kill(leading)
        ended = job.finish()
    assert ended.code == 0, ended.output[-4000:]
    assert ended.summary is not None
    assert ended.summary["lost_steps"] >= 20
    assert ended.summary["weights_sha256"] == undisturbed["40"]
