"""Bytes and values: there and back, and no bytes make the decoder raise anything but MalformedMessage."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_consensus_raft.messages import (
    Append,
    AppendReply,
    Entry,
    Message,
    Snapshot,
    VoteReply,
    VoteRequest,
    decode,
    encode,
)
from orch_core.contracts.consensus import Committed
from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Term

EXAMPLES: tuple[Message, ...] = (
    VoteRequest(Term(3), 7, Term(2), pre=True),
    VoteReply(Term(3), False, pre=True),
    AppendReply(Term(3), True, 8),
    Append(Term(3), 7, Term(2), (Entry(Term(2), None), Entry(Term(3), b""), Entry(Term(3), b"x" * 99)), 6, False),
    Append(Term(3), 7, Term(2), (), 7, True, Snapshot(7, Term(2), Committed(b"whole", Term(1), 5))),
    Append(Term(3), 0, Term(0), (), 0, True, Snapshot(0, Term(0), None)),
)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_encoding(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_that_is_too_short_or_too_long_is_malformed(message: Message) -> None:
    data = encode(message)
    for size in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode(data[:size])
    with pytest.raises(MalformedMessage):
        decode(data + b"\0")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(EXAMPLES) - 1), st.data())
def test_damaged_bytes_are_malformed_or_another_message(which: int, data: st.DataObject) -> None:
    damaged = bytearray(encode(EXAMPLES[which]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode(bytes(damaged))
    except MalformedMessage:
        return
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "append",
    [
        Append(Term(1), 0, Term(0), (Entry(Term(2), b""),), 0, True),
        Append(Term(3), 0, Term(0), (Entry(Term(2), b""), Entry(Term(1), b"")), 0, True),
        Append(Term(3), 6, Term(2), (), 7, True, Snapshot(7, Term(2), None)),
        Append(Term(3), 7, Term(2), (), 7, True, Snapshot(7, Term(2), Committed(b"", Term(2), 8))),
    ],
)
def test_what_contradicts_itself_is_malformed(append: Append) -> None:
    with pytest.raises(MalformedMessage):
        decode(encode(append))


def test_another_version_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="version 9"):
        decode(b"\x09" + encode(EXAMPLES[0])[1:])
