"""The process entry of a worker: whatever ends a script becomes an exit code and a report. No coordinator answers here,
which is no news for a worker."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from orch_core.contracts import codec
from orch_core.contracts.document import Failure
from orch_core.contracts.ids import CoordinatorId, JobName
from orch_core.contracts.job import CoordinatorAddress, JobFile, JobSpec

HANG_S = 120
EVICTED = 75


@pytest.fixture
def start(tmp_path):
    """Start a worker on a script (or a module) and return its Popen."""
    folder = tmp_path / "job"
    folder.mkdir()
    spec = JobSpec(JobName("test"), seed=7, shards=5)
    dead = CoordinatorAddress(CoordinatorId("c0"), "127.0.0.1:9")
    (folder / "job.json").write_bytes(codec.encode(JobFile(JobName("test"), os.getpid(), (dead,), "secret", spec, 0.0)))
    started = []

    def begin(script, *args, module=None, env=None):
        path = tmp_path / "sub" / "train.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(script))
        target = ["-m", module] if module else [str(path)]
        started.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "orch_core.worker.main", *target, *args],
                cwd=tmp_path,
                env={**os.environ, "ORCH_WORKER": "w1.2", "ORCH_JOB_FOLDER": str(folder), **(env or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def ended(start, tmp_path):
    """Run a worker to its end: exit code, output, errors and the failure it reports."""

    def run(script, *args, **options):
        process = start(script, *args, **options)
        out, err = process.communicate(timeout=HANG_S)
        path = tmp_path / "job" / "failures" / "w1.2.json"
        failure = codec.decode(Failure, path.read_bytes()) if path.exists() else None
        return process.returncode, out, err, failure

    return run


def test_a_script_finds_itself_as_under_python(ended, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside.py").write_text("value = 42")
    code, out, err, failure = ended(
        """
        import json, os, pickle, sys
        import beside

        class Mine:
            pass

        assert type(pickle.loads(pickle.dumps(Mine()))) is Mine
        assert sys.modules["__main__"].Mine is Mine
        print(json.dumps([__name__, os.path.basename(__file__), sys.argv[1:], sys.path[0], beside.value]))
        """,
        "--workers",
        "x y",
    )
    assert (code, err, failure) == (0, "", None)
    assert json.loads(out) == ["__main__", "train.py", ["--workers", "x y"], str(tmp_path / "sub"), 42]


def test_a_module_runs_as_under_python_dash_m(ended, tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("value = 1")
    (package / "__main__.py").write_text(
        "from .other import value\nimport sys\nprint(value, sys.argv[1:], __package__)"
    )
    code, out, err, _ = ended("", "a", module="pack")
    assert (code, out, err) == (0, "1 ['a'] pack\n", "")


@pytest.mark.parametrize("how", ["sys.exit()", "sys.exit(0)", "sys.exit(False)", "raise SystemExit"])
def test_an_exit_with_nothing_is_a_success(ended, how):
    code, _, err, failure = ended(f"import sys\n{how}")
    assert (code, err, failure) == (0, "", None)


def test_an_exit_with_something_is_a_failure(ended):
    code, _, err, failure = ended("import sys\nsys.exit('no data here')")
    assert code == 1
    assert "no data here" in err
    assert failure.kind == "exit"
    assert "no data here" in failure.message


def test_an_exception_is_reported_with_the_scripts_own_lines(ended):
    code, _, err, failure = ended(
        """
        import orch_core as orch

        def broken():
            raise ValueError("primary cause")

        run = orch.init()
        broken()
        """
    )
    assert code == 1
    assert (failure.worker, failure.kind, failure.message) == ("w1.2", "script", "ValueError: primary cause")
    assert failure.exit_code == 1
    assert failure.at > 0
    for text in (err, failure.traceback):
        assert 'train.py", line 5, in broken' in text
        assert "orch_core" not in text


def test_a_mistake_in_the_use_of_orch_is_one_sentence_and_exit_code_2(ended):
    code, _, err, failure = ended(
        """
        import torch, orch_core as orch
        run = orch.init()
        run.prepare(torch.nn.Linear(1, 1))
        for epoch in run.epochs("three"):
            pass
        """
    )
    assert code == failure.exit_code == 2
    assert failure.kind == "configuration"
    assert "Traceback" not in err
    assert err.startswith("orch: run.epochs('three')")
    assert "line 5" in err


def test_a_script_that_cannot_be_compiled_or_found_is_reported(ended):
    code, _, err, failure = ended("x = = 1")
    assert code == 1
    assert "SyntaxError" in err
    assert failure.message.startswith("SyntaxError")
    code, _, err, _ = ended("", module="surely_absent_qz")
    assert code == 2
    assert "no module surely_absent_qz" in err


def test_a_process_group_of_torch_gets_a_hint(ended):
    code, _, err, failure = ended("import torch.distributed as d\nd.init_process_group('gloo')")
    assert code == 1
    assert "nothing of torch.distributed is needed" in err
    assert "nothing of torch.distributed is needed" in failure.traceback


def test_an_interrupt_is_quiet(ended):
    code, _, err, failure = ended("raise KeyboardInterrupt")
    assert (code, err, failure) == (130, "", None)


def test_threads_that_linger_do_not_hold_the_process(ended):
    code, out, _, _ = ended(
        """
        import threading
        threading.Thread(target=threading.Event().wait).start()
        print("through")
        """
    )
    assert (code, out) == (0, "through\n")


def test_exit_handlers_of_the_script_run(ended):
    code, out, _, _ = ended("import atexit\natexit.register(print, 'bye')")
    assert (code, out) == (0, "bye\n")


def test_a_sigterm_before_membership_ends_the_worker_at_once_even_in_a_long_call(start):
    process = start("import ctypes\nprint('in C', flush=True)\nctypes.CDLL(None).sleep(600)")
    assert process.stdout.readline() == "in C\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == EVICTED


def test_a_sigterm_handler_of_the_scripts_own_is_called_first(start):
    process = start(
        """
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
        """
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == EVICTED
    assert process.stdout.read() == "mine\n"


def test_a_worker_without_its_job_says_so(ended):
    code, _, err, _ = ended("", env={"ORCH_JOB_FOLDER": "/nowhere"})
    assert code == 2
    assert "cannot find its job" in err
