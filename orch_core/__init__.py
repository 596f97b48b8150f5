"""orch: trains PyTorch models on machines that fail.

A training script needs two names from here, ``init`` and ``Run``. Both come from :mod:`orch_core.worker.run` when they
are first asked for, so that a process that does not train (the command line, a coordinator) never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orch_core.worker.run import Run, init

__all__ = ["Run", "__version__", "init"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("Run", "init"):
        return getattr(import_module("orch_core.worker.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "Run", "init"])
