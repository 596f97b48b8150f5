"""Runs one agent with fake workers, fake coordinators and a fake leader; prints the outcome as its last line.

``host_program.py HOME JOB SCENARIO``: SCENARIO is JSON with

worker       Python text, what every life of every worker runs (PRELUDE says what is there)
coordinator  Python text, likewise; default: wait
script       Python text: a script for real workers, in place of `worker`
leader       "none": nobody ever answers; "trains": a view as soon as all workers run; "starts": never a view
workers, max_restarts   numbers
"""

import asyncio
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from orch_core.agent import folder as folders
from orch_core.agent.environment import worker_program
from orch_core.agent.host import Host
from orch_core.contracts import codec
from orch_core.contracts.document import (
    Cause,
    Document,
    Finished,
    LifeState,
    Place,
    Training,
    View,
    ViewMember,
)
from orch_core.contracts.ids import place_and_life
from orch_core.contracts.job import JobSpec, JobStatus
from orch_core.contracts.status import ProcessState
from orch_core.rpc.wire import Update

PRELUDE = """
import os, signal, subprocess, sys, time
folder = os.environ["ORCH_JOB_FOLDER"]
place, _, life = os.environ.get("ORCH_WORKER", "c0.0").partition(".")
"""
FINISHED = Finished(5, "digest", "weights", {"loss": 0.5}, Training(1, 60, 12))


class FakeLeader:
    """Believes its agent and decides the least that is needed."""

    def __init__(self, kind, spec, addresses):
        self.leader = None if kind == "none" else addresses[0]
        self.kind, self.spec = kind, spec
        self.document = Document(job=spec, started_at=time.time(), wanted=spec.workers)
        self.news = asyncio.Event()
        self.status = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    def send(self, status):
        self.status = status
        self.news.set()

    async def updates(self):
        while True:
            try:
                async with asyncio.timeout(0.05):
                    await self.news.wait()
            except TimeoutError:
                pass
            self.news.clear()
            if self.kind != "none" and self.status is not None and not self.document.status.final:
                self.decide()
                yield Update(codec.encode(self.document), None, 1, self.document.revision)

    def decide(self):
        document, reports = self.document, self.status.processes
        living = [r for r in reports if r.state is not ProcessState.EXITED]
        failures = [r.failure for r in reports if r.failure] + ([self.status.failure] if self.status.failure else [])
        changes = {"stop": self.status.stop or document.stop, "revision": document.revision + 1}
        changes["places"] = tuple(self.place(r) for r in sorted(reports, key=lambda r: r.worker))
        if self.kind == "trains" and not document.views and len(living) == self.spec.workers:
            members = tuple(ViewMember(r.worker, "") for r in living)
            changes["views"] = (View(1, members, Cause.START, "all are ready", 0, 0.1),)
        finish = os.path.exists(os.path.join(os.environ["SCENARIO_FOLDER"], "finish"))
        if document.views and (finish or changes["stop"]):
            changes["finished"] = FINISHED
        if failures:
            changes |= {"failure": min(failures, key=lambda f: f.at), "status": JobStatus.FAILED}
        elif document.finished and not living:
            changes["status"] = JobStatus(document.stop or "finished")
        self.document = dataclasses.replace(document, **changes)

    def place(self, report):
        state = LifeState.GONE if report.state is ProcessState.EXITED else LifeState.MEMBER
        return Place(place_and_life(report.worker)[0], report.worker, state, pid=report.pid)


class Printer:
    def output(self, worker, text):
        sys.stdout.write("".join(f"{worker} | {line}\n" for line in text.split("\n")[:-1]))
        sys.stdout.flush()

    def show(self, snapshot):
        pass

    def say(self, sentence):
        print("orch:", sentence, flush=True)


def main():
    home, name, scenario = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    spec = JobSpec(
        name=name,
        workers=scenario.get("workers", 2),
        max_restarts=scenario.get("max_restarts", 1),
        seed=7,
        script=str(Path(home) / "script.py"),
    )
    folder = folders.claim(Path(home), name)
    Path(spec.script).write_text(PRELUDE + scenario.get("script", ""))
    os.environ["SCENARIO_FOLDER"] = str(folder.path)
    job = folder.describe(spec, 1)
    worker, coordinator = scenario.get("worker", ""), scenario.get("coordinator", "time.sleep(600)")
    host = Host(
        folder,
        job,
        Printer(),
        worker=worker_program
        if "script" in scenario
        else lambda _: [sys.executable, "-I", "-S", "-c", PRELUDE + worker],
        coordinator=lambda job_file, which: [sys.executable, "-I", "-S", "-c", PRELUDE + coordinator],
        connect=lambda addresses, token, who: FakeLeader(scenario.get("leader", "trains"), spec, addresses),
    )
    print("STARTED", flush=True)
    outcome = asyncio.run(host.run())
    host.close(outcome.summary)
    told = {
        "exit_code": outcome.exit_code,
        "status": outcome.summary.status,
        "failure": outcome.failure and outcome.failure.message,
    }
    print("OUTCOME", json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
