"""A joiner and those whom it asks, each one a socket that says nothing."""

import socket

import pytest
import torch

from orch_core.contracts import codec
from orch_core.contracts.document import ViewMember
from orch_core.contracts.ids import WorkerId
from orch_core.dataplane.group import Blob
from orch_core.dataplane.shares import Packed, Share, checksum
from orch_core.dataplane.tcp import Header, Kind
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
        self._sock, _ = self._listener.accept()
        self._sock.settimeout(HANG_S)
        self._files += [self._sock, file := self._sock.makefile("rb")]
        greeting = codec.decode(Greeting, self._frame(file))
        assert greeting.follower == "w9.1"
        return codec.decode(Wish, self._frame(file))

    def send_state(self, step, *, number, wrong_by=0):
        """All of it, to who has dialled last."""
        packed = Packed.of(Blob({"version": 1}, [torch.arange(4.0) + step]))
        parts = packed.share(Share(0, 1))
        header = Header(
            *(Kind.SHARE_OF_STATE, step),
            bucket=number,
            part=1,
            signature=checksum(parts) ^ wrong_by,
            length=len(packed.text),
        )
        self._sock.sendall(b"".join([header.pack(), packed.text, *parts]))

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
        handover = Handover(4)
        following = Following(WorkerId("w9.1"), "token", lambda: [m.row for m in view], handover, lambda: None)
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


def test_who_stops_while_it_dials_leaves_no_connection(members, follow):
    """Whoever is taken in meanwhile follows nobody."""
    first, _ = members
    dialled = []

    def stops_in_between():
        while dialled:
            dialled.pop().stop()
        return [first.row]

    following = Following(WorkerId("w9.1"), "token", stops_in_between, Handover(4), lambda: None)
    dialled.append(following)
    following.start()
    following._thread.join(HANG_S)
    assert not following._thread.is_alive()
    assert not any(link.alive for link in following._stage.links)
    assert not following.lost


def test_a_share_with_a_wrong_checksum_is_not_taken_and_its_sender_is_asked_again(members, follow):
    first, _ = members
    following = follow([first])
    first.wish()
    first.send_state(5, number=1, wrong_by=1)
    assert first.wish() == Wish("state", 2, None, 0, 1)
    assert not following._handover.follows
    first.send_state(6, number=2)
    assert following._handover.next_word().step == 6


def test_what_was_asked_for_in_another_cut_is_read_and_forgotten(members, follow):
    first, _ = members
    following = follow([first])
    first.wish()
    first.send_state(5, number=7)
    first.send_state(6, number=1)
    assert following._handover.next_word().step == 6
