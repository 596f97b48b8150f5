"""Who decides must be heard beside CPU-bound training: an ordinary asyncio process stalls for seconds there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FIFO_PRIORITY = 10
NICE = -10


@dataclass(frozen=True, slots=True)
class SteppedBack:
    """A thread that lets others go first for a while, and what it has started meanwhile."""

    nice: int
    before: int

    def undo(self) -> None:
        """For all threads of this process, and of those that it has started, which have inherited it."""
        for thread in _threads(os.getpid()):
            try:
                if os.getpriority(os.PRIO_PROCESS, thread) == self.nice:
                    os.setpriority(os.PRIO_PROCESS, thread, self.before)
            except OSError:
                pass  # it has ended


def step_back(by: int, thread: int = 0) -> SteppedBack | None:
    """Raise a thread's nice value, the calling one's if nothing else is said; None if that could not be undone."""
    before = os.getpriority(os.PRIO_PROCESS, thread)
    try:
        os.setpriority(os.PRIO_PROCESS, thread, before - 1)
    except OSError:
        return None
    os.setpriority(os.PRIO_PROCESS, thread, before + by)
    return SteppedBack(os.getpriority(os.PRIO_PROCESS, thread), before)


def _threads(pid: int) -> Iterator[int]:
    """Of a process and of its children, theirs included."""
    try:
        tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return  # it has ended
    for task in tasks:
        yield task
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _threads(int(child))


def raise_priority(*, inherit: bool) -> str:
    """Give the calling thread real-time priority, else a raised nice value, where that is permitted.

    `inherit`: threads and processes that it starts later get it, too. gRPC does its reading and writing in threads of
    its own, so a process that does nothing but talk wants that, before gRPC starts. Returns what has been achieved.
    """
    policy = os.SCHED_FIFO | (0 if inherit else os.SCHED_RESET_ON_FORK)
    try:
        os.sched_setscheduler(0, policy, os.sched_param(FIFO_PRIORITY))
    except OSError:
        pass
    else:
        return f"fifo:{FIFO_PRIORITY}"
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # 0: the calling thread, and those that it starts
    except OSError:
        return "normal"
    return f"nice:{NICE}"
