"""Contracts <-> JSON. One way to write a value down, for the wire, the disk and `--json`.

Field names are the JSON names. Strict where it matters: a missing field without a default, a value of the wrong type
or a newer version is :class:`MalformedMessage`; unknown fields are ignored, so that older readers live with newer
writers of the same version. Numbers that are not finite become null: the output is strict JSON.
"""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from orch_core.contracts.errors import MalformedMessage

V = TypeVar("V")
MESSAGE_LIMIT = 16 * 1024 * 1024  # bytes; a document is about 30 KB


def to_json(value: Any) -> Any:
    """Dataclasses, mappings, sequences and scalars as what :mod:`json` can write."""
    match value:
        case Enum():
            return value.value
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_json(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            kind: Any = type(value)
            return {name: to_json(getattr(value, name)) for name in _names(kind)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def encode(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(to_json(value), separators=(",", ":"), allow_nan=False).encode()


def decode(kind: type[V], data: bytes | str) -> V:
    """The inverse of :func:`encode`. Raises MalformedMessage."""
    if len(data) > MESSAGE_LIMIT:
        raise MalformedMessage(f"a {kind.__name__} of {len(data)} bytes is larger than {MESSAGE_LIMIT}")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"a {kind.__name__} is not JSON: {error}") from error
    return from_json(kind, raw)


def from_json(kind: type[V], raw: Any) -> V:
    """Build a `kind` from what :mod:`json` has read. Raises MalformedMessage."""
    try:
        return cast("V", _build(kind, raw, kind.__name__))
    except RecursionError as error:
        raise MalformedMessage(f"a {kind.__name__} is nested too deeply") from error


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, raw: Any, where: str) -> Any:
    kind = _plain(kind)
    if kind is Any:
        return raw
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _build_union(kind, raw, where)
    if origin is tuple:
        return _build_tuple(kind, raw, where)
    if origin in (dict, Mapping):
        if not isinstance(raw, dict):
            raise MalformedMessage(f"{where} should be an object")
        item_kind = get_args(kind)[1]
        return {key: _build(item_kind, item, f"{where}.{key}") for key, item in raw.items()}
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(cast("type", kind), raw, where)
    return _build_scalar(kind, raw, where)


def _plain(kind: Any) -> Any:
    """A NewType's base."""
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    return kind


def _build_union(kind: Any, raw: Any, where: str) -> Any:
    choices = get_args(kind)
    if raw is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    if len(rest) != 1:
        raise TypeError(f"{where}: only optional fields have a JSON form, not {kind}")
    return _build(rest[0], raw, where)


def _build_tuple(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, list):
        raise MalformedMessage(f"{where} should be an array")
    kinds = get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_build(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if len(kinds) != len(raw):
        raise MalformedMessage(f"{where} should have {len(kinds)} items")
    return tuple(_build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, raw, strict=True)))


def _build_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise MalformedMessage(f"{where} should be an object")
    hints, given = _hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in raw:
            given[field.name] = _build(hints[field.name], raw[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise MalformedMessage(f"{where}.{field.name} is missing")
    built = kind(**given)
    known = next((f.default for f in dataclasses.fields(kind) if f.name == "version"), None)
    if known is not None and built.version != known:
        raise MalformedMessage(f"{where} has version {built.version}; this program speaks version {known}")
    return built


def _build_scalar(kind: Any, raw: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(raw)
        except ValueError as error:
            raise MalformedMessage(f"{where}: {raw!r} is none of {', '.join(str(m.value) for m in kind)}") from error
    if kind is float and type(raw) in (int, float):
        return float(raw)
    if type(raw) is kind:
        return raw
    raise MalformedMessage(f"{where} should be {getattr(kind, '__name__', kind)}, not {type(raw).__name__}")
