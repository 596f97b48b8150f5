"""What a pass leaves in ``.grad``, and the watch over everything that must not happen to parameters.

Before each pass ``.grad`` is None, so what is there afterwards is that pass's gradient; what the script had left in it
comes back when the step ends, with the mean added. The watch turns misuse into sentences: a backward outside a pass, an
optimizer step inside one, parameters that changed in a pass.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orch_core.contracts.errors import LoopError
from orch_core.worker.prepared import Prepared

STEPS_BELONG = (
    "steps belong behind the inner loop, where .grad holds the mean of all shards: move optimizer.step() out of "
    "`for ... in batch:`"
)
TWO_NETWORKS = (
    " (two optimizers, as in a GAN: put both steps behind the inner loop, or train one network on every other batch, "
    "chosen by run.step % 2)"
)
CLOSURES = (
    " (LBFGS evaluates its closure several times per step, which no batch of shards can give: use an optimizer that "
    "needs one gradient)"
)

Complain = Callable[[LoopError], LoopError]


class Gradients:
    """One per job. `complain` remembers the error, so that a script that swallows it meets it again."""

    def __init__(self, prepared: Prepared, complain: Complain) -> None:
        self._prepared = prepared
        self._complain = complain
        self._parameters = prepared.parameters
        self._in_pass = False
        self._watching = False
        self._versions: list[int] = []
        self._hooked: list[bool] = [False] * len(self._parameters)
        self.left: list[Tensor | None] = [None] * len(self._parameters)  # in `.grad` at the step's start
        self._anything_left = False
        for optimizer in prepared.optimizers:
            optimizer.register_step_pre_hook(self._before_step)
            _guard_zero_grad(optimizer, self._before_zero_grad)
        for model in prepared.models:
            _guard_zero_grad(model, self._before_zero_grad)

    def begin_step(self) -> None:
        """The inner loop begins: take what the script has left in `.grad`."""
        self.left = [parameter.grad for parameter in self._parameters]
        self._anything_left = any(grad is not None for grad in self.left)
        self._versions = [parameter._version for parameter in self._parameters]
        self._watching = True
        if [p.requires_grad for p in self._parameters] != self._hooked:
            self._hook()

    def present(self) -> list[Tensor | None]:
        """What is in `.grad` between two steps."""
        return [parameter.grad for parameter in self._parameters]

    def begin_pass(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        self._in_pass = True

    def end_pass(self) -> list[Tensor | None]:
        """This pass's gradients. Raises LoopError if a parameter changed in it."""
        self._in_pass = False
        if [parameter._version for parameter in self._parameters] != self._versions:
            raise self._complain(self._changed())
        return [parameter.grad for parameter in self._parameters]

    def leave_pass(self) -> None:
        """The inner loop was left, one way or another."""
        self._in_pass = False

    def stop_watching(self) -> None:
        """Training is over: from here on the script may do as it likes."""
        self._in_pass = self._watching = False

    # the watch

    def _hook(self) -> None:
        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad and not self._hooked[index]:
                parameter.register_post_accumulate_grad_hook(self._after_backward)
        self._hooked = [parameter.requires_grad for parameter in self._parameters]

    def _after_backward(self, parameter: Tensor) -> None:
        if self._in_pass or not self._watching:
            return
        name = self._prepared.name_of.get(id(parameter), "?")
        lbfgs = any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in self._prepared.optimizers)
        raise self._complain(
            LoopError(
                f"a backward outside a pass: a gradient reached {name} outside of the inner loop, where it counts for "
                f"no shard; call backward() in `for ... in batch:` only, once per pass, and do not collect the passes "
                f"beforehand{CLOSURES if lbfgs else ''}"
            )
        )

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self._in_pass:
            return
        kind = type(optimizer).__name__
        name = next((self._prepared.name_of.get(id(p), "?") for g in optimizer.param_groups for p in g["params"]), "?")
        hint = CLOSURES if isinstance(optimizer, torch.optim.LBFGS) else ""
        hint = hint or (TWO_NETWORKS if len(self._prepared.optimizers) > 1 else "")
        raise self._complain(
            LoopError(f"{kind}.step() in a pass: {name} would have changed within the inner loop; {STEPS_BELONG}{hint}")
        )

    def _before_zero_grad(self) -> None:
        if not self._in_pass or not self._anything_left:
            return
        raise self._complain(
            LoopError(
                "zero_grad() in a pass, while .grad still holds what the step before left in it: that would count for "
                "this shard alone; move zero_grad() behind the inner loop, next to optimizer.step()"
            )
        )

    def _changed(self) -> LoopError:
        for name, parameter, version in zip(self._prepared.names, self._parameters, self._versions, strict=True):
            if parameter._version != version:
                hint = TWO_NETWORKS if len(self._prepared.optimizers) > 1 else ""
                return LoopError(f"parameter {name} changed in a pass: {STEPS_BELONG}{hint}")
        raise AssertionError("unreachable")


def _guard_zero_grad(obj: Any, before: Callable[[], None]) -> None:
    """There is no hook for it, and in a pass it would be silently wrong."""
    original = obj.zero_grad

    @functools.wraps(original)
    def zero_grad(*args: Any, **kwargs: Any) -> Any:
        before()
        return original(*args, **kwargs)

    obj.zero_grad = zero_grad
