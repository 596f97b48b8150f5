"""Random schedules of joins, leaves, kills and freezes against real jobs: same bits, no step lost, nobody else hurt.

A schedule is made from its seed before anything runs, and told when it fails. Whom an act hits, and when, depends on
the machine as well: an act says *who* as a number that picks among those who may be hit at that moment. Several
schedules, one after the other, go into one job, and each ends with a number of workers that must come true.
"""

import itertools
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orch_core.contracts.ids import WorkerId, place_and_life
from orch_core.testing.live import Ended, LiveJob, Refused, members, run_plain

Row = dict[str, Any]  # of `orch status`
Status = dict[str, Any]
Candidates = Callable[[Status], list[Row]]

SMALL = Path(__file__).parents[1] / "scripts" / "small.py"
EPOCHS, CRAWL_AT = 120, 500  # 600 steps; the last ones wait for the schedules' end
ENV = {"EPOCHS": str(EPOCHS), "CRAWL_AT": str(CRAWL_AT), "PAUSE": "0.02"}

SCHEDULES = 40 if os.environ.get("ORCH_CHAOS") == "full" else 10
PER_JOB = 5
MOST_WORKERS = 6
LONG_FREEZE_S = 3.0  # longer than silence is tolerated
JOINER_S = 5.0  # how long a new life is waited for

