"""The process entry of a worker: ``python -m orch_core.worker.main SCRIPT [ARGS...]`` or ``-m MODULE [ARGS...]``.

Runs the script as Python itself would, with the keeper beside it, and turns whatever ends it into an exit code and a
report: 0, 1 (the script's fault), 2 (something to configure), 75 (left out of a view).
"""

import atexit
import builtins
import importlib.machinery
import importlib.util
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

from orch_core import failpoints
from orch_core.contracts.document import Failure
from orch_core.contracts.errors import ConfigurationError
from orch_core.worker import failure as failures
from orch_core.worker import run as runs
from orch_core.worker.handover import Handover
from orch_core.worker.keeper import Keeper, ignore_signal
from orch_core.worker.setting import Setting, read_setting

LINGER_S = 5.0  # a script that is through may have threads and exporters that are not
FLUSH_S = 0.2

Program = Callable[[], None]


def main(argv: Sequence[str]) -> int:
    """Does not return before the script has ended; see :func:`leave` for other ways out."""
    try:
        setting = read_setting()
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""), setting.worker)
    except ConfigurationError as error:
        print(f"orch: {error}", file=sys.stderr, flush=True)
        return 2
    logging.basicConfig(
        level=os.environ.get("ORCH_LOG", "WARNING").upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    handover = Handover(setting.spec.shards)
    keeper = Keeper(setting, handover, lambda code, reason: leave(setting, code, reason))
    keeper.start(_signals())
    run = runs.Run(setting, handover)
    runs.attach(run)
    code = _execute(setting, keeper, run, argv)
    _end_soon(code)
    return code


def leave(setting: Setting, code: int, reason: str) -> None:
    """End the process at once, from the keeper's thread: no line of the script runs any more."""
    if code not in (0, 75) and setting.folder is not None:
        failure = Failure(
            setting.worker, "configuration" if code == 2 else "orch", reason, exit_code=code, at=time.time()
        )
        failures.write_failure(setting.folder, failure)
        os.write(2, f"orch: {reason}\n".encode(errors="backslashreplace"))
    os._exit(code)


def _execute(setting: Setting, keeper: Keeper, run: "runs.Run", argv: Sequence[str]) -> int:
    try:
        program = _program(argv)
        try:
            program()
        except SystemExit as error:
            if error.code not in (None, 0, False):
                raise
        run.settle()
    except KeyboardInterrupt:
        run.failed = True
        return 130
    except BaseException as error:  # noqa: BLE001 - the edge: whatever the script raises ends here
        run.failed = True
        return _fail(setting, keeper, run, error)
    return 0


def _fail(setting: Setting, keeper: Keeper, run: "runs.Run", error: BaseException) -> int:
    at = time.time()
    failures.add_hints(error, run)
    failure = failures.report(error, run, setting.worker, at)
    if setting.folder is not None:
        failures.write_failure(setting.folder, failure)
    keeper.fail(failure)
    if isinstance(error, SystemExit) and isinstance(error.code, str):
        print(error.code, file=sys.stderr)
    print(failures.shown(failure), file=sys.stderr, flush=True)
    time.sleep(FLUSH_S)
    return failure.exit_code


# ---------------------------------------------------------------- the script


def _program(argv: Sequence[str]) -> Program:
    """Set the process up as Python would for this script or module. Raises ConfigurationError, SyntaxError."""
    if argv[:1] == ["-m"] and len(argv) > 1:
        return _module(argv[1], argv[2:])
    if not argv:
        raise ConfigurationError("there is no script to run: give its path, or -m and a module")
    return _script(argv[0], argv[1:])


def _script(path: str, arguments: Sequence[str]) -> Program:
    full = os.path.abspath(path)
    try:
        with io.open_code(full) as file:
            source = file.read()
    except OSError as error:
        raise ConfigurationError(f"the script {path} cannot be read: {error.strerror or error}") from error
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.realpath(full)))
    loader = importlib.machinery.SourceFileLoader("__main__", full)
    module = _main_module(full, None, None, loader)
    return lambda: exec(compile(source, full, "exec", dont_inherit=True), module.__dict__)


def _module(name: str, arguments: Sequence[str]) -> Program:
    sys.path.insert(0, os.getcwd())
    sys.argv = ["-m", *arguments]  # as Python has it while it looks for the module
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"there is no module {name}: {error}") from error
    if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
        raise ConfigurationError(f"there is no module {name} to run: look at its spelling and at the present folder")
    code = spec.loader.get_code(name)
    assert spec.origin is not None
    sys.argv = [spec.origin, *arguments]
    module = _main_module(spec.origin, spec.parent, spec, spec.loader)
    return lambda: exec(code, module.__dict__)  # type: ignore[arg-type]  # a source file always has code


def _main_module(path: str, package: str | None, spec: Any, loader: Any) -> types.ModuleType:
    """The script's own ``__main__``, so that its classes can be pickled, and found by processes that it starts."""
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __file__=path, __package__=package, __spec__=spec, __loader__=loader, __builtins__=builtins, __cached__=None
    )
    _kept.append(sys.modules["__main__"])
    sys.modules["__main__"] = module
    return module


_kept: list[types.ModuleType] = []


# ---------------------------------------------------------------- signals and the end


def _signals() -> socket.socket:
    """SIGTERM is the keeper's business, even while the script is in a long C call: it reads the number from a socket.

    A handler that the script installs replaces ours, and is called as ever.
    """
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, ignore_signal)
    _ends.append(theirs)
    return ours


_ends: list[socket.socket] = []


def _end_soon(code: int) -> None:
    """The script is through: what still runs in this process gets a moment, and the process ends with `code`."""
    threading.Thread(target=_end_late, args=(code,), name="orch-linger", daemon=True).start()


def _end_late(code: int) -> None:
    time.sleep(LINGER_S)
    os._exit(code)


def _end_now(codes: list[int]) -> None:
    """The last of all exit handlers. C++ destructors of libraries with threads have nothing to add, but may hang."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(codes[0] if codes else 1)


def enter() -> None:
    """As a process of its own."""
    codes: list[int] = []
    atexit.register(_end_now, codes)  # the first one that is registered is the last one that runs
    codes.append(main(sys.argv[1:]))
    sys.exit(codes[0])


if __name__ == "__main__":
    from orch_core.worker.main import enter as _enter  # not from __main__, which will be the script's

    _enter()
