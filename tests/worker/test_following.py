"""A joiner and those whom it asks, each one a socket that says nothing."""

import socket

import pytest

from orch_core.contracts import codec
from orch_core.contracts.document import ViewMember
from orch_core.contracts.ids import WorkerId
from orch_core.worker.feeds import Wish
from orch_core.worker.following import Following
from orch_core.worker.handover import Handover
from orch_core.worker.peers import _LENGTH, Greeting

HANG_S = 20.0


class Member:
    """Hears what is asked of it."""

    def __init__(self, name):
        self.worker = WorkerId(name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(HANG_S)
        self._files = []

    @property
    def row(self):
        return ViewMember(self.worker, f"127.0.0.1:{self._listener.getsockname()[1]}")

    def wish(self):
        """Of the next one that dials."""
        sock, _ = self._listener.accept()
        sock.settimeout(HANG_S)
        self._files.append(file := sock.makefile("rb"))
        sock.close()
        greeting = codec.decode(Greeting, self._frame(file))
        assert greeting.follower == "w9.1"
        return codec.decode(Wish, self._frame(file))

    def _frame(self, file):
        return file.read(_LENGTH.unpack(file.read(_LENGTH.size))[0])

    def close(self):
        for closable in (*self._files, self._listener):
            closable.close()


@pytest.fixture
def members():
    made = [Member("w0.1"), Member("w1.1")]
    yield made
    for member in made:
        member.close()


@pytest.fixture
def follow():
    started = []

    def make(view):
        following = Following(WorkerId("w9.1"), "token", lambda: [m.row for m in view], Handover(4), lambda: None)
        started.append(following)
        following.start()
        return following

    yield make
    for following in started:
        following.stop()
        following._thread.join(HANG_S)


def test_who_becomes_a_member_before_a_state_is_captured_is_asked_too(members, follow):
    first, second = members
    view = [first]
    following = follow(view)
    assert first.wish() == Wish("state", 1, None, 0, 1)
    view.append(second)
    following.seen([m.worker for m in view])
    assert first.wish() == Wish("state", 2, None, 0, 2)
    assert second.wish() == Wish("state", 2, None, 1, 2)


def test_whose_members_stay_the_same_is_asked_once(members, follow):
    first, second = members
    following = follow(members)
    assert first.wish() == Wish("state", 1, None, 0, 2)
    assert second.wish() == Wish("state", 1, None, 1, 2)
    following.seen(["w0.1", "w1.1"])
    following.seen(["w0.1", "w1.1", "w9.1"])  # its own membership is no newcomer
    assert all(link.alive for link in following._stage.links)