pytestmark = [pytest.mark.live, pytest.mark.chaos]


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that is done to a job. `who`: picks one of those who may be hit. `number`: workers for ``scale``."""

    what: str
    after_s: float
    who: int = 0
    number: int = 0
    for_s: float = 0.0

    def __str__(self) -> str:
        detail = {"scale": f" {self.number}", "freeze": f" #{self.who} for {self.for_s:.2f} s", "kill the leader": ""}
        return f"after {self.after_s:.2f} s {self.what}{detail.get(self.what, f' #{self.who}')}"


CHOICES = {
    "kill": 4,
    "kill a joiner": 2,
    "kill the leader": 2,
    "freeze": 2,
    "terminate": 2,
    "drain": 2,
    "replace": 2,
    "scale": 4,
}


def schedule(seed: int) -> list[Act]:
    """Three to five acts, then a number of workers to end with."""
    rng = random.Random(f"schedule {seed}")
    acts = []
    for what in rng.choices(list(CHOICES), weights=list(CHOICES.values()), k=rng.randint(3, 5)):
        for_s = LONG_FREEZE_S if rng.random() < 0.25 else rng.uniform(0.05, 0.6)
        acts.append(Act(what, rng.random() ** 2, rng.randrange(60), rng.randint(1, MOST_WORKERS), for_s))
    return [*acts, Act("scale", rng.random() ** 2, number=rng.randint(1, MOST_WORKERS))]


class Chaos:
    """Carries schedules out on one job, and knows afterwards whose end it is to blame for."""

    def __init__(self, job: LiveJob) -> None:
        self.job = job
        self.told: list[str] = []
        self.hit: set[str] = set()  # killed or frozen: they may vanish, and count as holders of nothing
        self.sent: set[str] = set()  # asked to leave
        self.kills = 0
        self.leader_kills = 0

    def carry_out(self, act: Act) -> None:
        self.told.append(str(act))
        time.sleep(act.after_s)
        match act.what:
            case "kill":
                self._hit(act, members, self._kill)
            case "kill a joiner":
                self._hit(act, self._joiners, self._kill)
            case "freeze":
                self._hit(act, members, lambda row: self._freeze(row, act.for_s))
            case "kill the leader":
                self.job.kill(self.job.leader_pid())
                self.leader_kills += 1
            case "terminate":
                self._hit(act, members, lambda row: self.job.kill(row["pid"], signal.SIGTERM), self.sent)
            case "drain":
                self._hit(act, members, lambda row: self._order("drain", row["id"]), self.sent)
            case "replace":
                self._hit(act, members, lambda row: self._order("drain", row["id"], "--replace"), self.sent)
            case "scale":
                status = self.job.wait("workers", lambda s: s["workers"])
                self.sent |= set(_beyond(act.number, status["workers"]))
                self._order("scale", str(act.number))
            case _:
                raise AssertionError(act.what)

    def check(self, ended: Ended, expected: str) -> None:
        assert ended.code == 0, ended.output[-4000:]
        assert not ended.leftovers
        summary = ended.summary
        assert summary is not None
        assert summary["lost_steps"] == 0
        assert summary["weights_sha256"] == expected
        assert summary["restarts"] <= self.kills, "somebody else was restarted, too"
        views = summary["views"]
        gone = {w for before, after in itertools.pairwise(views) for w in {*before["members"]} - {*after["members"]}}
        assert gone <= self.hit | self.sent, f"nobody touched {gone - self.hit - self.sent}"

    def _hit(self, act: Act, candidates: Candidates, do: Callable[[Row], None], noted: set[str] | None = None) -> None:
        """Hit one of the candidates, but never the last member that holds the state and is not on its way out."""
        status = self.job.wait("a formed view", lambda s: s["view"] and s["formed"] == s["view"]["number"])
        unhurt = {row["id"] for row in members(status)} - self.hit - self.sent
        rows = [row for row in candidates(status) if unhurt - {row["id"]}]
        if rows:
            row = rows[act.who % len(rows)]
            (self.hit if noted is None else noted).add(row["id"])
            do(row)

    def _joiners(self, status: Status) -> list[Row]:
        """Who is on the way into the view, waited for a little; if nobody is, nobody is hit."""
        deadline = time.monotonic() + JOINER_S
        while time.monotonic() < deadline:
            now = self.job.status() or status
            found = [row for row in now["workers"] if row["state"] in ("starting", "ready") and row["pid"]]
            if found or len(members(now)) == now["wanted"]:
                return found
        return []

    def _kill(self, row: Row) -> None:
        self.kills += 1
        self.job.kill(row["pid"])

    def _freeze(self, row: Row, for_s: float) -> None:
        self.kills += 1  # its agent may have to
        self.job.kill(row["pid"], signal.SIGSTOP)
        time.sleep(for_s)
        self.job.kill(row["pid"], signal.SIGCONT)

    def _order(self, *argv: str) -> None:
        """An order may be refused (the last worker cannot be drained), but only with a reason."""
        try:
            self.job.orch(*argv)
        except Refused as refusal:
            if not re.search("cannot leave|--min-workers", str(refusal)):
                raise


def _beyond(number: int, rows: Iterable[Row]) -> list[str]:
    """Lives whose place is not among the lowest `number` ones, and those that may follow them unseen."""
    found = []
    for row in rows:
        place, life = place_and_life(WorkerId(row["id"]))
        if int(place[1:]) >= number:
            found += [f"{place}.{life}", f"{place}.{life + 1}"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    ended = run_plain(tmp_path_factory.mktemp("plain"), SMALL, env={"EPOCHS": str(EPOCHS)})
    assert ended.summary is not None
    return str(ended.summary["weights_sha256"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SCHEDULES, PER_JOB))
def test_random_schedules_cost_no_step_and_no_bit(first: int, tmp_path: Path, undisturbed: str) -> None:
    workers = random.Random(f"workers {first}").randint(1, MOST_WORKERS)
    gate = tmp_path / "gate"
    options = ["--max-restarts", "99", "--max-workers", str(MOST_WORKERS)]
    with LiveJob(tmp_path, SMALL, workers=workers, options=options, env={**ENV, "GATE": str(gate)}) as job:
        chaos = Chaos(job)
        try:
            job.wait_step(2)
            for seed in range(first, first + PER_JOB):
                acts = schedule(seed)
                chaos.told.append(f"-- schedule {seed}")
                for act in acts:
                    chaos.carry_out(act)
                job.wait_settled(acts[-1].number)
            gate.touch()
            chaos.check(job.finish(), undisturbed)
        except AssertionError as error:
            raise AssertionError(
                f"{workers} workers; done so far:\n" + "\n".join(chaos.told) + f"\n\n{error}"
            ) from error
