"""Workers that are forked are the workers that a cold start makes, and the agent has them as its own children.

One nursery serves most tests: it imports torch for seconds, and is meant to bear many.
"""

import asyncio
import json
import os
import signal
import textwrap
import time
from pathlib import Path

import pytest

from orch_core.agent import nursery as nurseries
from orch_core.agent.environment import nursery_environment, nursery_program, worker_environment, worker_program
from orch_core.agent.logs import LogPump
from orch_core.agent.nursery import Nursery
from orch_core.agent.process import Spawner
from orch_core.contracts import codec
from orch_core.contracts.ids import CoordinatorId, JobName
from orch_core.contracts.job import CoordinatorAddress, JobFile, JobSpec

HANG_S = 60.0


class Bench:
    """What a host has around its nursery. Nobody leads: workers do not mind."""

    def __init__(self, folder, script, env=None):
        self.folder, self.script = folder, folder / "train.py"
        self.script.write_text(textwrap.dedent(script))
        (folder / "logs").mkdir()
        self.spec = JobSpec(JobName("test"), seed=7, script=str(self.script), args=("--x", "a b", "\udcff"))
        dead = CoordinatorAddress(CoordinatorId("c0"), "127.0.0.1:9")
        job = JobFile(JobName("test"), os.getpid(), (dead,), "secret", self.spec, 0.0)
        (folder / "job.json").write_bytes(codec.encode(job))
        self.shared = {**os.environ, "PYTHONUNBUFFERED": "1", "ODD": "\udcfe=\n'", **(env or {})}
        self.runner = asyncio.Runner()
        self.changed = asyncio.Event()
        self.log = folder / "logs" / "nursery.out"

    def __enter__(self):
        self.runner.run(self._start())
        return self

    def __exit__(self, *_):
        self.runner.run(self._close())
        self.runner.close()

    async def _start(self):
        self.pump = LogPump(lambda *_: None, lambda *_: None)
        self.pump.start()
        self.spawner = Spawner(self.folder)
        self.nursery = Nursery(
            self.spawner,
            self.pump,
            self.log,
            lambda agent, control: nursery_program(self.spec, agent, control),
            nursery_environment(self.shared, self.spec),
            self.changed.set,
        )
        self.nursery.reconcile(time.monotonic())

    async def _close(self):
        self.nursery.close()
        await self.until(lambda: self.nursery._child is None)
        self.spawner.close()
        self.pump.close()

    async def until(self, condition):
        async with asyncio.timeout(HANG_S):
            while not condition():  # noqa: ASYNC110 - of files and processes, which tell nobody
                await asyncio.sleep(0.005)

    async def decided(self):
        await self.until(lambda: not self.nursery.is_warming(time.monotonic()))

    async def begin(self, worker, warm, code="", output=None):
        """(child or None, its output's path)"""
        (self.folder / f"{worker}.code").write_text(textwrap.dedent(code))
        path = self.folder / f"{worker}.out"
        path.unlink(missing_ok=True)
        env = worker_environment(self.shared, self.spec, worker)
        fd = self.pump.open(worker, path)
        born = asyncio.get_running_loop().create_future()
        try:
            if warm:
                birth = self.nursery.bear(worker, worker_program(self.spec), env, fd, born.set_result)
                child = None if birth is None else await born
            else:
                child = self.spawner.spawn(worker, worker_program(self.spec), env, fd)
        finally:
            os.close(fd)
        return child, path

    async def end(self, child):
        ended = asyncio.get_running_loop().create_future()
        child.watch(ended.set_result)
        async with asyncio.timeout(HANG_S):
            await ended
        self.spawner.forget(child)
        self.pump.ended(child.name)
        return child.exit_code

    def ended(self, worker, code, *, warm=True):
        """Run one worker to its end: exit code and output."""

        async def run():
            await self.decided()
            child, path = await self.begin(worker, warm, code)
            assert child is not None, self.log.read_text()
            return await self.end(child), path

        exit_code, path = self.runner.run(run())
        return exit_code, path.read_text()


#: A script that begins with imports and then runs what the test wants.
SCRIPT = """
import os
import sys
from sklearn.datasets import load_digits
with open(os.path.join(os.environ["ORCH_JOB_FOLDER"], os.environ["ORCH_WORKER"] + ".code")) as file:
    code = file.read()
exec(compile(code, "<code>", "exec"))
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with Bench(tmp_path_factory.mktemp("job"), SCRIPT) as bench:
        yield bench


LOOK = """
import ctypes, gc, json, logging, multiprocessing, resource, signal, threading
import torch
torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first one imports much, which sets variables, too

