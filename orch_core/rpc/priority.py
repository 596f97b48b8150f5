"""Who decides must be heard beside CPU-bound training: an ordinary asyncio process stalls for seconds there."""

import os

FIFO_PRIORITY = 10
NICE = -10


def step_back(nice: int) -> int | None:
    """Raise the nice value of the calling thread, if it may be lowered again; the value before."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, before - 1)
    except OSError:
        return None
    os.setpriority(os.PRIO_PROCESS, 0, before + nice)
    return before


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
