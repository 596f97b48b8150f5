import multiprocessing
import os
import signal

from orch_core.contracts.ids import Shard, Step
from orch_core.contracts.note import SAMPLES_KEPT, NoteWriter, read_note
from orch_core.contracts.status import Note


def test_the_newest_note_is_read(tmp_path):
    with NoteWriter(tmp_path / "notes" / "w0.1") as writer:
        for step in range(5):
            writer.write(Note(Step(step), Shard(2), (7, 8)))
            assert read_note(tmp_path / "notes" / "w0.1") == Note(Step(step), Shard(2), (7, 8))


def test_no_file_no_note_and_no_pass_are_no_note(tmp_path):
    assert read_note(tmp_path / "none") is None
    with NoteWriter(tmp_path / "w0.1") as writer:
        assert read_note(tmp_path / "w0.1") is None
        writer.write(Note(Step(1), Shard(2)))
        writer.write(None)
        assert read_note(tmp_path / "w0.1") is None


def test_a_note_that_was_cut_in_half_leaves_the_one_before(tmp_path):
    path = tmp_path / "w0.1"
    with NoteWriter(path) as writer:
        writer.write(Note(Step(1), Shard(2)))
        writer.write(Note(Step(2), Shard(3)))
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF  # in the second slot's place of the newest one
    path.write_bytes(data)
    assert read_note(path) == Note(Step(1), Shard(2))


def test_very_many_samples_are_cut(tmp_path):
    with NoteWriter(tmp_path / "w0.1") as writer:
        writer.write(Note(Step(1), Shard(2), tuple(range(10**7, 10**7 + 5000))))
    note = read_note(tmp_path / "w0.1")
    assert note is not None
    assert len(note.samples) == SAMPLES_KEPT


def write_and_die(path):
    writer = NoteWriter(path)
    writer.write(Note(Step(9), Shard(1), (5,)))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_note_survives_the_kill_of_its_writer(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(tmp_path / "w0.1",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_note(tmp_path / "w0.1") == Note(Step(9), Shard(1), (5,))
