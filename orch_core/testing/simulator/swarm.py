"""What one seed's job looks like, and which faults it meets how often.

Uniform faults find half of the planted bugs; a *swarm*, in which each seed leaves most kinds of faults out and turns
the others up, finds the rest.
"""

import random
from dataclasses import dataclass, field, fields

from orch_core.contracts.ids import PlaceId, Step

POINTS = (
    "ready",
    "status",
    "status sent",
    "hello",
    "hello sent",
    "opened",
    "installed",
    "fed",
    "state half sent",
    "state sent",
    "pass",
    "contributed",
    "barrier part sent",
    "applied",
    "fed beside",
    "applied beside",
    "outer body",
    "done",
    "rest",
    "exit",
    "before-commit",
    "committed",
    "before-end-commit",
    "end-committed",
)
FAULTS = (
    "kill",
    "kill at points",
    "freeze",
    "busy",
    "cut",
    "cut one way",
    "cut from leader",
    "reset",
    "flap",
    "kill leader",
    "freeze leader",
    "isolate leader",
    "late reaping",
    "freeze agent",
    "slow network",
    "slow user code",
    "drain",
    "kill all",
    "run.stop",
    "orch stop",
)
ORDERS = ("scale", "orch drain")  # what a person asks for, beside faults


@dataclass(slots=True)
class Swarm:
    """Times are in seconds, those of a job without faults as means."""

    rng: random.Random
    workers: int = 3
    min_workers: int = 1
    max_workers: int = 0  # 0: as many as `workers`
    shards: int = 4
    steps: int = 5
    coordinators: int = 3
    start_up_s: float = 0.3
    pass_s: float = 0.04
    outer_s: float = 0.02
    rest_s: float = 0.05
    commit_s: float = 0.002
    freeze_s: float = 0.0  # from CloseGroup to GroupClosed, at most
    slow_user: float = 0.0  # share of user code that takes much longer
    stop_at: Step | None = None
    stop_place: PlaceId | None = None  # who calls run.stop() there; None: everybody
    faults: dict[str, float] = field(default_factory=dict)  # kind -> per second
    points: dict[str, float] = field(default_factory=dict)  # effect boundary -> probability of a kill there
    kills: int = 0  # at most
    slow: dict[PlaceId, float] = field(default_factory=dict)  # how many times longer passes take there
    follow: bool = True  # joiners follow; otherwise they are taken in without a state
    until_s: float = 4.0  # when faults stop

    def time(self, mean: float) -> float:
        value = mean * (0.5 + self.rng.random())
        if self.slow_user and self.rng.random() < self.slow_user:
            value += self.rng.random() * 3.0
        return value

    def described(self) -> str:
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "rng")

    def stops(self, place: PlaceId, step: Step) -> bool:
        return step == self.stop_at and self.stop_place in (None, place)


def draw(rng: random.Random) -> Swarm:
    """One seed's job."""
    workers = rng.choice((1, 2, 2, 3, 3, 3, 4))
    swarm = Swarm(rng, workers=workers)
    swarm.shards = rng.randint(1, 6)
    swarm.steps = rng.randint(3, 8)
    swarm.coordinators = rng.choice((1, 3, 3, 3))
    swarm.min_workers = rng.choice((1, 1, 1, workers))
    swarm.pass_s = rng.choice((0.005, 0.03, 0.1))
    swarm.outer_s = rng.choice((0.001, 0.02, 0.2))
    swarm.start_up_s = rng.choice((0.05, 0.3, 0.8))
    swarm.rest_s = rng.choice((0.005, 0.1))
    swarm.commit_s = rng.choice((0.001, 0.004, 0.05))
    swarm.freeze_s = rng.choice((0.0, 0.0, 0.02))
    chosen = rng.sample(FAULTS, rng.choice((1, 2, 2, 3, 3, 4, 6)))
    for fault in chosen:
        swarm.faults[fault] = rng.choice((0.3, 1.0, 3.0))
    if "drain" in chosen:
        swarm.min_workers = 1  # or who is left waits for ever, as it should
    swarm.kills = rng.choice((1, 2, 3, 6))
    if "kill at points" in chosen:
        for name in rng.sample(POINTS, rng.choice((1, 1, 2, 4))):
            swarm.points[name] = rng.choice((0.02, 0.1, 0.5))
    if "slow user code" in chosen:
        swarm.slow_user = 0.02
    if "run.stop" in chosen:
        swarm.stop_at = Step(rng.randrange(swarm.steps))
        swarm.stop_place = rng.choice((None, PlaceId("w0"), PlaceId("w1")))
    swarm.follow = rng.random() < 0.75
    if swarm.follow and rng.random() < 0.5:  # long enough to become level, and to go on
        swarm.steps, swarm.pass_s, swarm.outer_s = rng.randint(10, 40), 0.02, rng.choice((0.001, 0.02, 0.1))
    if rng.random() < 0.3:
        swarm.slow[PlaceId(f"w{rng.randrange(workers)}")] = rng.choice((0.3, 3.0, 10.0))
    swarm.until_s = rng.uniform(1.0, 6.0)
    for order in ORDERS:
        if rng.random() < 0.25:
            swarm.faults[order] = rng.choice((0.3, 1.0, 3.0))
            swarm.max_workers, swarm.min_workers = workers + 1, 1
    return swarm