def status(*names):
    lines = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
    return {name: lines[name].strip() for name in names}

death = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(death), 0, 0, 0)
main = sys.modules["__main__"]
me = os.getpid()
own = open("/proc/self/environ", "rb").read().split(b"\\0")
told = {
    "environ": dict(os.environ), "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path,
    "flags": repr(sys.flags), "executable": sys.executable, "cwd": os.getcwd(),
    "ids": [os.getsid(0) == me, os.getpgid(0) == me, os.getppid()],

        "std": [os.readlink(f"/proc/self/fd/{n}")[:4] for n in (1, 2)],
    "same": os.readlink("/proc/self/fd/1") == os.readlink("/proc/self/fd/2"),
    "stdin": sys.stdin.read(), "death": death.value,
    "scheduler": [os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)],
    "status": status("SigBlk", "SigIgn", "SigCgt", "Umask", "Name"),
    "limits": [resource.getrlimit(n) for n in range(16)],
    "main": [main.__name__, main.__file__, main.__package__, repr(main.__spec__), type(main.__loader__).__name__],
    "streams": [[s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.seekable()]
                for s in (sys.stdout, sys.stderr)],
    "threads": sorted(t.name for t in threading.enumerate()), "native": threading.main_thread().native_id == me,
    "torch": [torch.get_num_threads(), torch.cuda.is_initialized()],
    "parent": repr(multiprocessing.parent_process()), "gc": [gc.isenabled(), gc.get_threshold()],
    "hash": hash("orch"), "limit": sys.getrecursionlimit(), "level": logging.getLogger().level,
    "seen": sorted(e.decode() for e in own if e.startswith((b"ORCH_WORKER=", b"ORCH_JOB_FOLDER="))),
    "cmdline": os.fsdecode(open("/proc/self/cmdline", "rb").read().rstrip(b"\\0")).split("\\0"),
    "modules": sorted(m for m in sys.modules if m.startswith(("orch_core.worker.n", "orch_core.agent"))),
}
print(json.dumps(told))
"""


def test_a_forked_worker_is_what_a_cold_start_makes(bench):
    worker = "w1.2"
    warm_code, warm = bench.ended(worker, LOOK)
    cold_code, cold = bench.ended(worker, LOOK, warm=False)
    assert (warm_code, cold_code) == (0, 0), (warm, cold)
    warm, cold = json.loads(warm), json.loads(cold)
    assert warm.pop("modules") == ["orch_core.worker.nursery"]
    assert cold.pop("modules") == []
    assert set(warm["environ"].items()) == set(cold["environ"].items())
    assert warm == cold
    assert warm["ids"] == [True, True, os.getpid()]
    assert warm["argv"] == [str(bench.script), "--x", "a b", "\udcff"]
    assert warm["environ"]["ODD"] == "\udcfe=\n'"
    assert warm["seen"] == [f"ORCH_JOB_FOLDER={bench.folder}", f"ORCH_WORKER={worker}"]
    assert warm["death"] == signal.SIGKILL


def test_nothing_that_the_nursery_or_the_agent_has_open_is_inherited(bench):
    async def run():
        await bench.decided()
        code = "import time\nos.mkdir('ready')\ntime.sleep(600)"  # at once, and with nothing open
        child, _ = await bench.begin("w2.5", True, f"os.chdir({str(bench.folder)!r})\n{code}")
        await bench.until(lambda: (bench.folder / "ready").exists())
        own = open_files(child.pid) - {os.readlink(f"/proc/{child.pid}/fd/1")}  # the agent reads that
        assert own & (open_files(bench.nursery._child.pid) | open_files(os.getpid())) == {"/dev/null"}
        assert {name for name in own if name.startswith("/")} == {"/dev/null", f"{bench.folder}/notes/w2.5"}
        child.kill()
        await bench.end(child)

    bench.runner.run(run())


def open_files(pid):
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(fd)
        except FileNotFoundError:
            continue
        if not name.startswith("anon_inode"):  # those have no names of their own
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os._exit(17)", 17),
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 1),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("os.abort()", -signal.SIGABRT),
        ("import signal; signal.raise_signal(signal.SIGSEGV)", -signal.SIGSEGV),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    ],
)
def test_exit_codes_and_signals_arrive(bench, end, code):
    assert bench.ended("w0.1", end)[0] == code


def test_an_error_of_the_script_looks_the_same(bench):
    warm = bench.ended("w0.5", "def broken():\n    raise ValueError('primary cause')\nbroken()")
    (bench.folder / "failures" / "w0.5.json").unlink()
    cold = bench.ended("w0.5", "def broken():\n    raise ValueError('primary cause')\nbroken()", warm=False)
    assert warm == cold
    assert warm[0] == 1
    assert "primary cause" in warm[1]
    assert "orch_core" not in warm[1]


def test_siblings_share_no_random_state(bench):
    code = """
