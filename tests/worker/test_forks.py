import os
import signal
import socket
import subprocess
import sys
import textwrap

from orch_core.worker import forks


def connected():
    server = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(server.getsockname())
    far, _ = server.accept()
    return server, near, far


def fork_and_hold():
    """A child that does nothing but hold what it inherited."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, b"x")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return pid


def test_a_forked_child_does_not_keep_a_watched_connection_open():
    server, near, far = connected()
    forks.watch(near)
    pid = fork_and_hold()
    try:
        near.close()
        far.settimeout(10)
        assert far.recv(1) == b""
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        far.close()
        server.close()


def test_a_forked_child_does_not_keep_a_connection_to_a_coordinators_port_open():
    server, near, far = connected()
    forks.watch_ports([server.getsockname()[1]])
    pid = fork_and_hold()
    try:
        near.close()
        far.settimeout(10)
        assert far.recv(1) == b""
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        far.close()
        server.close()


def test_a_child_follows_its_killed_parent():
    program = """
        import os, signal
        from orch_core.worker import forks
        parent = os.getpid()
        ready, tell = os.pipe()
        if os.fork() == 0:
            forks.follow_parent(parent)
            os.write(tell, b"x")
            signal.pause()
        os.read(ready, 1)
        os.kill(parent, signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL  # and run() returned: nobody holds the pipe any more
