"""The write-ahead log: what was synced is there after any crash, what is damaged is refused, nothing is made up."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from orch_consensus_raft import wal
from orch_consensus_raft.messages import NOTHING, Entry, HardState, Saved, Snapshot
from orch_consensus_raft.node import Persist
from orch_consensus_raft.wal import WriteAheadLog
from orch_core.contracts.consensus import Committed
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.ids import CoordinatorId, Term

ME = CoordinatorId("c0")


def persist(first: int, *documents: bytes, term: int = 1, commit: int = 0, snapshot: Snapshot | None = None) -> Persist:
    entries = tuple(Entry(Term(term), document) for document in documents)
    return Persist(first, True, HardState(Term(term), ME, commit), snapshot, first, entries, ())


def opened(folder: Path) -> tuple[WriteAheadLog, Saved]:
    log = WriteAheadLog(folder, ME)
    return log, log.open()


def reopened(log: WriteAheadLog, folder: Path) -> Saved:
    log.close()
    log, saved = opened(folder)
    log.close()
    return saved


def documents(saved: Saved) -> list[bytes | None]:
    return [entry.document for entry in saved.entries]


def written(folder: Path, *batches: Persist) -> bytes:
    """The file's bytes with one record per batch."""
    log, saved = opened(folder)
    for batch in batches:
        log.write([batch], saved)
    log.close()
    return (folder / "raft.log").read_bytes()


def test_a_new_folder_is_an_empty_memory(tmp_path: Path) -> None:
    log, saved = opened(tmp_path / "deep" / "folder")
    assert saved == Saved()
    log.close()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    log, saved = opened(tmp_path)
    log.write([persist(1, b"a", b"b"), persist(3, b"c", term=2)], saved)
    log.write([persist(2, b"B", term=3, commit=1)], saved)
    assert reopened(log, tmp_path) == Saved(
        HardState(Term(3), ME, 1), NOTHING, (Entry(Term(1), b"a"), Entry(Term(3), b"B"))
    )


def test_an_entry_without_a_document_is_not_an_empty_document(tmp_path: Path) -> None:
    log, saved = opened(tmp_path)
    entries = (Entry(Term(1), None), Entry(Term(1), b""))
    log.write([Persist(1, True, HardState(Term(1)), None, 1, entries, ())], saved)
    assert reopened(log, tmp_path).entries == entries


def test_a_snapshot_replaces_what_stood_before_it(tmp_path: Path) -> None:
    log, saved = opened(tmp_path)
    snapshot = Snapshot(7, Term(2), Committed(b"whole", Term(2), 6))
    log.write([persist(1, b"a", b"b")], saved)
    log.write([persist(8, b"next", term=2, snapshot=snapshot)], saved)
    found = reopened(log, tmp_path)
    assert (found.snapshot, documents(found)) == (snapshot, [b"next"])


def test_a_large_file_is_written_anew_and_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "REWRITE_BYTES", 10_000)
    log, _ = opened(tmp_path)
    for index in range(1, 200):
        newest = Snapshot(index, Term(1), Committed(b"%d" % index * 100, Term(1), index))
        log.write([persist(index, b"%d" % index * 100)], Saved(HardState(Term(1), ME, index), newest))
    assert log.path.stat().st_size < 12_000
    found = reopened(log, tmp_path)
    assert found.snapshot.index + len(found.entries) == 199


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_syncs")
def test_a_tail_torn_at_any_byte_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = written(tmp_path, persist(1, b"first"), persist(2, b"second"))
    before = len(written(tmp_path / "shorter", persist(1, b"first")))
    for size in range(before, len(whole)):
        (tmp_path / "raft.log").write_bytes(whole[:size])
        log, saved = opened(tmp_path)
        assert documents(saved) == [b"first"]
        log.write([persist(2, b"again")], saved)
        assert documents(reopened(log, tmp_path)) == [b"first", b"again"]
    assert "torn tail" in caplog.text


def test_a_tail_of_zeros_is_cut_off(tmp_path: Path) -> None:
    """Some file systems give a file its new length before its new content."""
    whole = written(tmp_path, persist(1, b"first"))
    (tmp_path / "raft.log").write_bytes(whole + bytes(4096))
    log, saved = opened(tmp_path)
    assert documents(saved) == [b"first"]
    log.close()


