"""State(s): what the prepared objects hold when ``batches()`` yields step s. Captured, sent, put back, compared.

A capture refers to the tensors themselves: parameters and optimizer state do not change until the inner loop ends.
What does change in passes (buffers, ``.grad``) is handed in as it was at the step's start. A state is put back into the
very same objects, in place, so tied weights stay tied and schedulers keep the optimizers they know.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.dataplane.group import Blob
from orch_core.dataplane.tcp import bytes_of
from orch_core.worker.plain import Frozen, Packer, unpack
from orch_core.worker.prepared import ExtraState, Prepared, state_dicts

VERSION = 1


@dataclass(frozen=True, slots=True)
class Captured:
    """A state as JSON and tensors. `names` tells where each tensor belongs, for people."""

    header: dict[str, Any]
    tensors: list[Tensor]
    names: list[str]

    def blob(self) -> Blob:
        return Blob(self.header, self.tensors)

    def digests(self) -> list[int]:
        """A crc32 per tensor, and one for everything that is no tensor: :meth:`entries` has their names."""
        values = zlib.crc32(json.dumps(self.header, sort_keys=True).encode())
        return [*(zlib.crc32(_raw(tensor)) for tensor in self.tensors), values]

    def entries(self) -> list[str]:
        return [*self.names, "a value that is no tensor (a learning rate, a counter, what keep() holds)"]

    def sha256(self) -> str:
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        for tensor in self.tensors:
            digest.update(_raw(tensor))
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Start:
    """What may change between the yield of ``batches()`` and the inner loop's end, as it was at the yield."""

    buffers: Sequence[Tensor]  # copies: passes change them
    grads: Sequence[Tensor | None]
    requires_grad: Sequence[bool]
    options: Sequence[Sequence[Mapping[str, Any]]]  # per optimizer and group
    others: Frozen  # every other prepared object, and what keep() holds

    @classmethod
    def of(cls, prepared: Prepared) -> "Start":
        return cls(
            [buffer.detach().clone() for buffer in prepared.buffer_tensors()],
            [parameter.grad for parameter in prepared.parameters],
            [parameter.requires_grad for parameter in prepared.parameters],
            [
                [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
                for optimizer in prepared.optimizers
            ],
            Frozen.of(
                [
                    *((_name(other, i), other.state_dict()) for i, other in enumerate(prepared.others)),
                    *((f"keep({name})", _value(obj)) for name, obj in sorted(prepared.kept.items())),
                ]
            ),
        )


def capture(prepared: Prepared, start: Start) -> Captured:
    """`start`: of this step. Raises ConfigurationError for what cannot travel."""
    packer = Packer(lambda tensor: prepared.name_of.get(id(tensor)))
    for name, parameter in zip(prepared.names, prepared.parameters, strict=True):
        packer.add(parameter, name)
    for buffer, value in zip(prepared.buffers, start.buffers, strict=True):
        packer.add(value, buffer.name)
    left = [None if g is None else packer.add(g, f"{n}.grad") for n, g in zip(prepared.names, start.grads, strict=True)]
    header = {
        "version": VERSION,
        "grads": left,
        "requires_grad": list(start.requires_grad),
        "optimizers": [
            _capture_optimizer(prepared, optimizer, options, packer)
            for optimizer, options in zip(prepared.optimizers, start.options, strict=True)
        ],
        "others": start.others.values,
        "others_from": len(packer.tensors),
    }
    start.others.check()
    return Captured(header, [*packer.tensors, *start.others.tensors], [*packer.names, *start.others.names])


def size(prepared: Prepared) -> int:
    """About how many bytes of tensors a capture has, without making one."""
    held = [t for o in prepared.optimizers for values in o.state.values() for t in _tensors(values)]
    tensors = [*prepared.parameters, *prepared.buffer_tensors(), *held]
    return sum(tensor.nbytes for tensor in tensors)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def install(prepared: Prepared, blob: Blob) -> None:
    """Put a captured state into the prepared objects. Raises MalformedMessage, ConfigurationError for other objects."""
    header, tensors = blob.header, list(blob.tensors)
    count, first = len(prepared.parameters), len(prepared.parameters) + len(prepared.buffers)
    try:
        if header["version"] != VERSION:
            raise MalformedMessage(f"a state has version {header['version']}; this program speaks version {VERSION}")
        _check_shapes(prepared, tensors)
        with torch.no_grad():
            for parameter, value in zip(prepared.parameters, tensors[:count], strict=True):
                parameter.copy_(value)
        for buffer, value in zip(prepared.buffers, tensors[count:first], strict=True):
            buffer.put(value)
        for parameter, requires, left in zip(
            prepared.parameters, header["requires_grad"], header["grads"], strict=True
        ):
            if parameter.requires_grad != requires:
                parameter.requires_grad_(requires)
            parameter.grad = None if left is None else torch.empty_like(parameter).copy_(tensors[left]).detach()
        for optimizer, raw in zip(prepared.optimizers, header["optimizers"], strict=True):
            _install_optimizer(prepared, optimizer, raw, tensors)
        own = {_name(other, i): other for i, other in enumerate(prepared.others)}
        kept = {f"keep({name})": obj for name, obj in prepared.kept.items()}
        if sorted(header["others"]) != sorted([*own, *kept]):
            raise ConfigurationError(
                f"this worker has prepared and keeps {sorted([*own, *kept])}, the others {sorted(header['others'])}: "
                f"call run.prepare() and run.keep() alike on every worker, before run.epochs()"
            )
        arrived = tensors[header["others_from"] :]
        for name, raw in header["others"].items():
            if name in own:
                _load(own[name], unpack(raw, arrived))
            else:
                _put_back(kept[name], unpack(raw, arrived))
    except (KeyError, IndexError, TypeError) as error:
        raise MalformedMessage(f"a state cannot be read: {error!r}") from error
    except ValueError as error:
        raise ConfigurationError(
            f"the state of the other workers does not fit this worker's objects ({error}): prepare the same ones "
            f"everywhere"
        ) from error


def weights_sha256(models: Sequence[nn.Module]) -> str:
    """Names, dtypes, shapes and raw bytes of the models' state dicts, sorted by name."""
    digest = hashlib.sha256()
    for name, value in state_dicts(models):
        digest.update(f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}\n".encode())
        digest.update(_raw(value))
    return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    return bytes_of(plain.cpu().contiguous())


def _name(other: Any, index: int) -> str:
    return other.name if isinstance(other, ExtraState) else f"{type(other).__name__} {index}"


def _check_shapes(prepared: Prepared, tensors: Sequence[Tensor]) -> None:
    named = list(zip(prepared.names, prepared.parameters, strict=True))
    for (name, parameter), value in zip(named, tensors, strict=False):
        if parameter.shape != value.shape or parameter.dtype != value.dtype:
            raise ConfigurationError(
                f"parameter {name} is {parameter.dtype} {tuple(parameter.shape)} here and {value.dtype} "
                f"{tuple(value.shape)} on the other workers: build the same model everywhere"
            )


# ---- optimizers


def _capture_optimizer(
    prepared: Prepared, optimizer: torch.optim.Optimizer, options: Sequence[Mapping[str, Any]], packer: Packer
) -> dict[str, Any]:
    kind = type(optimizer).__name__
    groups = []
    for index, (group, values) in enumerate(zip(optimizer.param_groups, options, strict=False)):
        members = [prepared.name_of[id(parameter)] for parameter in group["params"]]
        groups.append([members, packer.pack(values, f"{kind} group {index}")])
    if type(optimizer).state_dict is not torch.optim.Optimizer.state_dict:  # it knows more than a plain one
        state = {key: value for key, value in optimizer.state_dict().items() if key != "param_groups"}
        return {"groups": groups, "own": packer.pack(state, kind)}
    order = {name: index for index, name in enumerate(prepared.names)}
    held: dict[str, Any] = {}
    for parameter, values in optimizer.state.items():
        name = prepared.name_of.get(id(parameter))
        if name is None:
            raise ConfigurationError(
                f"{kind} keeps state for something that is no prepared parameter: it cannot travel"
            )
        held[name] = values
    # In the parameters' order, whatever order the optimizer met them in: a state that was put back must look the same.
    by_name = [[name, packer.pack(held[name], f"{kind} {name}")] for name in sorted(held, key=order.__getitem__)]
    return {"groups": groups, "state": by_name}


def _install_optimizer(
    prepared: Prepared, optimizer: torch.optim.Optimizer, raw: Mapping[str, Any], tensors: list[Tensor]
) -> None:
    by_name = dict(zip(prepared.names, prepared.parameters, strict=True))
    groups = optimizer.param_groups
    del groups[len(raw["groups"]) :]
    while len(groups) < len(raw["groups"]):
        groups.append({})
    for group, (members, options) in zip(groups, raw["groups"], strict=True):
        fresh = unpack(options, tensors)
        for key in [key for key in group if key not in fresh and key != "params"]:
            del group[key]
        group["params"] = [by_name[name] for name in members]
        for key, value in fresh.items():
            group[key] = _owned(value)
    if "own" in raw:
        state = unpack(raw["own"], tensors)
        plain = torch.optim.Optimizer.state_dict(optimizer)
        optimizer.load_state_dict({**state, "param_groups": plain["param_groups"]})
        return
    on_device = {
        name
        for group, (members, _) in zip(groups, raw["groups"], strict=True)
        if group.get("fused") or group.get("capturable")
        for name in members
    }
    optimizer.state.clear()
    for name, values in raw["state"]:
        parameter = by_name[name]
        optimizer.state[parameter] = _beside(unpack(values, tensors), parameter, counts_there=name in on_device)


def _beside(value: Any, parameter: Tensor, *, counts_there: bool) -> Any:
    """A parameter's state: on its device and in its memory format, where it has the parameter's shape.

    Step counters stay on the CPU unless the optimizer counts on the device (`fused`, `capturable`).
    """
    if isinstance(value, Tensor):
        if value.shape == parameter.shape and value.dim() > 0:
            return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        return value.clone() if value.dim() == 0 and not counts_there else value.to(parameter.device, copy=True)
    if isinstance(value, dict):
        return type(value)((k, _beside(item, parameter, counts_there=counts_there)) for k, item in value.items())
    if isinstance(value, list):
        return [_beside(item, parameter, counts_there=counts_there) for item in value]
    return value


def _owned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


# ---- everything else


def _value(obj: Any) -> Any:
    if isinstance(obj, torch.Generator):
        return obj.get_state()
    if isinstance(obj, Tensor | dict | list):
        return obj
    if callable(getattr(obj, "state_dict", None)):
        return obj.state_dict()
    return vars(obj)


def _put_back(obj: Any, value: Any) -> None:
    match obj:
        case torch.Generator():
            obj.set_state(value)
        case Tensor():
            with torch.no_grad():
                obj.copy_(value)
        case dict():
            obj.clear()
            obj.update(_copied(value))
        case list():
            obj[:] = _copied(value)
        case _ if callable(getattr(obj, "load_state_dict", None)):
            _load(obj, value)
        case _:
            vars(obj).clear()
            vars(obj).update(_copied(value))


def _load(obj: Any, value: Any) -> None:
    if value or not _is_empty(obj):  # a GradScaler that is switched off refuses its own empty state
        obj.load_state_dict(_copied(value))


def _is_empty(obj: Any) -> bool:
    return bool(obj.state_dict() == {})


def _copied(value: Any) -> Any:
    """Tensors that arrived belong to the blob, which may be sent on: what objects keep is their own."""
    match value:
        case Tensor():
            return value.clone()
        case dict():
            copied = {key: _copied(item) for key, item in value.items()}
            return copied if type(value) is dict else type(value)(copied)
        case list():
            return [_copied(item) for item in value]
        case tuple():
            return tuple(_copied(item) for item in value)
    return value
