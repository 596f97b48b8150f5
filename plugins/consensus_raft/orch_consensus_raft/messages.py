"""What replicas tell each other and write down, and its bytes.

Four messages, two of them the paper's RPCs and two their replies (Ongaro and Ousterhout, figure 2). InstallSnapshot is
no message of its own: an entry is a whole document, so the snapshot is as large as an entry and rides in `Append`.

The bytes are big-endian and carry a version. Decoding checks all that can be checked without a log, so that the
machine meets only messages which are consistent in themselves: whatever is not is MalformedMessage.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from orch_core.contracts.consensus import Committed
from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import CoordinatorId, Term

VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One place of the log. Without a document it is a term's first entry: it leaves the document as it is."""

    term: Term
    document: bytes | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is committed up to `index`: the document, and which entry it came with."""

    index: int
    term: Term  # of the entry at `index`
    document: Committed | None


NOTHING = Snapshot(0, Term(0), None)


@dataclass(frozen=True, slots=True)
class HardState:
    """What a replica must remember besides its log. `commit` is a hint: it may lag behind, it is never ahead."""

    term: Term = Term(0)
    vote: CoordinatorId | None = None
    commit: int = 0


@dataclass(frozen=True, slots=True)
class Saved:
    """A replica's memory, as read from the disk."""

    state: HardState = HardState()
    snapshot: Snapshot = NOTHING
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """RequestVote (5.2), or its rehearsal PreVote (thesis 9.6), which asks about `term` without entering it."""

    term: Term
    last_index: int
    last_term: Term
    pre: bool


@dataclass(frozen=True, slots=True)
class VoteReply:
    """`term` is the asked one if granted, else the voter's own."""

    term: Term
    granted: bool
    pre: bool


@dataclass(frozen=True, slots=True)
class Append:
    """AppendEntries (5.3) and, with a snapshot, InstallSnapshot (7). Without either, a heartbeat.

    With a snapshot, `prev_index` and `prev_term` are the snapshot's. `quorum`: the leader was in touch with a majority.
    """

    term: Term
    prev_index: int
    prev_term: Term
    entries: tuple[Entry, ...]
    commit: int
    quorum: bool
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class AppendReply:
    """Accepted: durable and equal to the leader's log up to `index`. Rejected: go on behind `index`."""

    term: Term
    accepted: bool
    index: int


Message = VoteRequest | VoteReply | Append | AppendReply

_KIND = struct.Struct("!BB")
_VOTE_REQUEST = struct.Struct("!QQQ?")
_VOTE_REPLY = struct.Struct("!Q??")
_APPEND = struct.Struct("!QQQQ??I")
_APPEND_REPLY = struct.Struct("!Q?Q")
_ENTRY = struct.Struct("!Q?I")
_SNAPSHOT = struct.Struct("!QQ?")
_DOCUMENT = struct.Struct("!QQI")
_STATE = struct.Struct("!QQH")
_LONG = struct.Struct("!Q")


def encode(message: Message) -> bytes:
    """A message's bytes, without the frame."""
    match message:
        case VoteRequest():
            body = _VOTE_REQUEST.pack(message.term, message.last_index, message.last_term, message.pre)
            return _KIND.pack(VERSION, 1) + body
        case VoteReply():
            return _KIND.pack(VERSION, 2) + _VOTE_REPLY.pack(message.term, message.granted, message.pre)
        case Append():
            return _KIND.pack(VERSION, 3) + _encode_append(message)
        case AppendReply():
            return _KIND.pack(VERSION, 4) + _APPEND_REPLY.pack(message.term, message.accepted, message.index)


def decode(data: bytes) -> Message:
    """The inverse of :func:`encode`. Raises MalformedMessage."""
    reader = Reader(data)
    version, kind = reader.unpack(_KIND)
    if version != VERSION:
        raise MalformedMessage(f"a peer speaks version {version}; this program speaks {VERSION}")
    message: Message
    match kind:
        case 1:
            term, last_index, last_term, pre = reader.unpack(_VOTE_REQUEST)
            message = VoteRequest(Term(term), last_index, Term(last_term), bool(pre))
        case 2:
            term, granted, pre = reader.unpack(_VOTE_REPLY)
            message = VoteReply(Term(term), bool(granted), bool(pre))
        case 3:
            message = _decode_append(reader)
        case 4:
            term, accepted, index = reader.unpack(_APPEND_REPLY)
            message = AppendReply(Term(term), bool(accepted), index)
        case _:
            raise MalformedMessage(f"no message has kind {kind}")
    reader.finish()
    return message


