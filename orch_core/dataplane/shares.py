"""Blobs that several members send together: each sends a share, a range of the bytes of all tensors laid end to end.

::

    packed = Packed.of(blob)                         # what a member has, whatever it will send of it
    packed.share(Share(0, 3))                        # the first third of the bytes, in place
    packed.copied(Share(0, 3), room, changing)       # the same as it is now

    incoming = Incoming(text, 3, "the state")        # made when the first share comes, whichever it is
    for view in incoming.room(share, text): ...      # fill these
    incoming.filled(share); incoming.complete; incoming.blob

Every share comes with the blob's whole JSON and a crc32 of its bytes: so any of them can be the first, and members
whose blobs differ are found out.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from orch_core.contracts.errors import MalformedMessage
from orch_core.dataplane.group import BLOB_LIMIT, Blob, pack_blob, read_specs
from orch_core.dataplane.tcp import bytes_of


@dataclass(frozen=True, slots=True)
class Share:
    """The `index`-th of `of` parts."""

    index: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise MalformedMessage(f"there is no share {self.index} of {self.of}")

    def span(self, size: int) -> tuple[int, int]:
        """First byte and the one behind the last."""
        return size * self.index // self.of, size * (self.index + 1) // self.of


@dataclass(frozen=True, slots=True)
class Packed:
    """A blob's JSON and bytes. The bytes are the tensors' own."""

    text: bytes
    views: Sequence[memoryview]

    @classmethod
    def of(cls, blob: Blob) -> "Packed":
        text, views = pack_blob(blob)  # members must write the same JSON: the order of keys is no difference
        return cls(text, views)

    @property
    def size(self) -> int:
        return sum(len(view) for view in self.views)

    def share(self, share: Share) -> list[memoryview]:
        return _cut(self.views, *share.span(self.size))

    def copied(self, share: Share, room: memoryview, changing: int) -> list[memoryview]:
        """The share as it is now: the blob's first `changing` bytes are copied into `room`, as far as it goes."""
        lo, hi = share.span(self.size)
        kept, at = [], 0
        for part in _cut(self.views, lo, min(hi, max(lo, changing))):
            target = room[at : at + len(part)] if at + len(part) <= len(room) else memoryview(bytearray(len(part)))
            target[:] = part
            kept.append(target)
            at += len(part)
        return [*kept, *_cut(self.views, max(lo, changing), hi)]


class Incoming:
    """A blob that arrives in shares. Not thread-safe, but for filling different shares' room."""

    def __init__(self, text: bytes, of: int, what: str) -> None:
        """Raises MalformedMessage."""
        self._text = text
        header, tensors = read_specs(text, BLOB_LIMIT, what)
        self.blob = Blob(header, tensors)
        self._views = [bytes_of(tensor) for tensor in tensors]
        self._missing = set(range(of))
        self._of = of

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(view) for view in self._views)

    @property
    def complete(self) -> bool:
        return not self._missing

    def room(self, share: Share, text: bytes) -> list[memoryview]:
        """Where the bytes of a share go. Raises MalformedMessage if it is a share of something else."""
        if share.of != self._of or share.index not in self._missing:
            raise MalformedMessage(f"share {share.index} of {share.of} is not one of {sorted(self._missing)}")
        if text != self._text:
            raise MalformedMessage("members that should hold the same state or results describe them differently")
        return _cut(self._views, *share.span(self.size))

    def filled(self, share: Share) -> None:
        self._missing.discard(share.index)


def checksum(parts: Sequence[memoryview]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _cut(views: Sequence[memoryview], lo: int, hi: int) -> list[memoryview]:
    found: list[memoryview] = []
    at = 0
    for view in views:
        first, last = max(lo - at, 0), min(hi - at, len(view))
        if first < last:
            found.append(view[first:last])
        at += len(view)
    return found
