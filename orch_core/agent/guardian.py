"""The last one to leave: ends whatever a job has started, however the agent went.

``python -I -S guardian.py FOLDER``, the standard library only, with a pipe from the agent as its standard input. The
pipe closes when the agent ends, even by SIGKILL; then everything goes that belongs to the job: the process groups that
the agent has named on the pipe (``+PGID`` and ``-PGID`` lines), and every process that carries the job's folder in its
environment, which also finds helpers that have made a session of their own. Workers and coordinators die with the
agent by themselves (see :mod:`orch_core.agent.launch`); this is for what *they* have started.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator

MARKER = "ORCH_JOB_FOLDER"
WORKER_MARKER = "ORCH_WORKER"
PATIENCE_S = 3.0
PAUSE_S = 0.05


def main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    groups = _listen()
    until = time.monotonic() + PATIENCE_S
    clean = 0
    while clean < 2 and time.monotonic() < until:
        for group in groups:
            _kill_group(group)
        clean = 0 if sweep(sys.argv[1]) else clean + 1
        time.sleep(PAUSE_S)


def sweep(folder: str, worker: str = "") -> int:
    """SIGKILL all processes of a job, or of one of its workers, but not this one. How many there were."""
    return sum(_kill(pid, folder, worker) for pid in list(members(folder, worker)))


def members(folder: str, worker: str = "") -> Iterator[int]:
    """Living processes whose environment says that they belong to the job, or to one worker of it."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _belongs(int(name), folder, worker):
            yield int(name)


def _listen() -> set[int]:
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        try:
            sign, group = line[:1], int(line[1:])
        except ValueError:
            continue  # the agent died in the middle of a line
        if sign == b"+":
            groups.add(group)
        else:
            groups.discard(group)
    return groups


def _belongs(pid: int, folder: str, worker: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read().split(b"\0")
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    wanted = {f"{MARKER}={folder}", *([f"{WORKER_MARKER}={worker}"] if worker else [])}
    return state not in b"ZX" and {os.fsencode(text) for text in wanted} <= set(environ)


def _kill(pid: int, folder: str, worker: str) -> bool:
    """By file descriptor, so that a number that was given to somebody else in the meantime is safe."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if _belongs(pid, folder, worker):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            return True
    except OSError:
        pass
    finally:
        os.close(handle)
    return False


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass


if __name__ == "__main__":
    main()
