from collections.abc import Mapping, Sequence
from typing import Any

from orch_core.contracts.options import Option, OptionValue
from orch_core.hookspecs import hookimpl


@hookimpl
def orch_add_options() -> Sequence[Option]:
    return [Option("fraction", float, 0.1, "how much of each gradient travels")]


@hookimpl
def orch_make_sync(options: Mapping[str, OptionValue]) -> Any:
    from orch_sync_residual.strategy import TopK

    return TopK(float(options["fraction"]))