@pytest.fixture
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that open hundreds of files and pull no plug."""
    monkeypatch.setattr(wal.os, "fsync", lambda _: None)
    monkeypatch.setattr(wal.os, "fdatasync", lambda _: None)


@pytest.mark.usefixtures("no_syncs")
def test_every_flipped_bit_before_the_last_record_is_refused_naming_the_file(tmp_path: Path) -> None:
    whole = written(tmp_path, persist(1, b"first"), persist(2, b"second"))
    sound = len(written(tmp_path / "shorter", persist(1, b"first")))
    for at in range(sound):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "raft.log").write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=r"raft\.log .*corrupt"):
            opened(tmp_path)
        assert (tmp_path / "raft.log").read_bytes() == damaged, "a refused file is left as it is"


@pytest.mark.usefixtures("no_syncs")
def test_a_flipped_bit_in_the_last_record_never_gives_another_document(tmp_path: Path) -> None:
    whole = written(tmp_path, persist(1, b"first"), persist(2, b"second"))
    sound = len(written(tmp_path / "shorter", persist(1, b"first")))
    for at in range(sound, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "raft.log").write_bytes(damaged)
        log, saved = opened(tmp_path)
        assert documents(saved) == [b"first"]
        log.close()


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """It is never left behind by a crash: a file appears under its name with its first records."""
    (tmp_path / "raft.log").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="corrupt"):
        opened(tmp_path)


def test_the_log_of_another_replica_is_refused(tmp_path: Path) -> None:
    written(tmp_path, persist(1, b"mine"))
    with pytest.raises(ConfigurationError, match="belongs to replica c0, not to c1"):
        WriteAheadLog(tmp_path, CoordinatorId("c1")).open()


def test_a_log_that_another_life_has_open_is_refused(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    with pytest.raises(ConfigurationError, match="another process"):
        WriteAheadLog(tmp_path, ME).open()
    log.close()
    opened(tmp_path)[0].close()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot use its log"):
        opened(tmp_path / "file")


# ---- crashes and full disks ------------------------------------------------------------------------------------------


class Crashed(BaseException):
    """The process ended between two lines."""


def crash_before_line(number: int, act: Callable[[], Any]) -> bool:
    """Run `act` and end it before the `number`-th line that it executes in wal.py. False: it has fewer."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != wal.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                raise Crashed
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Crashed:
        return True
    finally:
        sys.settrace(old)
    return False


@pytest.mark.usefixtures("no_syncs")
@pytest.mark.parametrize("rewrite", [False, True], ids=["append", "rewrite"])
def test_a_crash_between_any_two_lines_leaves_the_state_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewrite: bool
) -> None:
    if rewrite:
        monkeypatch.setattr(wal, "REWRITE_BYTES", 0)
        monkeypatch.setattr(wal, "REWRITE_FACTOR", 0)
    after = Saved(HardState(Term(1), ME, 0), NOTHING, (Entry(Term(1), b"old"), Entry(Term(1), b"new")))
    number, outcomes = 0, set()
    while True:
        number += 1
        folder = tmp_path / str(number)
        log, saved = opened(folder)
        log.write([persist(1, b"old")], Saved(HardState(Term(1), ME, 0), NOTHING, after.entries[:1]))

        def write(log: WriteAheadLog = log) -> None:
            log.write([persist(2, b"new")], after)

        crashed = crash_before_line(number, write)
        found = reopened(log, folder)
        assert documents(found) in ([b"old"], [b"old", b"new"])
        outcomes.add(len(found.entries))
        if not crashed:
            break
    assert number > 10
    assert outcomes == {1, 2}
    assert documents(found) == [b"old", b"new"]


@pytest.mark.usefixtures("no_syncs")
def test_a_crash_between_any_two_lines_of_opening_loses_nothing(tmp_path: Path) -> None:
    number = 0
    whole = written(tmp_path, persist(1, b"kept"))
    while True:
        number += 1
        (tmp_path / "raft.log").write_bytes(whole + b"torn")
        log = WriteAheadLog(tmp_path, ME)
        crashed = crash_before_line(number, log.open)
        assert documents(reopened(log, tmp_path)) == [b"kept"]
        if not crashed:
            break
    assert number > 10


def test_after_a_failed_sync_the_log_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, saved = opened(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space left"):
            log.write([persist(1, b"a")], saved)
    with pytest.raises(OSError, match="earlier write failed"):
        log.write([persist(1, b"a")], saved)
    log.close()


def test_zlib_stands_in_where_google_crc32c_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    monkeypatch.setattr(wal, "CRC32C", wal._find_crc32c())
    assert written(tmp_path, persist(1, b"kept")).startswith(wal.ZLIB.magic)
    log, saved = opened(tmp_path)
    assert documents(saved) == [b"kept"]
    log.close()


@pytest.mark.skipif(wal.CRC32C is None, reason="google-crc32c is not installed")
def test_a_log_is_readable_after_google_crc32c_was_installed_and_says_so_after_it_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(wal, "CRC32C", None)
        written(tmp_path, persist(1, b"kept"))
    log, saved = opened(tmp_path)
    assert documents(saved) == [b"kept"]
    log.close()
    monkeypatch.setattr(wal, "CRC32C", None)
    with pytest.raises(ConfigurationError, match="install it again"):
        opened(tmp_path)
