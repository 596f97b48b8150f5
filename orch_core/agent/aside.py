"""A thread for what the supervising loop must not wait for: disks, plugins, a look through the process table."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import ParamSpec

from orch_core.agent.process import lower_priority

WAITING_LIMIT = 10_000  # chores; more means that the thread hangs, and then they are lost

P = ParamSpec("P")
Chore = Callable[[], object]

logger = logging.getLogger(__name__)


class Aside:
    """Does chores one after the other, in order. A daemon: one that hangs cannot hold the process up."""

    def __init__(self, name: str) -> None:
        self._waiting: queue.Queue[Chore | None] = queue.Queue(WAITING_LIMIT)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def do(self, chore: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Soon. Never blocks."""
        try:
            self._waiting.put_nowait(lambda: chore(*args, **kwargs))
        except queue.Full:
            logger.warning("event=chore-lost thread=%s", self._thread.name)

    def close(self, timeout_s: float) -> None:
        """Wait for what has been asked for. Idempotent."""
        if self._thread.ident is None:
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        lower_priority()
        while (chore := self._waiting.get()) is not None:
            try:
                chore()
            except Exception:
                logger.exception("event=chore-failed thread=%s", self._thread.name)
