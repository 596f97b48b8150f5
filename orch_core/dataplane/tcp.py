"""Frames on simplex TCP links, without copies and without blocking.

A frame is a header of fixed size and bytes. A :class:`Sender` owns the queue of one outgoing socket, a
:class:`Receiver` what is expected on one incoming socket; both only move bytes when they are pumped, and never wait.
Who waits, for whom, and what a broken link means is the group's business.
"""

import enum
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orch_core.contracts.errors import MalformedMessage

VERSION = 1
MAGIC = 0x6F44
KEEPALIVE_S = 1
SILENCE_MS = 2_000  # data in flight and no acknowledgement for so long: the peer's host cannot be reached
PROBES = 4  # of a closed window, unanswered
VIEWS_PER_CALL = 64  # buffers handed to the kernel at once
BYTES_PER_TURN = 4 * 1024 * 1024  # from one link, before the others get their turn

_HEADER = struct.Struct("<HBBIqIIIIQ")
HEADER_BYTES = _HEADER.size
_TCP_INFO = struct.Struct("=8B13I")  # the head of the kernel's struct tcp_info, up to tcpi_last_ack_recv


class Kind(enum.IntEnum):
    """What a frame is about."""

    PARTIALS = 1  # slices of a member's partials, for who adds them up
    SUM = 2  # a piece of a round's result, from who added it up
    BARRIER = 3
    RESULTS = 4
    STATE = 5
    SHARD_STATE = 6
    SHARE_OF_STATE = 7  # to a follower
    SHARE_OF_RESULTS = 8


class Header(NamedTuple):
    """`signature` says what operation the sender believes in, as a number that both ends compute."""

    kind: Kind
    step: int
    bucket: int = 0
    round: int = 0
    part: int = 0
    signature: int = 0
    length: int = 0  # bytes; of a blob: of its JSON alone

    @property
    def key(self) -> "Key":
        return Key(self.kind, self.step, self.bucket, self.round, self.part)

    def pack(self) -> bytes:
        fields = (self.step, self.bucket, self.round, self.part, self.signature, self.length)
        return _HEADER.pack(MAGIC, VERSION, self.kind, 0, *fields)

    @staticmethod
    def unpack(data: bytes | bytearray) -> "Header":
        magic, version, kind, _, step, bucket, round_, part, signature, length = _HEADER.unpack(data)
        if magic != MAGIC or version != VERSION:
            raise MalformedMessage(f"a data frame starts with {bytes(data[:4]).hex()}, which is not version {VERSION}")
        try:
            return Header(Kind(kind), step, bucket, round_, part, signature, length)
        except ValueError as error:
            raise MalformedMessage(f"a data frame is of unknown kind {kind}") from error


class Key(NamedTuple):
    """What tells one expected frame from another."""

    kind: Kind
    step: int
    bucket: int = 0
    round: int = 0
    part: int = 0

    def __str__(self) -> str:
        match self.kind:
            case Kind.PARTIALS | Kind.SUM:
                return f"round {self.round} of bucket {self.bucket} in step {self.step}"
            case _:
                return f"the {self.kind.name.lower().replace('_', ' ')} of step {self.step}"


class UnexpectedFrame(MalformedMessage):
    """A well-formed frame that nobody waits for: the two ends do not do the same thing."""

    def __init__(self, got: Key, expected: Sequence[Key]) -> None:
        wanted = " or ".join(str(key) for key in list(expected)[:3]) or "nothing"
        super().__init__(f"it sent {got}, but {wanted} was expected")
        self.got = got
        self.expected = tuple(expected)


