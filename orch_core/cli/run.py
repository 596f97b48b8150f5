"""`orch run`: the agent of a job on this host, in the command itself.

Ends with 0 (finished, or stopped by `orch stop`), 1 (the script failed), 2 (something must be changed first) or 130
(interrupted). SIGTERM and SIGHUP mean what Ctrl-C means: finish the step, end cleanly, 130; a second one kills.
"""

import asyncio
import contextlib
import logging
import logging.handlers
import os
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orch_core import failpoints
from orch_core.cli.run_options import RunOptions, run_command
from orch_core.contracts.errors import ConfigurationError

if TYPE_CHECKING:
    from orch_core.agent.folder import JobFolder
    from orch_core.agent.host import Part
    from orch_core.contracts.job import JobFile

SWITCH_S = 0.001  # how long a thread that reads logs may keep the loop from the interpreter
NAME_TRIES = 5  # made-up names may meet
LOG_LIMIT = 10_000  # lines that wait for the disk
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def execute(options: RunOptions) -> int:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # gRPC reads it when it is imported, which is below
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""), "agent")  # what is misspelt is told here, once
    folder = _claim(options)
    try:
        job = folder.describe(options.spec(folder.path.name), options.coordinators)
        with log_to(folder.path / "agent.log"):
            return run_agent(folder, job, options.summary)
    finally:
        folder.close()


def run_agent(folder: "JobFolder", job: "JobFile", summary_path: Path | None, part: "Part | None" = None) -> int:
    """`part`: what this host has of a job on several hosts; None: all of it."""
    from orch_core.agent.host import Host
    from orch_core.agent.report import write_summary
    from orch_core.cli.display import Display, failure_text, summary_text

    sys.setswitchinterval(SWITCH_S)
    display = Display(folder.path)
    display.start()
    last_words = ""
    try:
        what = f"{job.spec.workers} x" if part is None else f"{', '.join(sorted(part.places))} of {job.spec.workers} x"
        display.say(f"job {job.job}: {what} {job.spec.script}, in {folder.path}")
        if folder.previous is not None:
            display.say(f"what an earlier job of this name has left is in {folder.previous} now")
        host = Host(folder, job, display, part=part)
        outcome = asyncio.run(host.run())
        for path in filter(None, (folder.path / "summary.json", summary_path)):
            try:
                write_summary(outcome.summary, path)
            except ConfigurationError as error:
                display.say(str(error))
        host.close(outcome.summary)
        last_words = summary_text(outcome.summary, folder.path, display.width)
        if outcome.failure is not None:
            last_words += failure_text(outcome.failure, folder.log_of(outcome.failure.worker))
    finally:
        display.close(last_words)
    return outcome.exit_code


def _claim(options: RunOptions) -> "JobFolder":
    from orch_core.agent import folder
    from orch_core.contracts.ids import JobName

    if options.job is not None:
        return folder.claim(folder.home(), JobName(options.job))
    for _ in range(NAME_TRIES):
        name = folder.made_up_name(options.script)
        if not (folder.home() / name).exists():
            break
    return folder.claim(folder.home(), name)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """The agent's own log, written in another thread: its loop never waits for a disk."""
    logging.raiseExceptions = False  # a full disk must not print a page for each line
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(LOG_LIMIT)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    listener = logging.handlers.QueueListener(waiting, handler)
    root = logging.getLogger()
    entry = logging.handlers.QueueHandler(waiting)
    root.addHandler(entry)
    root.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(entry)
        listener.stop()
        handler.close()


command = run_command(execute)
