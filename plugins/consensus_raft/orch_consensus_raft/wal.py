"""The write-ahead log: what a replica may never forget, in one file.

The file is a sequence of records. The first names the format and the replica; each other is what one turn of the
replica had to write, however many Persists that were: one record, one ``write``, one ``fdatasync``. So at most the
last record can be incomplete, namely when the machine went down before the sync, and then nobody has been told of it:
it is cut off. A damaged record with anything sound behind it was synced once and has been damaged since. No program
can know what it said, and a replica that forgets a vote can elect a second leader: this is refused.

A record is ``magic, size, checksum of both, checksum of the body, body``. The head has a checksum of its own because a
damaged size must not make the rest of the file look like an incomplete tail.

When the file has grown large it is written anew, with the snapshot and the tail only: temporary file, sync, rename,
sync of the folder. After a failed write or sync nothing is tried again (a page that failed to sync may be dropped by
the kernel and then look clean): the log is unusable until it is opened again.
"""

import fcntl
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_consensus_raft.messages import NOTHING, Entry, HardState, Reader, Saved, decode_saved, encode_saved
from orch_consensus_raft.node import Persist
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import CoordinatorId

FORMAT = 1
REWRITE_BYTES = 4 * 1024 * 1024  # a file that is larger than this ...
REWRITE_FACTOR = 8  # ... and than so many times what it would be when written anew, is written anew

_HEAD = struct.Struct("!8sQII")
_SIZE = struct.Struct("!Q")
_CRC32C_MAGIC = b"\xf0Raft\x01c\n"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Framing:
    """How records are told apart and checked. The magic says which checksum wrote them.

    It is no text, and unlikely in a document: sound records behind a damaged one are found by it.
    """

    magic: bytes
    checksum: Callable[[bytes], int]

    def record(self, body: bytes) -> bytes:
        size = _SIZE.pack(len(body))
        head = _HEAD.pack(self.magic, len(body), self.checksum(self.magic + size), self.checksum(body))
        return head + body

    def body_at(self, data: bytes, at: int) -> bytes | None:
        """The body of the sound record that begins at `at`; None if there is none."""
        head = data[at : at + _HEAD.size]
        if len(head) < _HEAD.size:
            return None
        magic, size, head_sum, body_sum = _HEAD.unpack(head)
        if magic != self.magic or head_sum != self.checksum(magic + _SIZE.pack(size)):
            return None
        body = data[at + _HEAD.size : at + _HEAD.size + size]
        return body if len(body) == size and self.checksum(body) == body_sum else None

    def split(self, data: bytes) -> tuple[list[bytes], int]:
        """The sound records' bodies from the start, and where they end."""
        bodies, at = [], 0
        while (body := self.body_at(data, at)) is not None:
            bodies.append(body)
            at += _HEAD.size + len(body)
        return bodies, at

    def has_record_behind(self, data: bytes, damaged: int) -> bool:
        """Whether a sound record stands anywhere behind the damaged one."""
        at = data.find(self.magic, damaged + 1)
        while at >= 0:
            if self.body_at(data, at) is not None:
                return True
            at = data.find(self.magic, at + 1)
        return False


def _find_crc32c() -> Framing | None:
    try:
        import google_crc32c
    except ImportError:
        return None
    return Framing(_CRC32C_MAGIC, lambda data: int(google_crc32c.value(data)))


ZLIB = Framing(b"\xf0Raft\x01z\n", zlib.crc32)
CRC32C = _find_crc32c()


