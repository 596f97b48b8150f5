import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from orch_core.contracts.errors import MalformedMessage, ViewBroken
from orch_core.dataplane.group import Blob, Group, Link, LinkLost
from orch_core.dataplane.tcp import Fill, Header, Key, Kind, UnexpectedFrame, bytes_of
from orch_core.testing.sync import connect, side_by_side


@pytest.fixture
def pair() -> Iterator[list[Group]]:
    groups = connect(2)
    yield groups
    for group in groups:
        group.close()


def into(buffer: bytearray) -> Callable[[Header], Fill]:
    def fill(header: Header) -> Fill:
        yield [memoryview(buffer)[: header.length]]

    return fill


def test_everybody_sends_to_everybody_at_once_more_than_sockets_hold() -> None:
    groups = connect(4)
    size = 3_000_001
    got = {(me, peer): bytearray(size) for me in range(4) for peer in range(4) if me != peer}
    for me, group in enumerate(groups):
        for peer in group.peers:
            group.send(peer, Header(Kind.SUM, 5, length=size), [memoryview(bytes([me]) * size)])
            group.expect(peer, Key(Kind.SUM, 5), into(got[me, peer]))
    assert side_by_side([group.run for group in groups]) == [None] * 4
    assert all(data == bytes([peer]) * size for (_, peer), data in got.items())
    for group in groups:
        group.close()


def test_a_fill_may_send_and_frames_may_come_in_any_order(pair: list[Group]) -> None:
    left, right = pair
    echoed, first, second = bytearray(3), bytearray(1), bytearray(1)

    def echo(header: Header) -> Fill:
        data = bytearray(header.length)
        yield [memoryview(data)]
        right.send(0, Header(Kind.SUM, 0, length=3), [memoryview(data)])

    left.send(1, Header(Kind.PARTIALS, 0, part=1, length=1), [memoryview(b"b")])
    left.send(1, Header(Kind.PARTIALS, 0, part=0, length=1), [memoryview(b"a")])
    left.send(1, Header(Kind.STATE, 0, length=3), [memoryview(b"abc")])
    left.expect(1, Key(Kind.SUM, 0), into(echoed))
    right.expect(0, Key(Kind.PARTIALS, 0, part=0), into(first))
    right.expect(0, Key(Kind.PARTIALS, 0, part=1), into(second))
    right.expect(0, Key(Kind.STATE, 0), echo)
    assert side_by_side([left.run, right.run]) == [None, None]
    assert (bytes(echoed), bytes(first), bytes(second)) == (b"abc", b"a", b"b")


def test_a_peer_may_be_one_exchange_ahead(pair: list[Group]) -> None:
    left, right = pair
    now, later = bytearray(1), bytearray(1)
    left.send(1, Header(Kind.SUM, 1, length=1), [memoryview(b"1")])
    left.send(1, Header(Kind.SUM, 2, length=1), [memoryview(b"2")])
    left.run()
    right.expect(0, Key(Kind.SUM, 1), into(now))
    right.run()
    right.expect(0, Key(Kind.SUM, 2), into(later))
    right.run()
    assert (now, later) == (b"1", b"2")


def test_an_unexpected_frame_names_both(pair: list[Group]) -> None:
    left, right = pair
    left.send(1, Header(Kind.BARRIER, 7, length=0))
    left.run()
    right.expect(0, Key(Kind.SUM, 7, bucket=2, round=1), into(bytearray()))
    with pytest.raises(
        UnexpectedFrame, match="sent the barrier of step 7, but round 1 of bucket 2 in step 7 was expected"
    ):
        right.run()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n" * 2, b"\0" * 64])
def test_nonsense_is_malformed_and_names_the_peer(data: bytes) -> None:
    ours, theirs = socket.socketpair(), socket.socketpair()
    group = Group(0, {3: Link(ours[0], theirs[1])})
    group.expect(3, Key(Kind.SUM, 0), into(bytearray()))
    theirs[0].send(data)
    with pytest.raises(MalformedMessage, match="member 3: a data frame starts with"):
        group.run()
    group.close()
    ours[1].close()
    theirs[0].close()


