"""What recovers: the objects that a script has given to ``run.prepare`` and ``run.keep``, under the names they go by.

The very same objects are read and written; nothing is wrapped. A parameter's or buffer's name is the one it has in its
model; with several models the model's number comes before it (``1:weight``), in the order in which they were prepared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orch_core.contracts.errors import ConfigurationError, LoopError

PLAIN_KEPT = (dict, list, Tensor, torch.Generator)


@dataclass(frozen=True, slots=True)
class NamedBuffer:
    """A buffer is looked up each time: modules may assign a new tensor to the name."""

    name: str
    owner: nn.Module
    key: str

    @property
    def tensor(self) -> Tensor:
        found = self.owner._buffers.get(self.key)
        if found is None:
            raise LoopError(f"buffer {self.name} has gone since prepare(): buffers may change, but must stay tensors")
        return found

    def put(self, value: Tensor) -> None:
        """In place where that is possible."""
        present = self.owner._buffers.get(self.key)
        with torch.no_grad():
            if present is not None and present.shape == value.shape and present.dtype == value.dtype:
                present.copy_(value)
            else:
                device = value.device if present is None else present.device
                self.owner._buffers[self.key] = value.detach().clone().to(device)


@dataclass(frozen=True, slots=True)
class ExtraState:
    """What a module keeps beside parameters and buffers, if it says so by ``get_extra_state``."""

    name: str
    module: nn.Module

    def state_dict(self) -> Any:
        return self.module.get_extra_state()

    def load_state_dict(self, value: Any) -> None:
        self.module.set_extra_state(value)


class Prepared:
    """Grows by :meth:`add` and :meth:`keep` until :meth:`close` fixes the names."""

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.others: list[Any] = []  # schedulers, a GradScaler, whatever has state_dict and load_state_dict
        self.kept: dict[str, Any] = {}
        self.closed = False
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self.buffers: list[NamedBuffer] = []
        self.name_of: dict[int, str] = {}  # id of a parameter -> its name
        self._shape: list[tuple[nn.Module, list[int], list[int]]] = []

    # what the script gives

    def add(self, obj: Any) -> None:
        """Raises ConfigurationError for what cannot be picked up and put back."""
        if any(obj is known for known in self):
            return
        if isinstance(obj, nn.Module):
            self.models.append(obj)
        elif isinstance(obj, torch.optim.Optimizer):
            self.optimizers.append(obj)
        elif callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None)):
            self.others.append(obj)
        else:
            raise ConfigurationError(
                f"prepare() was given a {type(obj).__name__}: it takes models, optimizers, schedulers and other "
                f"objects with state_dict and load_state_dict; for your own values there is run.keep(name=...)"
            )

    def keep(self, name: str, obj: Any) -> None:
        known = self.kept.get(name)
        if known is not None and known is not obj:
            raise ConfigurationError(
                f"keep({name}=...) was called twice with different objects: give each its own name"
            )
        has_state = callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None))
        if not (isinstance(obj, PLAIN_KEPT) or has_state or hasattr(obj, "__dict__")):
            raise ConfigurationError(
                f"keep({name}=...) was given a {type(obj).__name__}, which cannot be changed in place: keep a dict or "
                f"a list that holds it"
            )
        self.kept[name] = obj

    def __iter__(self) -> Iterator[Any]:
        yield from self.models
        yield from self.optimizers
        yield from self.others

    # from the first batches() on

    def close(self) -> None:
        """Fix parameters and buffers, in an order that every worker of the job finds alike."""
        if not self.models:
            raise ConfigurationError("nothing to train: call run.prepare(model, optimizer) before run.epochs()")
        self.closed = True
        seen: set[int] = set()
        for index, model in enumerate(self.models):
            prefix = f"{index}:" if len(self.models) > 1 else ""
            for name, parameter in model.named_parameters():
                _check_parameter(f"{prefix}{name}", parameter)
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    self.names.append(f"{prefix}{name}")
                    self.parameters.append(parameter)
                    self.name_of[id(parameter)] = f"{prefix}{name}"
            for name, buffer in model.named_buffers():
                if id(buffer) not in seen:
                    seen.add(id(buffer))
                    owner, _, key = name.rpartition(".")
                    self.buffers.append(NamedBuffer(f"{prefix}{name}", model.get_submodule(owner), key))
            for path, module in model.named_modules():
                if type(module).get_extra_state is not nn.Module.get_extra_state:
                    self.others.append(ExtraState(f"extra state of {prefix}{path or type(module).__name__}", module))
                self._shape.append((module, *_ids(module)))
        self.check()

    def check(self) -> None:
        """Raise LoopError if a parameter came, went or was replaced since :meth:`close`."""
        for module, parameters, children in self._shape:
            if [parameters, children] != [*_ids(module)]:
                raise LoopError(self._what_changed(module))
        known = self.name_of
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) not in known:
                        raise LoopError(
                            f"{type(optimizer).__name__} has a parameter of shape {tuple(parameter.shape)} that "
                            f"belongs to no prepared model: give its model to run.prepare(), too, before run.epochs()"
                        )

    def _what_changed(self, module: nn.Module) -> str:
        present = {
            f"{f'{index}:' if len(self.models) > 1 else ''}{name}": parameter
            for index, model in enumerate(self.models)
            for name, parameter in model.named_parameters()
        }
        by_name = dict(zip(self.names, self.parameters, strict=True))
        advice = "build the whole model before run.prepare() and change values in place afterwards"
        for name, parameter in by_name.items():
            if name not in present and not any(parameter is other for other in present.values()):
                return f"parameter {name} has gone since prepare(): {advice}"
            if name in present and present[name] is not parameter:
                return f"parameter {name} was replaced by another tensor since prepare(): {advice}"
        for name in present:
            if name not in by_name:
                return f"parameter {name} came after prepare(): {advice}"
        return f"a {type(module).__name__} got or lost modules or parameters since prepare(): {advice}"

    def describe(self) -> tuple[str, ...]:
        """One line per tensor: equal on all workers, or the scripts build different models."""
        lines = [_line(name, parameter) for name, parameter in zip(self.names, self.parameters, strict=True)]
        lines += [_line(buffer.name, buffer.tensor) for buffer in self.buffers]
        lines += [f"optimizer {type(optimizer).__name__}" for optimizer in self.optimizers]
        lines += [f"object {type(other).__name__}" for other in self.others]
        return (*lines, *(f"kept {name}" for name in sorted(self.kept)))

    def buffer_tensors(self) -> list[Tensor]:
        return [buffer.tensor for buffer in self.buffers]


def state_dicts(models: Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the models' state dicts as ``weights_sha256`` sees them: sorted, without wrappers."""
    entries: list[tuple[str, int, Tensor]] = []
    for index, model in enumerate(models):
        state: Mapping[str, Any] = model.state_dict()
        entries += [(_bare(name), index, value) for name, value in state.items() if isinstance(value, Tensor)]
    for name, _, value in sorted(entries, key=lambda entry: entry[:2]):
        yield name, value


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _ids(module: nn.Module) -> tuple[list[int], list[int]]:
    return list(map(id, module._parameters.values())), list(map(id, module._modules.values()))


def _line(name: str, tensor: Tensor) -> str:
    return f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ConfigurationError(
            f"parameter {name} has no shape yet: run one forward through the lazy modules before run.prepare()"
        )
    if parameter.layout != torch.strided:
        raise ConfigurationError(f"parameter {name} is sparse, which orch cannot train yet: make it dense")
