"""A process that has imported what every worker imports, and from which workers are born by a fork.

``python -P -m orch_core.worker.nursery [--bare] AGENT CONTROL SCRIPT [ARGS...]``, where AGENT is the agent's pid and
CONTROL the number of a socket that is inherited from it. It says ``ready`` there once. From then on each message brings
four descriptors: an *order* (a memory file with arguments and environment), the worker's output, its working directory,
and a *cradle*, a socket over which the agent hears of this one birth:

* ``pid N`` from here, as soon as the process exists, or ``no WHY``;
* ``ready N`` from the new process, when it is all that a worker is before its first line;
* ``go`` from the agent. Without it nothing runs: if the agent has given up, the cradle is closed and the process ends.

So the agent alone decides whether a birth counts, and this process may be killed or stopped at any moment.

A fork must be all but indistinguishable from a program that was just started, so nothing here may start a thread, open
a device or keep a descriptor. Beside orch and torch the imports with which the script *begins* are made here, up to its
first line that is anything else and as long as they are the standard library's or installed packages: these are what it
would import anyway, before it can do anything. If that starts a thread or a device, this process begins anew without.

**The agent is the parent.** A worker is cloned with CLONE_PARENT: it is the agent's child from its first instruction
on, so the agent reaps it, and the nursery's death is not its own. ``os.fork`` cannot do that, and the alternative, a
double fork under a subreaper, makes the agent adopt every orphan of its workers at the very moment when one was killed.
The C library is told of the new process as its own fork would tell it: its idea of the thread's id is written by the
kernel, the list of robust locks registered again. Its handlers around a fork are not called; those of libraries that
are loaded here care for threads (there are none) or for devices (likewise).
"""

import ast
import contextlib
import ctypes
import gc
import importlib.machinery
import importlib.util
import io
import json
import multiprocessing.process
import os
import platform
import select
import signal
import site
import socket
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import orch_core.worker.main as worker_main
from orch_core import plugins
from orch_core.contracts import codec
from orch_core.contracts.errors import ConfigurationError, OrchError
from orch_core.contracts.job import JobFile

BARE = "--bare"
PLACE_HOLDER = b"ORCH_WORKER=nursery"  # ... and some more characters, so that any worker's id fits
UNFIT = 3  # exit code: workers cannot be forked here, and trying again does not help

_PR_SET_PDEATHSIG, _PR_GET_TID_ADDRESS = 1, 40
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x00008000, 0x00200000, 0x01000000
#: clone, get_robust_list, set_robust_list; whether clone takes the thread's area before the address of the id
_CALLS = {"x86_64": (56, 274, 273, False), "aarch64": (220, 100, 99, True)}
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")

_libc = ctypes.PyDLL(None, use_errno=True)  # which keeps the interpreter's lock: there is one thread, and stays one
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Order:
    """What one worker is to be."""

    program: tuple[str, ...]  # as it would be executed
    environment: Mapping[str, str]

    @property
    def arguments(self) -> list[str]:
        """The script's path and its arguments, or -m, the module and its arguments."""
        return list(self.program[self.program.index(worker_main.__name__) + 1 :])


def main(argv: Sequence[str]) -> Order:
    """Returns in each worker; the nursery itself ends in here."""
    bare = argv[0] == BARE
    agent, number, *target = argv[bare:]
    control = socket.socket(fileno=int(number))
    control.set_inheritable(False)
    found = _script_of(target)
    with _finding_modules_beside(found):
        load()
        if found is not None and not bare:
            load_beginning(*found)
    if not bare and (why := unfit()):
        control.send(f"without: {why}".encode())
        control.set_inheritable(True)
        os.execv(sys.executable, [sys.executable, "-P", "-m", __name__, BARE, *argv])
    if why := unfit():
        control.send(f"unfit: {why}".encode())
        os._exit(UNFIT)
    gc.collect()
    gc.freeze()  # what is here is for ever: a collector that writes into it would copy its pages
    control.send(b"ready")
    return serve(control, int(agent))