def encode_saved(saved: Saved, first: int, *, whole: bool) -> bytes:
    """One record of the write-ahead log: hard state, the snapshot if `whole`, and entries from `first` on."""
    state, vote = saved.state, (saved.state.vote or "").encode()
    parts = [_STATE.pack(state.term, state.commit, len(vote)), vote, b"\1" if whole else b"\0"]
    if whole:
        parts.append(_encode_snapshot(saved.snapshot))
    parts += [_LONG.pack(first), _LONG.pack(len(saved.entries)), *_encode_entries(saved.entries)]
    return b"".join(parts)


def decode_saved(reader: "Reader") -> tuple[Saved, int, bool]:
    """The inverse of :func:`encode_saved`. Raises MalformedMessage."""
    term, commit, vote_size = reader.unpack(_STATE)
    vote = reader.take(vote_size).decode()
    whole = reader.take(1) == b"\1"
    snapshot = _decode_snapshot(reader) if whole else NOTHING
    (first,) = reader.unpack(_LONG)
    (count,) = reader.unpack(_LONG)
    entries = _decode_entries(reader, count)
    return Saved(HardState(Term(term), CoordinatorId(vote) if vote else None, commit), snapshot, entries), first, whole


class Reader:
    """Takes values from bytes, in order. Every shortage is MalformedMessage."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def empty(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise MalformedMessage(f"{size} bytes are announced where {len(self._data) - self._at} are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def finish(self) -> None:
        if not self.empty:
            raise MalformedMessage(f"{len(self._data) - self._at} bytes too many")


def _encode_append(message: Append) -> bytes:
    head = _APPEND.pack(
        message.term,
        message.prev_index,
        message.prev_term,
        message.commit,
        message.quorum,
        message.snapshot is not None,
        len(message.entries),
    )
    snapshot = _encode_snapshot(message.snapshot) if message.snapshot is not None else b""
    return b"".join([head, snapshot, *_encode_entries(message.entries)])


def _decode_append(reader: Reader) -> Append:
    term, prev_index, prev_term, commit, quorum, has_snapshot, count = reader.unpack(_APPEND)
    snapshot = _decode_snapshot(reader) if has_snapshot else None
    entries = _decode_entries(reader, count)
    if snapshot is not None and (snapshot.index, snapshot.term) != (prev_index, prev_term):
        raise MalformedMessage("a snapshot and the entries behind it do not fit together")
    terms = [prev_term, *(entry.term for entry in entries), term]
    if any(left > right for left, right in itertools.pairwise(terms)):
        raise MalformedMessage("terms go backwards in a log")
    return Append(Term(term), prev_index, Term(prev_term), entries, commit, bool(quorum), snapshot)


def _encode_entries(entries: Sequence[Entry]) -> list[bytes]:
    parts = []
    for entry in entries:
        document = entry.document or b""
        parts += [_ENTRY.pack(entry.term, entry.document is not None, len(document)), document]
    return parts


def _decode_entries(reader: Reader, count: int) -> tuple[Entry, ...]:
    entries = []
    for _ in range(count):
        term, has_document, size = reader.unpack(_ENTRY)
        document = reader.take(size)
        entries.append(Entry(Term(term), document if has_document else None))
    return tuple(entries)


def _encode_snapshot(snapshot: Snapshot) -> bytes:
    head = _SNAPSHOT.pack(snapshot.index, snapshot.term, snapshot.document is not None)
    if snapshot.document is None:
        return head
    committed = snapshot.document
    return head + _DOCUMENT.pack(committed.index, committed.term, len(committed.document)) + committed.document


def _decode_snapshot(reader: Reader) -> Snapshot:
    index, term, has_document = reader.unpack(_SNAPSHOT)
    if not has_document:
        return Snapshot(index, Term(term), None)
    written_at, written_in, size = reader.unpack(_DOCUMENT)
    if written_at > index or written_in > term:
        raise MalformedMessage("a snapshot is older than its document")
    return Snapshot(index, Term(term), Committed(reader.take(size), Term(written_in), written_at))
