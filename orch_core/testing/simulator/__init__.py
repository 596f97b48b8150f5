"""The simulator: virtual time, one seed decides everything, the pure protocol in the middle.

``simulate(seed)`` runs one random job; ``python -m orch_core.testing.simulator --seeds N`` many. What is real:
`Member`, `cluster.decide`, `children.plan`, `deal`, the judge's clock. What is modelled: processes, links, the script's
thread, and consensus by what it promises.
"""

from orch_core.testing.simulator.simulation import Outcome, Simulation, simulate
from orch_core.testing.simulator.swarm import Swarm
from orch_core.testing.simulator.world import Violation

__all__ = ["Outcome", "Simulation", "Swarm", "Violation", "simulate"]
