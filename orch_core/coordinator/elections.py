"""When this replica last knew of somebody else who leads: what an election cost, and a line for each change."""

import asyncio
import logging
import time

from orch_core import telemetry
from orch_core.contracts.consensus import Consensus

LOOK_S = 0.05  # and so the precision of an election's span

logger = logging.getLogger(__name__)


class Elections:
    """Looks at consensus now and then: backends know who leads, and have no hook to say that it has changed."""

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus
        self.began_ns = time.time_ns()  # Unix time of the election that goes on, or would if the leader were lost now

    async def watch(self) -> None:
        last: tuple[object, ...] = ()
        while True:
            status = self._consensus.status()
            if status.leader not in (None, status.id):
                self.began_ns = time.time_ns()
            telemetry.RAFT_TERM.set(status.term)
            present = (status.leader, status.term, status.quorum)
            if present != last:
                logger.info(
                    "event=consensus role=%s leader=%s term=%d quorum=%s",
                    status.role,
                    status.leader or "nobody",
                    status.term,
                    str(status.quorum).lower(),
                )
            last = present
            await asyncio.sleep(LOOK_S)
