"""What a process that a worker forks must not keep: the worker's connections.

A killed worker is noticed because the kernel closes its sockets. A forked child (a data loader's, or any other of the
script's) that holds copies of them keeps them open, and nobody would notice. So after every fork the child replaces
each connection to another member or to a coordinator with /dev/null: the number stays taken, and whatever object
believes in it can do no harm.
"""

import ctypes
import os
import signal
import socket
import weakref
from collections.abc import Iterable

_PR_SET_PDEATHSIG = 1
_sockets: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()
_ports: set[int] = set()
_installed = False


def watch(*sockets: socket.socket) -> None:
    """These are the worker's own; children let go of them."""
    _sockets.update(sockets)
    _install()


def watch_ports(ports: Iterable[int]) -> None:
    """Connections to these ports are gRPC's, whose sockets nobody can ask for."""
    _ports.update(ports)
    _install()


def follow_parent(parent: int) -> None:
    """In a child: end with the process that forked it, however that one ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(0)


def _install() -> None:
    global _installed
    if not _installed:
        _installed = True
        os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    ours = {sock.fileno() for sock in list(_sockets)} - {-1}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in ours | (_connected_to(_ports) if _ports else set()):
        os.dup2(null, fd, inheritable=False)
    os.close(null)


def _connected_to(ports: set[int]) -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            other = socket.socket(fileno=fd)
        except OSError:
            continue
        try:
            if other.family in (socket.AF_INET, socket.AF_INET6) and other.getpeername()[1] in ports:
                found.add(fd)
        except OSError:
            pass  # not connected
        finally:
            other.detach()
    return found