def test_a_closed_link_names_the_peer() -> None:
    groups = connect(3)
    groups[0].expect(1, Key(Kind.SUM, 0), into(bytearray(1)))
    groups[0].expect(2, Key(Kind.SUM, 0), into(bytearray(1)))
    groups[2].close()
    with pytest.raises(LinkLost) as caught:
        groups[0].run()
    assert caught.value.peer == 2
    assert isinstance(caught.value, ViewBroken)
    for group in groups:
        group.close()


def test_sending_to_a_closed_link_names_the_peer(pair: list[Group]) -> None:
    pair[1].close()
    pair[0].send(1, Header(Kind.SUM, 0, length=1 << 24), [memoryview(bytes(1 << 24))])
    with pytest.raises(LinkLost) as caught:
        pair[0].run()
    assert caught.value.peer == 1


def test_abort_wakes_who_waits(pair: list[Group]) -> None:
    pair[0].expect(1, Key(Kind.SUM, 0), into(bytearray(1)))
    outcome: list[BaseException] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            pair[0].run()
        except ViewBroken as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(30)
    pair[0].abort()
    thread.join(30)
    assert not thread.is_alive()
    assert not isinstance(outcome[0], LinkLost)


def test_after_an_abort_nothing_runs_and_the_peer_sees_a_broken_link(pair: list[Group]) -> None:
    pair[0].abort()
    pair[0].abort()
    assert pair[0].aborted
    with pytest.raises(ViewBroken):
        pair[0].run()
    pair[1].expect(0, Key(Kind.SUM, 0), into(bytearray(1)))
    with pytest.raises(LinkLost):
        pair[1].run()


def test_blobs_keep_header_shapes_dtypes_and_bits(pair: list[Group]) -> None:
    tensors = [
        torch.randn(3, 4).bfloat16(),
        torch.tensor([float("nan"), -0.0]),
        torch.tensor(True),
        torch.zeros(0, 3),
        torch.randn(2, dtype=torch.complex128),
        torch.randn(4, 6).t(),
        torch.arange(400_000),
        *(torch.tensor(float(i)) for i in range(300)),
    ]
    blob = Blob({"name": "ä", "numbers": [1, 2.5, None]}, tensors)
    got, back = side_by_side(
        [
            lambda: pair[0].exchange_blobs(Kind.STATE, 3, {1: blob}, [1]),
            lambda: pair[1].exchange_blobs(Kind.STATE, 3, {0: Blob("thanks")}, [0]),
        ]
    )
    assert not isinstance(got, Exception)
    assert not isinstance(back, Exception)
    assert got[1] == Blob("thanks", [])
    assert back[0].header == blob.header
    for sent, received in zip(tensors, back[0].tensors, strict=True):
        assert sent.dtype == received.dtype
        assert sent.shape == received.shape
        assert bytes(bytes_of(sent.contiguous())) == bytes(bytes_of(received))


def test_a_blob_larger_than_the_limit_is_refused(pair: list[Group]) -> None:
    _, outcome = side_by_side(
        [
            lambda: pair[0].exchange_blobs(Kind.STATE, 3, {1: Blob(None, [torch.zeros(100)])}, []),
            lambda: pair[1].exchange_blobs(Kind.STATE, 3, {}, [0], limit=399),
        ]
    )
    assert isinstance(outcome, MalformedMessage)
    assert "member 0" in str(outcome)
    assert "400 bytes" in str(outcome)


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"header":1,"tensors":[["float32",[-1]]]}', b'{"header":1,"tensors":[["thing",[1]]]}']
)
def test_a_broken_blob_is_malformed(pair: list[Group], text: bytes) -> None:
    pair[0].send(1, Header(Kind.STATE, 0, length=len(text)), [memoryview(text)])
    pair[0].run()
    with pytest.raises(MalformedMessage):
        pair[1].exchange_blobs(Kind.STATE, 0, {}, [0])


def test_last_heard_moves_with_the_bytes(pair: list[Group]) -> None:
    before = pair[1].last_heard[0]
    pair[0].send(1, Header(Kind.SUM, 0, length=1), [memoryview(b"x")])
    pair[0].run()
    pair[1].expect(0, Key(Kind.SUM, 0), into(bytearray(1)))
    pair[1].run()
    assert pair[1].last_heard[0] > before
    assert pair[0].bytes_sent > 1
