import json
import os
import subprocess
import sys

import pytest

from orch_core.agent import folder as folders
from orch_core.cli import main
from orch_core.contracts.job import JobSpec


def orch(*args, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "orch_core.cli.main", *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("print('never runs')\n")
    return path


@pytest.fixture
def code(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main.main(list(args))
        told = capsys.readouterr()
        return caught.value.code, told.out, told.err

    return run


def test_a_home_below_a_file_is_exit_2_with_the_path(code, script, tmp_path, monkeypatch):
    (tmp_path / "plain-file").write_text("")
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "plain-file" / "home"))
    exit_code, _, err = code("run", "--workers", "1", str(script))
    assert exit_code == 2
    assert "plain-file" in err
    assert err.count("\n") == 1


def test_a_full_disk_is_exit_2_with_the_path(code, script, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_check_space", full)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    exit_code, _, err = code("run", "--workers", "1", "--job", "mine", str(script))
    assert exit_code == 2
    assert str(tmp_path / "home" / "mine") in err
    assert "No space left" in err


def test_a_living_job_name_is_exit_2(code, script, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    held = folders.claim(tmp_path / "home", "mine")
    exit_code, _, err = code("run", "--workers", "1", "--job", "mine", str(script))
    held.close()
    assert exit_code == 2
    assert "'mine' is running" in err


@pytest.mark.parametrize("verb", ["status", "stop", "logs"])
def test_without_a_job_each_verb_says_so(code, tmp_path, monkeypatch, verb):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "nowhere"))
    exit_code, out, err = code(verb)
    assert exit_code == 2
    assert "no job is running in" in err
    assert out == ""
    exit_code, out, err = code(verb, "--job", "x")
    assert exit_code == 2
    assert "there is no job called 'x'" in err


def test_stop_of_a_job_that_is_over_says_so(code, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    ended_job(tmp_path)
    exit_code, _, err = code("stop", "--job", "old")
    assert exit_code == 2
    assert "job old is not running" in err


def test_the_agent_and_its_command_never_load_torch(tmp_path):
    modules = "orch_core.agent.host, orch_core.cli.run, orch_core.cli.display, orch_core.cli.status"
    program = f"import sys, {modules}\nsys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], check=False)
    assert told.returncode == 0


def ended_job(root, summary=None):
    folder = folders.claim(root, "old")
    folder.describe(JobSpec(name="old"), 1)
    if summary is not None:
        (folder.path / "summary.json").write_text(json.dumps(summary))
    folder.close()
    return folder.path
