import errno
import multiprocessing
import os
import signal

import pytest
import torch

from orch_core.contracts.errors import ConfigurationError
from orch_core.worker import save
from orch_core.worker.save import Saver


def test_a_job_of_one_writes_each_time(tmp_path):
    saver = Saver(None)
    saver.save(tmp_path / "m.pt", {"step": 1}, 1)
    saver.save(str(tmp_path / "m.pt"), {"step": 1, "again": True}, 1)
    assert torch.load(tmp_path / "m.pt", weights_only=True) == {"step": 1, "again": True}
    assert os.listdir(tmp_path) == ["m.pt"]


def test_of_several_members_one_writes_each_save(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(save, "_write", lambda target, obj: written.append(obj))
    (tmp_path / "job").mkdir()
    savers = [Saver(tmp_path / "job") for _ in range(3)]
    for step in (4, 9):
        for name, saver in zip("abc", savers, strict=True):
            saver.save(tmp_path / "m.pt", (step, name, 0), step)
            saver.save(tmp_path / "m.pt", (step, name, 1), step)
    savers[1].save(tmp_path / "m.pt", "late", 4)
    assert written == [(4, "a", 0), (4, "a", 1), (9, "a", 0), (9, "a", 1)]


def die_in_save(folder):
    real = os.replace
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL) if names[1].name == "m.pt" else real(*names)
    Saver(folder / "job").save(folder / "out" / "m.pt", {"writer": "killed"}, 3)


def test_a_writer_killed_on_the_way_leaves_the_save_to_the_next_and_no_litter(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "out").mkdir()
    process = multiprocessing.get_context("spawn").Process(target=die_in_save, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert os.listdir(tmp_path / "out") == [".m.pt.orch-tmp"]
    Saver(tmp_path / "job").save(tmp_path / "out" / "m.pt", {"writer": "next"}, 3)
    assert os.listdir(tmp_path / "out") == ["m.pt"]
    assert torch.load(tmp_path / "out" / "m.pt", weights_only=True) == {"writer": "next"}


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigurationError, match="there is no folder"):
        Saver(None).save(tmp_path / "none" / "m.pt", {}, 0)


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        Saver(None).save(tmp_path / "m.pt", lambda: None, 0)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, monkeypatch):
    real = open

    class Full:
        """A file on a disk with room for a hundred bytes."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            if self.file.tell() > 100:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    monkeypatch.setattr(save, "open", lambda *args: Full(real(*args)), raising=False)
    with pytest.raises(ConfigurationError, match=r"m\.pt'\) could not write the file: No space left on device$"):
        Saver(None).save(tmp_path / "m.pt", {"x": torch.zeros(10_000)}, 1)
    assert os.listdir(tmp_path) == []
