"""The one way to write a value down: what goes in comes out, and nonsense is refused, never misread."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch_core.contracts.codec import MESSAGE_LIMIT, decode, encode, from_json, to_json
from orch_core.contracts.document import Cause, Document, LifeState, Place, View
from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import PlaceId, WorkerId
from orch_core.contracts.job import JobSpec
from orch_core.contracts.status import AgentStatus, Progress, WorkerStatus
from orch_core.contracts.summary import Summary

KINDS = [Document, WorkerStatus, AgentStatus, Progress, Summary, JobSpec]
TEXT = st.text(max_size=8)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotated type: what a field may hold, the generator may make."""
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if arg is type(None) else values(arg) for arg in args))
    if origin is tuple and args[1:] == (Ellipsis,):
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, args))
    if origin in (dict, Mapping):
        return st.dictionaries(TEXT, values(args[1]), max_size=2)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind) if f.name != "version"]
        return st.builds(kind, **{name: values(hints[name]) for name in names})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    return {
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: TEXT,
    }[kind]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_goes_in_comes_out(kind: type) -> None:
    @given(values(kind))
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    def round_trip(value: Any) -> None:
        assert decode(kind, encode(value)) == value

    round_trip()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(
    junk=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    )
)
@settings(max_examples=30, deadline=None)
def test_no_junk_raises_anything_but_malformed_message(kind: type, junk: Any) -> None:
    try:
        from_json(kind, junk)
    except MalformedMessage:
        pass


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_field_is_malformed_and_nothing_else(kind: type) -> None:
    @given(values(kind), st.data())
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    def damage(value: Any, data: st.DataObject) -> None:
        raw = to_json(value)
        name = data.draw(st.sampled_from(sorted(raw)))
        raw[name] = data.draw(st.sampled_from([None, True, 1.5, "x", [[]], {"a": []}, [{}]]))
        try:
            from_json(kind, raw)
        except MalformedMessage:
            pass

    damage()


@given(st.binary(max_size=64))
def test_any_bytes_are_json_of_the_kind_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(JobSpec, data)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({}, "JobSpec.name is missing"),
        ({"name": 3}, "JobSpec.name should be str, not int"),
        ({"name": "a", "seed": 1.5}, "JobSpec.seed should be int, not float"),
        ({"name": "a", "seed": True}, "JobSpec.seed should be int, not bool"),
        ({"name": "a", "args": "x"}, "JobSpec.args should be an array"),
        ({"name": "a", "args": [1]}, "JobSpec.args[0] should be str, not int"),
        ({"name": "a", "sync_options": []}, "JobSpec.sync_options should be an object"),
        ({"name": "a", "version": 2}, "JobSpec has version 2; this program speaks version 1"),
        ([], "JobSpec should be an object"),
    ],
)
def test_the_error_names_the_field(raw: Any, sentence: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        from_json(JobSpec, raw)
    assert sentence in str(caught.value)


def test_nested_errors_name_the_whole_path() -> None:
    place = to_json(Place(PlaceId("w0"), WorkerId("w0.1"), LifeState.STARTING)) | {"state": "asleep"}
    raw = {"job": {"name": "a"}, "started_at": 1, "places": [place]}
    with pytest.raises(MalformedMessage, match=r"Document.places\[0\].state: 'asleep' is none of starting, ready"):
        from_json(Document, raw)


def test_unknown_fields_are_ignored_so_that_older_readers_live_with_newer_writers() -> None:
    assert from_json(JobSpec, {"name": "a", "colour": "red"}) == from_json(JobSpec, {"name": "a"})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null_so_that_the_output_is_strict_json(number: float) -> None:
    written = encode(Progress(means={"loss": number}))
    json.loads(written, parse_constant=pytest.fail)
    assert decode(Progress, written).means == {"loss": None}


def test_an_integer_where_a_float_belongs_is_a_float() -> None:
    document = from_json(Document, {"job": {"name": "a"}, "started_at": 3})
    assert document.started_at == 3.0
    assert type(document.started_at) is float


def test_enums_travel_by_value() -> None:
    view = from_json(View, {"number": 1, "members": [], "cause": "death", "reason": "", "at_step": 0, "at_s": 0})
    assert view.cause is Cause.DEATH
    assert b'"death"' in encode(view)


def test_a_message_larger_than_the_limit_is_refused_unread() -> None:
    with pytest.raises(MalformedMessage, match="larger than"):
        decode(JobSpec, " " * (MESSAGE_LIMIT + 1))


def test_a_message_nested_too_deeply_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        decode(JobSpec, "[" * 100_000)


def test_what_has_no_json_form_is_a_bug_and_said_so() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        encode({"x": object()})
