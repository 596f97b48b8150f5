"""For every test of the tree, the plugins' too: what a test starts, it ends."""

import threading
from collections.abc import Iterator

import psutil
import pytest

GRACE_S = 5.0  # to finish what is already ending
HELPERS = ("resource_tracker", "forkserver")  # multiprocessing keeps one of each for the whole session


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A child process or a non-daemon thread that outlives its test fails it, and is ended here."""
    if request.node.get_closest_marker("leaks_processes"):
        yield
        return
    children, threads = set(_children()), set(threading.enumerate())
    yield
    left = [child for child in _children() if child not in children]
    _, alive = psutil.wait_procs(left, timeout=GRACE_S) if left else ([], [])
    said = [_describe(child) for child in alive]
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=GRACE_S)
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon:
            thread.join(GRACE_S)
            if thread.is_alive():
                said.append(f"thread {thread.name}")
    if said:
        pytest.fail(f"left behind: {'; '.join(said)}", pytrace=False)


def _children() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if not any(name in _describe(child) for name in HELPERS)]


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({' '.join(process.cmdline())[:200] or process.name()})"
    except psutil.Error:
        return f"process {process.pid}"
