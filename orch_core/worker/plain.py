"""Values <-> JSON and tensors, for what travels as State(s). No pickle.

What optimizers, schedulers and people keep: numbers, strings, None, lists, tuples, dicts, sets, bytes, numpy arrays and
tensors, nested as they like. Anything else is refused with the way to it, so that nobody finds out at a worker's death.
"""

import base64
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orch_core.contracts.errors import ConfigurationError, MalformedMessage


class Packer:
    """Collects tensors by reference while it turns values into JSON. `names` says where each tensor stood."""

    def __init__(self, name_of: Callable[[Tensor], str | None] = lambda tensor: None) -> None:
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self._name_of = name_of

    def pack(self, value: Any, where: str) -> Any:
        """Raises ConfigurationError for what cannot travel."""
        match value:
            case None | bool():
                return value
            case Tensor():
                return {"tensor": self.add(value, where)}
            case np.ndarray():
                if value.dtype.hasobject:
                    raise _unknown(value, where)
                return {
                    "array": self.add(torch.from_numpy(np.array(value, order="C")), where),
                    "shape": list(value.shape),
                }
            case np.generic():
                return {"scalar": [value.dtype.str, self.pack(value.item(), where)]}
            case int() | str() if type(value) in (int, str):
                return value
            case float() if type(value) is float:
                return value if math.isfinite(value) else {"float": repr(value)}
            case complex():
                return {"complex": [repr(value.real), repr(value.imag)]}
            case bytes():
                return {"bytes": base64.b64encode(value).decode()}
            case torch.dtype():
                return {"dtype": str(value).removeprefix("torch.")}
            case torch.device():
                return {"device": str(value)}
        return self._pack_container(value, where)

    def add(self, tensor: Tensor, name: str) -> int:
        if tensor.layout != torch.strided:
            raise ConfigurationError(
                f"{name} is a sparse tensor, which cannot travel with the state yet: keep it dense"
            )
        self.tensors.append(tensor.detach())
        self.names.append(name)
        return len(self.tensors) - 1

    def _pack_container(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind is list:
            return self._items(value, where)
        if kind in (tuple, torch.Size):
            return {"tuple": self._items(value, where)}
        if kind in (set, frozenset):
            return {kind.__name__: sorted(self._items(value, where), key=repr)}
        if kind is deque:
            return {"deque": self._items(value, where), "maxlen": value.maxlen}
        if kind in (dict, OrderedDict, Counter) or isinstance(value, defaultdict):
            name = "ordered" if kind is OrderedDict else "counter" if kind is Counter else "dict"
            return {name: [[self.pack(k, where), self.pack(v, f"{where}.{self._label(k)}")] for k, v in value.items()]}
        raise _unknown(value, where)

    def _items(self, values: Iterable[Any], where: str) -> list[Any]:
        return [self.pack(item, f"{where}.{i}") for i, item in enumerate(values)]

    def _label(self, key: Any) -> str:
        return (self._name_of(key) if isinstance(key, Tensor) else None) or str(key)


SMALL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Frozen:
    """Values as they were at one moment. Small tensors are copied, large ones must not change: :meth:`check`."""

    values: dict[str, Any]
    tensors: list[Tensor]
    names: list[str]
    versions: list[int]

    @classmethod
    def of(cls, values: Iterable[tuple[str, Any]]) -> "Frozen":
        """Pairs of a name, unique, and a value. Raises ConfigurationError for what cannot travel."""
        packer = Packer()
        packed = {name: packer.pack(value, name) for name, value in values}
        small = [tensor.nbytes <= SMALL_BYTES for tensor in packer.tensors]
        tensors = [t.clone() if copied else t for t, copied in zip(packer.tensors, small, strict=True)]
        return cls(packed, tensors, packer.names, [tensor._version for tensor in tensors])

    def check(self) -> None:
        """Raises ConfigurationError if a large tensor has changed since."""
        for tensor, name, version in zip(self.tensors, self.names, self.versions, strict=True):
            if tensor._version != version:
                raise ConfigurationError(
                    f"{name} was changed between the yield of run.batches() and the end of the inner loop: change what "
                    f"is kept or prepared in the outer body, behind the inner loop"
                )


def unpack(raw: Any, tensors: list[Tensor]) -> Any:
    """The inverse of :meth:`Packer.pack`; tensors are those of the list, not copies. Raises MalformedMessage."""
    try:
        return _unpack(raw, tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise MalformedMessage(f"a state cannot be read: {error!r}") from error


def _unpack(raw: Any, tensors: list[Tensor]) -> Any:
    if isinstance(raw, list):
        return [_unpack(item, tensors) for item in raw]
    if not isinstance(raw, dict):
        return raw
    kind = next(iter(raw))
    value = raw[kind]
    match kind:
        case "tensor":
            return tensors[value]
        case "array":
            return tensors[value].numpy().reshape(raw["shape"])
        case "scalar":
            return np.dtype(value[0]).type(_unpack(value[1], tensors))
        case "float":
            return float(value)
        case "complex":
            return complex(float(value[0]), float(value[1]))
        case "bytes":
            return base64.b64decode(value)
        case "dtype":
            found = getattr(torch, value)
            if not isinstance(found, torch.dtype):
                raise ValueError(value)
            return found
        case "device":
            return torch.device(value)
        case "tuple":
            return tuple(_unpack(item, tensors) for item in value)
        case "set":
            return {_unpack(item, tensors) for item in value}
        case "frozenset":
            return frozenset(_unpack(item, tensors) for item in value)
        case "deque":
            return deque((_unpack(item, tensors) for item in value), maxlen=raw["maxlen"])
        case "dict" | "ordered" | "counter":
            made = {"dict": dict, "ordered": OrderedDict, "counter": Counter}[kind]()
            for key, item in value:
                made[_unpack(key, tensors)] = _unpack(item, tensors)
            return made
    raise ValueError(kind)


def _unknown(value: Any, where: str) -> ConfigurationError:
    kind = type(value)
    return ConfigurationError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which cannot travel to another worker: keep tensors, "
        f"numbers, strings, lists and dicts"
    )