import multiprocessing, random, tempfile, uuid
import numpy as np, torch
print(random.random(), torch.initial_seed(), torch.rand(1).item())
print(np.random.rand(), uuid.uuid4(), next(tempfile._get_candidate_names()),
      bytes(multiprocessing.current_process().authkey).hex())
"""
    rows = [bench.ended(f"w{place}.1", code)[1].split() for place in range(3)]
    assert all(len(set(column)) == 3 for column in zip(*rows, strict=True))


def test_what_a_worker_forks_is_known_by_its_id(bench):
    """The agent ends the helpers of a dead worker by what /proc says of them."""
    from orch_core.agent import guardian

    async def run():
        await bench.decided()
        code = (
            "import time\nif os.fork() == 0:\n    os.setsid()\nopen(f'{os.getpid()}.up', 'w').close()\ntime.sleep(600)"
        )
        child, _ = await bench.begin("w2.7", True, f"os.chdir({str(bench.folder)!r})\n{code}")
        await bench.until(lambda: len(list(bench.folder.glob("*.up"))) == 2)
        ids = {int(path.stem) for path in bench.folder.glob("*.up")}
        assert set(guardian.members(str(bench.folder), "w2.7")) == ids
        child.kill()
        await bench.end(child)
        assert guardian.sweep(str(bench.folder), "w2.7") == 1

    bench.runner.run(run())


def test_a_frozen_nursery_costs_half_a_second_and_leaves_no_process(bench):
    async def run():
        await bench.decided()
        os.kill(bench.nursery._child.pid, signal.SIGSTOP)
        began = time.monotonic()
        child, _ = await bench.begin("w0.1", True)
        assert child is None
        assert time.monotonic() - began < 5 * nurseries.SLOW_S
        os.kill(bench.nursery._child.pid, signal.SIGCONT)
        child, path = await bench.begin("w1.1", True, "print('later')")
        assert await bench.end(child) == 0
        await bench.until(lambda: path.read_text() == "later\n")

    bench.runner.run(run())
    assert bench.folder.joinpath("w0.1.out").read_text() == ""


def test_the_death_of_the_nursery_is_not_its_workers_and_another_one_comes(tmp_path):
    script = """
import os, time
name = os.environ["ORCH_JOB_FOLDER"] + "/" + os.environ["ORCH_WORKER"]
open(name + ".up", "w").close()
while not os.path.exists(name + ".go"):
    time.sleep(0.01)
os._exit(21)
"""
    with Bench(tmp_path, script) as bench:

        async def run():
            await bench.decided()
            child, _ = await bench.begin("w0.1", True)
            await bench.until(lambda: (tmp_path / "w0.1.up").exists())
            first = bench.nursery._child.pid
            os.kill(first, signal.SIGKILL)
            began = time.monotonic()
            nothing, _ = await bench.begin("w1.1", True)
            assert nothing is None
            assert time.monotonic() - began < 2 * nurseries.SLOW_S
            await bench.until(lambda: bench.nursery._child is None)
            bench.nursery._due_at = 0.0
            bench.nursery.reconcile(time.monotonic())
            await bench.until(lambda: bench.nursery._ready_at is not None)
            assert bench.nursery._child.pid != first
            other, _ = await bench.begin("w1.2", True)
            await bench.until(lambda: (tmp_path / "w1.2.up").exists())
            assert child.alive
            for name in ("w0.1.go", "w1.2.go"):
                (tmp_path / name).touch()
            assert [await bench.end(child), await bench.end(other)] == [21, 21]

        bench.runner.run(run())


THREADED = """
import sys, threading, time
class Finder:
    def find_spec(self, name, *_):
        if name in {names!r}:
            threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(("names", "forked"), [(["this"], True), (["torch"], False)])
def test_imports_that_start_threads_are_left_to_the_workers(tmp_path, names, forked):
    (tmp_path / "sitecustomize.py").write_text(THREADED.format(names=names))
    with Bench(tmp_path, "import this\nprint('through')", {"PYTHONPATH": str(tmp_path)}) as bench:

        async def run():
            await bench.decided()
            child, path = await bench.begin("w0.1", True)
            if not forked:
                assert child is None
                assert bench.nursery.reconcile(time.monotonic()) is None, "it should not be tried again"
                return
            assert await bench.end(child) == 0
            await bench.until(lambda: path.read_text().endswith("through\n"))
            assert path.read_text().startswith("The Zen"), "the script's own import prints"

        bench.runner.run(run())