class WriteAheadLog:
    """One replica's file. Blocking; used by one thread at a time."""

    def __init__(self, folder: Path, owner: CoordinatorId) -> None:
        self.path = folder / "raft.log"
        self._owner = owner
        self._file = self._lock = -1
        self._size = self._fresh_size = 0
        self._broken = False

    def open(self) -> Saved:
        """Read what is there, or begin a file.

        Raises ConfigurationError: another process has it open, it is not this replica's, or it is damaged or unusable.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            saved = self._read() if self.path.exists() else Saved()
            self._rewrite(saved)  # also proves that the disk takes writes
        except OSError as error:
            self.close()
            raise ConfigurationError(
                f"replica {self._owner} cannot use its log {self.path}: {error.strerror or error}"
            ) from error
        except ConfigurationError:
            self.close()
            raise
        return saved

    def write(self, batch: Sequence[Persist], memory: Saved) -> None:
        """Make `batch` durable; `memory` is the whole state behind it. Raises OSError, once and for all."""
        if self._broken:
            raise OSError("an earlier write failed")
        try:
            body = b"".join(
                encode_saved(
                    Saved(persist.state, persist.snapshot or NOTHING, persist.entries),
                    persist.first,
                    whole=persist.snapshot is not None,
                )
                for persist in batch
            )
            if self._size + len(body) > max(REWRITE_BYTES, REWRITE_FACTOR * self._fresh_size):
                self._rewrite(memory)
            else:
                self._size += _write_record(self._file, body)
                os.fdatasync(self._file)
        except OSError:
            self._broken = True
            raise

    def close(self) -> None:
        """Idempotent."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _take_lock(self) -> None:
        """Two lives of one replica at once could give two votes in one term."""
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LogInUse(f"another process uses {self.path}: end it before replica {self._owner} starts") from error

    def _read(self) -> Saved:
        data = self.path.read_bytes()
        framing = self._framing_of(data)
        bodies, sound = framing.split(data)
        if sound < len(data):
            if framing.has_record_behind(data, sound):
                raise self._damage(f"the record at byte {sound} is damaged and later ones are not")
            logger.warning(
                "torn tail of the log cut off replica=%s file=%s at=%d lost_bytes=%d",
                self._owner,
                self.path,
                sound,
                len(data) - sound,
            )
        if not bodies:
            raise self._damage("its first record is damaged")
        self._check_header(bodies[0])
        try:
            return _replay(bodies[1:])
        except (MalformedMessage, UnicodeDecodeError) as error:
            raise self._damage(f"a record with the right checksum makes no sense: {error}") from error

    def _framing_of(self, data: bytes) -> Framing:
        if CRC32C is None and data.startswith(_CRC32C_MAGIC):
            raise ConfigurationError(f"{self.path} was written with google-crc32c: install it again to read it")
        if CRC32C is not None and data.startswith(CRC32C.magic):
            return CRC32C
        return ZLIB

    def _check_header(self, body: bytes) -> None:
        try:
            header = json.loads(body)
        except ValueError as error:
            raise self._damage("its first record is no header") from error
        if header.get("format") != FORMAT:
            raise ConfigurationError(
                f"{self.path} has format {header.get('format')}; this program reads {FORMAT}: use the one that wrote it"
            )
        if header.get("owner") != self._owner:
            raise ConfigurationError(
                f"{self.path} belongs to replica {header.get('owner')}, not to {self._owner}: give each its own folder"
            )

    def _damage(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"the log {self.path} of replica {self._owner} is corrupt: {what}; restore the file, or, if a majority of"
            " the other replicas is sound, replace this replica by one with a new id"
        )

    def _rewrite(self, memory: Saved) -> None:
        temporary = self.path.with_suffix(".tmp")
        header = json.dumps({"format": FORMAT, "owner": self._owner}).encode()
        body = encode_saved(memory, memory.snapshot.index + 1, whole=True)
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            size = _write_record(file, header) + _write_record(file, body)
            os.fsync(file)
            os.rename(temporary, self.path)
            _sync_folder(self.path.parent)
        except OSError:
            os.close(file)
            raise
        old, self._file = self._file, file
        self._size = self._fresh_size = size
        if old >= 0:
            os.close(old)


class LogInUse(ConfigurationError):
    """The folder is locked. May be worth another try: a dying process holds its lock until it is gone."""


def _write_record(file: int, body: bytes) -> int:
    record = memoryview((CRC32C or ZLIB).record(body))
    written = 0
    while written < len(record):
        written += os.write(file, record[written:])
    return written


def _replay(bodies: Sequence[bytes]) -> Saved:
    state, snapshot, entries = HardState(), NOTHING, list[Entry]()
    for body in bodies:
        reader = Reader(body)
        while not reader.empty:
            saved, first, whole = decode_saved(reader)
            state = saved.state
            if whole:
                snapshot, entries = saved.snapshot, []
            at = first - snapshot.index - 1
            if not 0 <= at <= len(entries):
                raise MalformedMessage(f"entries at {first} do not follow {snapshot.index + len(entries)}")
            if saved.entries:
                entries[at:] = saved.entries
    return Saved(state, snapshot, tuple(entries))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
