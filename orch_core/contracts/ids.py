"""Identifiers and counters. Each is a type of its own, so that a step cannot pass for a view number.

A worker's id is place and life: ``w2.3`` is the third life of place ``w2``. An id that left a view never returns.
"""

import re
from typing import NewType

JobName = NewType("JobName", str)
AgentId = NewType("AgentId", str)
CoordinatorId = NewType("CoordinatorId", str)
PlaceId = NewType("PlaceId", str)
WorkerId = NewType("WorkerId", str)

Step = NewType("Step", int)  # one optimizer step on one global batch, from 0 over the whole job
Shard = NewType("Shard", int)  # 0 .. V-1
ViewNumber = NewType("ViewNumber", int)  # from 1, only grows
Term = NewType("Term", int)  # Raft's, or whatever fences the writer of another backend

BEFORE_FIRST_STEP = Step(-1)  # the last applied step of who holds State(0)

_WORKER = re.compile(r"(w\d+)\.(\d+)")


def worker_id(place: PlaceId, life: int) -> WorkerId:
    """``worker_id("w2", 3) == "w2.3"``."""
    return WorkerId(f"{place}.{life}")


def place_and_life(worker: WorkerId) -> tuple[PlaceId, int]:
    """The inverse of :func:`worker_id`. Raises ValueError for anything else."""
    found = _WORKER.fullmatch(worker)
    if found is None:
        raise ValueError(f"{worker!r} is no worker id; one looks like w2.3")
    return PlaceId(found[1]), int(found[2])


def worker_order(worker: WorkerId) -> tuple[int, int]:
    """Sort key: by place number, then life, so that w10.1 comes after w2.1."""
    place, life = place_and_life(worker)
    return int(place[1:]), life
