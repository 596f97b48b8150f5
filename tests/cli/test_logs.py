import threading

import pytest

from orch_core.agent import folder as folders
from orch_core.cli import main
from orch_core.contracts.job import JobSpec


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    one = folders.claim(tmp_path, "job")
    one.describe(JobSpec(name="job"), 1)
    for worker in ("w0.1", "w1.1", "w1.2", "w10.1", "w2.1"):
        one.log_of(worker).write_bytes(f"{worker} says größe\n".encode() + b"\xff\n")
    (one.path / "coordinator-c0" / "log").write_text("event=starting\n")
    yield one
    one.close()


@pytest.fixture
def orch(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main.main(list(args))
        told = capsys.readouterr()
        return caught.value.code, told.out, told.err

    return run


def test_all_logs_come_in_the_order_of_places_with_their_workers(folder, orch):
    code, out, _ = orch("logs")
    assert code == 0
    assert [line.split(" ")[0] for line in out.splitlines()[::2]] == ["w0.1", "w1.1", "w1.2", "w2.1", "w10.1"]


def test_a_place_means_its_newest_life(folder, orch):
    assert orch("logs", "w1")[1] == "w1.2 says größe\n\ufffd\n"
    assert orch("logs", "w1.1")[1] == "w1.1 says größe\n\ufffd\n"


def test_a_coordinator_has_a_log_too(folder, orch):
    assert orch("logs", "c0")[1] == "event=starting\n"


@pytest.mark.parametrize("which", ["w7", "nobody", "../job"])
def test_an_unknown_worker_is_a_sentence_that_names_the_known_ones(folder, orch, which):
    code, _, err = orch("logs", which)
    assert code == 2
    assert "w0.1, w1.1" in err


def test_following_ends_with_the_job(folder, orch):
    def end():
        with folder.log_of("w0.1").open("a") as file:
            file.write("late\n")
        folder.close()

    timer = threading.Timer(0.3, end)
    timer.start()
    code, out, _ = orch("logs", "-f", "w0")
    timer.join()
    assert code == 0
    assert out.startswith("w0.1 says")
    assert out.endswith("late\n")