def serve(control: socket.socket, agent: int) -> Order:
    """One order after the other, until the agent is gone. Returns in the worker."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, 16, 4, socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)
        if len(fds) == 4:
            order = _bear(control, agent, fds)
            if order is not None:
                return order
        for fd in fds:
            os.close(fd)


# ---------------------------------------------------------------- what is imported


def load() -> None:
    """What a worker needs before and in its first step, whatever its script."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first optimizer of a process imports half of torch
    try:
        job = codec.decode(JobFile, Path(os.environ["ORCH_JOB_FOLDER"], "job.json").read_bytes())
        plugins.installed().make_sync(job.spec.sync, job.spec.sync_options)
    except (OrchError, OSError, KeyError) as error:
        print(f"orch: {error}", file=sys.stderr)  # each worker will say so, too


def load_beginning(path: str, folder: str) -> None:
    """The script's first imports. What is wrong with them is the script's to say."""
    try:
        with io.open_code(path) as file:
            source = file.read()
        for statement in beginning(ast.parse(source), folder):
            exec(compile(ast.Module([statement], []), path, "exec", dont_inherit=True), {})
    except BaseException as error:  # noqa: BLE001 - code of others, which may even try to end the process
        print(f"orch: stopped at {type(error).__name__}: {error}", file=sys.stderr)


def beginning(module: ast.Module, folder: str) -> Iterator[ast.stmt]:
    """The imports that a script in `folder` starts with, as far as they are not of files of its user."""
    for statement in module.body:
        match statement:
            case ast.Expr(ast.Constant(str())) | ast.ImportFrom(module="__future__"):
                continue
            case ast.Import(names):
                roots = [alias.name.partition(".")[0] for alias in names]
            case ast.ImportFrom(module=str(name), level=0):
                roots = [name.partition(".")[0]]
            case _:
                return
        if not all(_is_installed(root, folder) for root in roots):
            return
        yield statement


def _is_installed(root: str, folder: str) -> bool:
    """Not a file beside the script, nor one that somebody is working on: those may do anything."""
    if importlib.machinery.PathFinder.find_spec(root, [folder]) is not None:
        return False
    if root in sys.modules or root in sys.stdlib_module_names:
        return True
    found = importlib.util.find_spec(root)
    if found is None or found.origin is None:
        return False
    paths = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
    return any(Path(found.origin).is_relative_to(path) for path in paths)


@contextlib.contextmanager
def _finding_modules_beside(found: tuple[str, str] | None) -> Iterator[None]:
    """Modules are looked for as they will be when the script runs."""
    before = list(sys.path)
    if found is not None:
        sys.path.insert(0, found[1])
    try:
        yield
    finally:
        sys.path[:] = before


def _script_of(target: Sequence[str]) -> tuple[str, str] | None:
    """Its file, and the folder in which it finds its own modules first."""
    if target[:1] != ["-m"]:
        full = os.path.abspath(target[0])
        return full, os.path.dirname(os.path.realpath(full))
    folder, name = os.getcwd(), target[1]
    found = None if "." in name else importlib.machinery.PathFinder.find_spec(name, [folder, *sys.path])
    if found is None or not isinstance(found.loader, importlib.machinery.SourceFileLoader) or found.origin is None:
        return None
    return None if found.submodule_search_locations is not None else (found.origin, folder)


def unfit() -> str:
    """Why a fork of this process would not be a worker; empty if it would."""
    if platform.machine() not in _CALLS:
        return f"it is not known how to clone on {platform.machine()}"
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        return f"there are {threads} threads"
    devices = [path for path in map(_link, os.listdir("/proc/self/fd")) if path.startswith(_DEVICES)]
    if devices or torch.cuda.is_initialized():
        return f"a device is in use: {', '.join(devices) or 'cuda'}"
    return ""


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


# ---------------------------------------------------------------- a birth


def _bear(control: socket.socket, agent: int, fds: Sequence[int]) -> Order | None:
    """The order in the new process, None in this one."""
    cradle = socket.socket(fileno=os.dup(fds[3]))
    if _given_up(cradle):
        cradle.close()
        return None
    if why := unfit():
        cradle.send(f"no {why}".encode())
        os._exit(UNFIT)
    try:
        pid = _clone()
    except OSError as error:
        cradle.send(f"no process: {error.strerror}".encode())
        cradle.close()
        return None
    if pid:
        try:
            cradle.send(f"pid {pid}".encode())
        except OSError:
            pass  # given up: the new process sees that, too
        cradle.close()
        return None
    try:
        return _become(control, cradle, agent, fds)
    except BaseException:  # noqa: BLE001 - a failed birth, which must not return into the nursery's loop
        traceback.print_exc()
        os._exit(1)


