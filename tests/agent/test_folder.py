import os
import stat

import pytest

from orch_core.agent import folder as folders
from orch_core.contracts.errors import ConfigurationError
from orch_core.contracts.job import JobSpec


def test_a_described_job_can_be_read_by_others_and_is_private(tmp_path):
    folder = folders.claim(tmp_path, "job")
    described = folder.describe(JobSpec(name="job", args=("a b", "ü")), 3)
    assert folders.read_description(tmp_path / "job") == described
    assert stat.S_IMODE((tmp_path / "job" / "job.json").stat().st_mode) == 0o600
    assert len({c.address for c in described.coordinators} | {c.peer_address for c in described.coordinators}) == 6
    assert described.agent_pid == os.getpid()
    folder.close()


def test_a_name_that_is_alive_is_refused(tmp_path):
    folder = folders.claim(tmp_path, "job")
    with pytest.raises(ConfigurationError, match="is running"):
        folders.claim(tmp_path, "job")
    assert folders.is_living(tmp_path / "job")
    folder.close()
    assert not folders.is_living(tmp_path / "job")


def test_a_finished_job_of_the_name_makes_way_and_is_kept_once(tmp_path):
    for number in range(3):
        folder = folders.claim(tmp_path, "job")
        assert (folder.previous is None) is (number == 0)
        (folder.path / "mine").write_text(str(number))
        folder.close()
    assert (tmp_path / "job" / "mine").read_text() == "2"
    assert folder.previous == tmp_path / "job" / "previous"
    assert (tmp_path / "job" / "previous" / "mine").read_text() == "1"
    assert not (tmp_path / "job" / "previous" / "previous").exists()


def test_odd_paths_are_paths_like_others(tmp_path):
    root = tmp_path / "höme with space & $x's"
    folder = folders.claim(root, "job")
    folder.describe(JobSpec(name="job"), 1)
    assert folders.find(root, None) == root / "job"
    folder.close()


@pytest.mark.parametrize("root", ["plain-file", "plain-file/home", "/proc/nowhere"])
def test_an_unusable_home_is_one_sentence_with_the_path(tmp_path, root):
    (tmp_path / "plain-file").write_text("not a folder")
    with pytest.raises(ConfigurationError) as caught:
        folders.claim(tmp_path / root, "job")
    assert str(tmp_path / root / "job") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_newest_living_job_is_found_first(tmp_path):
    with pytest.raises(ConfigurationError, match="no job is running"):
        folders.find(tmp_path, None)
    held = []
    for name in ("one", "two"):
        folder = folders.claim(tmp_path, name)
        folder.describe(JobSpec(name=name), 1)
        held.append(folder)
    assert folders.find(tmp_path, None).name == "two"
    held[1].close()
    assert folders.find(tmp_path, None).name == "one"
    assert folders.find(tmp_path, None, living=False).name == "two"
    assert folders.find(tmp_path, "two").name == "two"
    with pytest.raises(ConfigurationError, match=r"no job called 'three'.*two, one"):
        folders.find(tmp_path, "three")
    held[0].close()


def test_a_reserved_port_is_nobody_elses(tmp_path):
    import socket

    folder = folders.claim(tmp_path, "job")
    address = folder.describe(JobSpec(name="job"), 1).coordinators[0].address
    host, port = address.split(":")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((host, int(port)))
    with socket.socket() as coordinator:
        coordinator.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        coordinator.bind((host, int(port)))
        coordinator.listen()
        with socket.create_connection((host, int(port)), 5):
            pass
    folder.close()


def test_a_made_up_name_is_a_folder_name_whatever_the_script_is_called():
    from orch_core.cli.run_checks import JOB_NAME

    for script in ("train.py", "a b/my träin.py", "package.module", "-x.py", "", "ü.py", "x" * 300):
        assert JOB_NAME.fullmatch(folders.made_up_name(script)), script


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    os.mkdir(tmp_path / f".summary.json.{os.getpid()}.tmp")  # in the way of the temporary file
    with pytest.raises(OSError, match="directory"):
        folders.write_atomically(path, b"new")
    os.rmdir(tmp_path / f".summary.json.{os.getpid()}.tmp")
    assert path.read_text() == "old"
    folders.write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["summary.json"]
    folders.write_atomically(folders.Path("/dev/null"), b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
