"""What the kernel tells about a peer that does not answer, and about one that only takes its time."""

import shutil
import socket
import subprocess
import sys
import threading

import pytest

from orch_core.dataplane.group import Group, Link
from orch_core.dataplane.tcp import Header, Key, Kind, unreachable
from orch_core.testing.sync import side_by_side

CUT = """
import fcntl, socket, struct, sys
from orch_core.dataplane.group import Group, Link, LinkLost
from orch_core.dataplane.tcp import Header, Key, Kind

def loopback(up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x49 if up else 0x48))

def tcp():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        return dialled, listener.accept()[0]

def fill(header):
    yield [memoryview(bytearray(header.length))]

loopback(True)
(our_sender, their_receiver), (their_sender, our_receiver) = tcp(), tcp()
group = Group(0, {1: Link(our_sender, our_receiver)})
Group(1, {0: Link(their_sender, their_receiver)})
loopback(False)
if sys.argv[1] == "sending":
    group.send(1, Header(Kind.SUM, 0, length=1 << 24), [memoryview(bytes(1 << 24))])
else:
    group.expect(1, Key(Kind.SUM, 0), fill)
try:
    group.run()
except LinkLost as error:
    print("lost", error.peer)
"""


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        return dialled, listener.accept()[0]


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["sending", "waiting"])
def test_a_cut_network_is_noticed_within_seconds(doing: str) -> None:
    cut_off = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*cut_off, "true"], capture_output=True).returncode != 0:
        pytest.skip("no network namespaces here")
    done = subprocess.run(
        [*cut_off, sys.executable, "-c", CUT, doing], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "lost 1\n", done.stderr


@pytest.mark.slow
def test_a_peer_in_a_long_pass_is_not_taken_for_a_lost_one() -> None:
    """It reads nothing for longer than any deadline of ours, with more data on its way than the sockets hold."""
    (our_sender, their_receiver), (their_sender, our_receiver) = tcp(), tcp()
    groups = [Group(0, {1: Link(our_sender, our_receiver)}), Group(1, {0: Link(their_sender, their_receiver)})]
    data, got = bytes(1 << 26), bytearray(1 << 26)
    groups[0].send(1, Header(Kind.SUM, 0, length=len(data)), [memoryview(data)])
    groups[1].expect(0, Key(Kind.SUM, 0), lambda _: (part for part in [[memoryview(got)]]))
    long_pass = threading.Event()

    def receive() -> None:
        long_pass.wait(4.0)
        groups[1].run()

    assert side_by_side([groups[0].run, receive]) == [None, None]
    for group in groups:
        group.close()


def test_a_link_that_is_no_tcp_has_nothing_to_tell() -> None:
    left, right = socket.socketpair()
    assert unreachable(left) == ""
    left.close()
    right.close()
