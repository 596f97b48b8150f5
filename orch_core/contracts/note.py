"""What a worker wrote down before a pass, in a file that survives its SIGKILL.

The file is mapped into the worker's memory, so a note costs no system call and is there at whatever instant the
process dies. Two slots take turns; each carries a counter and a checksum, so a note cut in half by the kill is never
read: the one before it is.
"""

import json
import mmap
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

from orch_core.contracts.codec import decode, encode
from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.status import Note

SLOT_BYTES = 16 * 1024  # room for the sample indices of about 2,000 samples; more are cut off
SAMPLES_KEPT = 1024


class NoteWriter:
    """The worker's end. One thread writes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, 2 * SLOT_BYTES)
            self._memory = mmap.mmap(file, 2 * SLOT_BYTES)
        finally:
            os.close(file)
        self._count = 0

    def write(self, note: Note | None) -> None:
        """None: no pass is under way."""
        self._count += 1
        text = b"null" if note is None else encode(_cut(note))
        body = b"%010d %s" % (self._count, text)
        record = b"%08x %05d %s" % (zlib.crc32(body), len(body), body)
        at = self._count % 2 * SLOT_BYTES
        self._memory[at : at + len(record)] = record

    def close(self) -> None:
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_note(path: Path) -> Note | None:
    """The newest whole note; None if there is none, or if no pass was under way."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    records = [record for at in (0, SLOT_BYTES) if (record := _record(data[at : at + SLOT_BYTES])) is not None]
    if not records:
        return None
    try:
        text = max(records)[1]
        return None if json.loads(text) is None else decode(Note, text)
    except (MalformedMessage, ValueError):
        return None


def _record(slot: bytes) -> tuple[int, bytes] | None:
    try:
        checksum, length = int(slot[:8], 16), int(slot[9:14])
        body = slot[15 : 15 + length]
        if zlib.crc32(body) != checksum:
            return None
        return int(body[:10]), body[11:]
    except ValueError:
        return None


def _cut(note: Note) -> Note:
    if len(note.samples) <= SAMPLES_KEPT:
        return note
    return Note(note.step, note.shard, note.samples[:SAMPLES_KEPT])
