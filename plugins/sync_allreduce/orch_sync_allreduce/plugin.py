"""The entry point ``orch.sync:allreduce``. Light on purpose: torch is imported when a strategy is made."""

from typing import TYPE_CHECKING

from orch_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from orch_core.dataplane import GradientSync


@hookimpl
def orch_make_sync() -> "GradientSync":
    """The mean over all shards. It has no options."""
    from orch_sync_allreduce.strategy import AllReduce

    return AllReduce()