def _given_up(cradle: socket.socket) -> bool:
    poll = select.poll()
    poll.register(cradle, select.POLLRDHUP)
    return bool(poll.poll(0))


def _clone() -> int:
    """As ``os.fork()``, but for the parent. Raises OSError."""
    clone, get_robust, set_robust, area_first = _CALLS[platform.machine()]
    thread_id, robust, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(thread_id), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the address of the thread's id is unknown")
    _libc.syscall(ctypes.c_long(get_robust), ctypes.c_long(0), ctypes.byref(robust), ctypes.byref(size))
    flags = ctypes.c_ulong(_CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD)
    none = ctypes.c_void_p()
    tail = (none, thread_id) if area_first else (thread_id, none)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_libc.syscall(ctypes.c_long(clone), flags, none, none, *tail))
    error = ctypes.get_errno()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        if robust.value:
            _libc.syscall(ctypes.c_long(set_robust), robust, size)
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def _become(control: socket.socket, cradle: socket.socket, agent: int, fds: Sequence[int]) -> Order:
    """In the new process: be what :mod:`orch_core.agent.launch` and a start of Python make of a process."""
    order_fd, output, folder, spare = fds
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != agent:
        os._exit(0)
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.fchdir(folder)
    control.close()
    for fd in (output, folder, spare):
        os.close(fd)
    with open(order_fd, "rb") as file:
        file.seek(0)
        told = json.load(file)
    order = Order(tuple(told["program"]), told["environment"])
    _adapt(order.environment)
    _show(order)
    torch.default_generator.seed()  # Python's own is seeded again by every fork
    np.random.seed()
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # Python 3.11 forgets it
    multiprocessing.process.current_process().authkey = os.urandom(32)
    sys.orig_argv = list(order.program)
    sys.argv = [worker_main.__file__, *order.arguments]
    cradle.send(f"ready {os.getpid()}".encode())
    if cradle.recv(16) != b"go":
        os._exit(0)
    cradle.close()
    return order


def _adapt(wanted: Mapping[str, str]) -> None:
    """Have the wanted environment, with what the imports have changed in it, as after imports of one's own."""
    entries = (entry.partition(b"=") for entry in Path("/proc/self/environ").read_bytes().split(b"\0"))
    had = {os.fsdecode(name): os.fsdecode(value) for name, sign, value in entries if sign}
    for name in had.keys() - wanted.keys():
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in wanted.items() if had.get(name) != value})


def _show(order: Order) -> None:
    """Be seen from outside as the worker: the memory behind /proc/PID/environ and /proc/PID/cmdline is written over.

    The first tells whose a process is, also one that the worker has forked; the second is for people.
    """
    numbers = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    arguments, arguments_end, environment, environment_end = (int(n) for n in numbers[45:49])
    names = ctypes.string_at(environment, environment_end - environment)
    at = names.find(PLACE_HOLDER)
    if at >= 0 and (at == 0 or names[at - 1] == 0):
        room = names.index(b"\0", at) - at
        name = f"ORCH_WORKER={order.environment['ORCH_WORKER']}".encode()
        if len(name) > room:
            raise ConfigurationError(f"the id {name.decode()} is too long")
        ctypes.memmove(environment + at, name.ljust(room, b"\0"), room)
    room = arguments_end - arguments
    line = b"\0".join(map(os.fsencode, order.program))[: room - 1]
    ctypes.memmove(arguments, line.ljust(room, b"\0"), room)


def enter() -> None:
    """As a process of its own, and in each worker on the way to its own entry."""
    main(sys.argv[1:])
    worker_main.enter()


if __name__ == "__main__":
    from orch_core.worker.nursery import enter as _enter  # not from __main__, which will be the script's

    _enter()