# Yields the buffers that are to be filled next; ends when the frame is complete.
Fill = Generator[Sequence[memoryview], None, None]


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory. Writing to it writes the tensor."""
    flat = tensor.detach().reshape(-1) if tensor.dim() != 1 else tensor.detach()
    if flat.numel() == 0:
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs want Python 3.12


def configure(sock: socket.socket) -> None:
    """Non-blocking, no delay, and the kernel's keepalives: an idle link to a host that vanished ends in three seconds.

    Not TCP_USER_TIMEOUT: it also ends a link whose peer is alive, acknowledges everything and reads nothing, which is
    what a member in a long pass does. See :func:`unreachable` for links with data in flight.
    """
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)


def unreachable(sock: socket.socket) -> str:
    """Why the peer's *kernel* cannot be reached over a link that takes no more data; "" if it answers."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    info = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    retransmits, probes, unacknowledged, silent_ms = info[2], info[3], info[12], info[20]
    if unacknowledged and retransmits and silent_ms >= SILENCE_MS:
        return f"no acknowledgement for {silent_ms} ms"
    return f"{probes} probes unanswered" if probes >= PROBES else ""


class Sender:
    """The outgoing end of a link."""

    def __init__(self, peer: int, sock: socket.socket) -> None:
        self.peer = peer
        self.sock = sock
        self.blocked = False  # the last pump ended because the kernel's buffer was full
        self.sent = 0  # bytes
        self._queue: deque[memoryview] = deque()

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def put(self, header: Header, buffers: Sequence[memoryview]) -> None:
        self._queue.append(memoryview(header.pack()))
        self.add(buffers)

    def add(self, buffers: Sequence[memoryview]) -> None:
        """More of the newest frame."""
        self._queue.extend(buffer for buffer in buffers if len(buffer))

    def pump(self) -> None:
        """Hand as much as possible to the kernel. Raises OSError for a broken link."""
        queue, budget, self.blocked = self._queue, BYTES_PER_TURN, False
        while queue and budget > 0:
            views = [queue[i] for i in range(min(len(queue), VIEWS_PER_CALL))]
            try:
                done = self.sock.sendmsg(views, (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self.blocked = True
                return
            self.sent += done
            budget -= done
            _advance(queue, done)


class Receiver:
    """The incoming end of a link."""

    def __init__(self, peer: int, sock: socket.socket) -> None:
        self.peer = peer
        self.sock = sock
        self.blocked = False  # the last pump ended because nothing was there
        self.last_heard = time.monotonic()
        self._expected: dict[Key, Callable[[Header], Fill]] = {}
        self._head = bytearray(_HEADER.size)
        self._queue: deque[memoryview] = deque()  # what is being filled
        self._fill: Fill | None = None

    @property
    def pending(self) -> bool:
        """False leaves whatever comes next in the kernel: a peer may be one exchange ahead."""
        return bool(self._expected) or self._fill is not None

    @property
    def expected(self) -> tuple[Key, ...]:
        return tuple(self._expected)

    def expect(self, key: Key, fill: Callable[[Header], Fill]) -> None:
        self._expected[key] = fill

    def pump(self) -> None:
        """Take what is there. Raises OSError or EOFError for a broken link, MalformedMessage for nonsense."""
        budget, self.blocked = BYTES_PER_TURN, False
        while self.pending and budget > 0:
            if not self._queue:
                self._queue.append(memoryview(self._head))
            views = [self._queue[i] for i in range(min(len(self._queue), VIEWS_PER_CALL))]
            try:
                done = self.sock.recvmsg_into(views)[0]
            except BlockingIOError:
                self.blocked = True
                return
            if done == 0:
                raise EOFError("the peer closed the link")
            self.last_heard = time.monotonic()
            budget -= done
            _advance(self._queue, done)
            if not self._queue:
                self._filled()

    def _filled(self) -> None:
        if self._fill is None:
            header = Header.unpack(self._head)
            start = self._expected.pop(header.key, None)
            if start is None:
                raise UnexpectedFrame(header.key, self.expected)
            self._fill = start(header)
        while not self._queue:
            wanted = next(self._fill, None)
            if wanted is None:
                self._fill = None
                return
            self._queue.extend(buffer for buffer in wanted if len(buffer))


def _advance(queue: deque[memoryview], count: int) -> None:
    """Take `count` bytes off the front."""
    while count:
        first = queue[0]
        if count < len(first):
            queue[0] = first[count:]
            return
        count -= len(first)
        queue.popleft()
