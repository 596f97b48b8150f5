"""The links of one view, as the script thread sees them: frames out, frames in, one poll loop.

::

    group = Group(me, {peer_index: Link(sender=socket, receiver=socket), ...})   # greeted, connected; group owns them
    group.send(peer, header, buffers); group.expect(peer, key, fill); group.run()   # what the engine uses
    blobs = group.exchange_blobs(Kind.RESULTS, step, {peer: Blob(header, tensors)}, [peer, ...])  # what the worker uses
    group.abort()      # from any thread: the script's run() raises ViewBroken now or at its next call
    group.close()      # from the script thread, when it lets go: closes the file descriptors; idempotent

A link is two connections: one on which we only send, one on which we only receive. A group knows members by their
index in the view and nothing of hellos, ids or rules; after any exception out of it, it is of no more use.
Errors: :class:`LinkLost` (a ViewBroken, with `.peer`) for a link that ended, ViewBroken after :meth:`Group.abort`,
MalformedMessage (UnexpectedFrame) for a peer that does something else than we do.
"""

import json
import select
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orch_core.contracts.errors import MalformedMessage, ViewBroken
from orch_core.dataplane.memory import empty
from orch_core.dataplane.tcp import (
    Fill,
    Header,
    Key,
    Kind,
    Receiver,
    Sender,
    UnexpectedFrame,
    bytes_of,
    configure,
    unreachable,
)

JSON_LIMIT = 64 * 1024 * 1024  # bytes of a blob's header
LOOK_AFTER_MS = 500  # without any movement: ask the kernel whether the peers can be reached
BLOB_LIMIT = 1 << 40  # bytes of a blob's tensors, where the caller knows no better

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32),
    )
}


class LinkLost(ViewBroken):
    """The link to the member with index `peer` ended or was reset."""

    def __init__(self, peer: int, why: str) -> None:
        super().__init__(f"the link to member {peer} is lost: {why}")
        self.peer = peer


@dataclass(frozen=True, slots=True)
class Link:
    """Two connections with one other member."""

    sender: socket.socket
    receiver: socket.socket


@dataclass(frozen=True, slots=True)
class Blob:
    """A message of any size: a JSON value and tensors (on the CPU; `None` device stays the receiver's business)."""

    header: Any
    tensors: Sequence[Tensor] = ()


class Group:
    """Connected sockets to every other member of a view."""

    def __init__(self, me: int, links: Mapping[int, Link]) -> None:
        self.me = me
        self.peers = tuple(sorted(links))
        self._links = dict(links)
        self._senders = {peer: Sender(peer, links[peer].sender) for peer in self.peers}
        self._receivers = {peer: Receiver(peer, links[peer].receiver) for peer in self.peers}
        self._ends: list[Sender | Receiver] = [*self._senders.values(), *self._receivers.values()]
        self._lock = threading.Lock()  # between abort, which shuts sockets down, and close, which ends their life
        self._aborted = False
        self._closed = False
        for sock in self._sockets():
            configure(sock)

    @property
    def members(self) -> int:
        return len(self.peers) + 1

    @property
    def aborted(self) -> bool:
        return self._aborted

    @property
    def last_heard(self) -> dict[int, float]:
        """Per peer, time.monotonic() when its last byte was read; at first, when the group was made."""
        return {peer: receiver.last_heard for peer, receiver in self._receivers.items()}

    @property
    def bytes_sent(self) -> int:
        return sum(sender.sent for sender in self._senders.values())

    def send(self, peer: int, header: Header, buffers: Sequence[memoryview] = ()) -> None:
        """Queue a frame. The buffers must not change until :meth:`run` has returned."""
        self._senders[peer].put(header, buffers)

    def expect(self, peer: int, key: Key, fill: Callable[[Header], Fill]) -> None:
        """`fill(header)` is called when the frame's header is there; it says where the bytes go, and may send."""
        self._receivers[peer].expect(key, fill)

    def run(self, sent: Callable[[], None] | None = None) -> None:
        """Drive all links at once until all that was queued is out and all that was expected is in.

        `sent` is called once, when all is out and before anything more is read.
        """
        ready: Collection[Sender | Receiver] = [end for end in self._ends if end.pending]
        self._check()
        while True:
            for end in ready:
                if sent is not None and not any(sender.pending for sender in self._senders.values()):
                    sent()
                    sent = None
                self._pump(end)
            pending = [end for end in self._ends if end.pending]
            if not pending:
                return
            ready = [end for end in pending if not end.blocked]
            if not ready:
                ready = self._wait(pending)
            self._check()

    def exchange_blobs(
        self,
        kind: Kind,
        step: int,
        sends: Mapping[int, Blob],
        receives: Collection[int],
        *,
        limit: int = BLOB_LIMIT,
        sent: Callable[[], None] | None = None,
    ) -> dict[int, Blob]:
        """Send a blob to each peer in `sends`, receive one from each in `receives`, at the same time.

        `sent`: see :meth:`run`. Raises MalformedMessage for more than `limit` bytes of tensors.
        """
        received: dict[int, Blob] = {}
        for peer in receives:
            self.expect(peer, Key(kind, step), lambda header, peer=peer: _fill_blob(header, limit, received, peer))  # type: ignore[misc]
        packed: dict[int, tuple[bytes, list[memoryview]]] = {}
        for peer, blob in sends.items():
            text, views = packed.get(id(blob)) or packed.setdefault(id(blob), pack_blob(blob))
            self.send(peer, Header(kind, step, length=len(text)), [memoryview(text), *views])
        self.run(sent)
        return received

    def abort(self) -> None:
        """Make the view end here and, as the peers' links break, there. Any thread; returns at once; idempotent."""
        self._aborted = True
        with self._lock:
            if not self._closed:
                for sock in self._sockets():
                    try:
                        sock.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass  # broken already

    def close(self) -> None:
        """Close the file descriptors. Only from the thread that calls :meth:`run`."""
        self.abort()
        with self._lock:
            self._closed = True
            for sock in self._sockets():
                sock.close()

    def _sockets(self) -> list[socket.socket]:
        return [sock for link in self._links.values() for sock in (link.sender, link.receiver)]

    def _check(self) -> None:
        if self._aborted:
            raise ViewBroken("the group of this view is closed")

    def _pump(self, end: Sender | Receiver) -> None:
        try:
            end.pump()
        except (OSError, EOFError) as error:
            self._check()
            raise LinkLost(end.peer, str(error)) from error
        except UnexpectedFrame:
            self._check()
            raise
        except MalformedMessage as error:
            raise MalformedMessage(f"member {end.peer}: {error}") from error

    def _wait(self, blocked: Sequence[Sender | Receiver]) -> list[Sender | Receiver]:
        poll = select.poll()
        by_fd = {end.sock.fileno(): end for end in blocked}
        for fd, end in by_fd.items():
            poll.register(fd, select.POLLOUT if isinstance(end, Sender) else select.POLLIN)
        while not (ready := poll.poll(LOOK_AFTER_MS)):
            for end in blocked:
                if isinstance(end, Sender) and (why := unreachable(end.sock)):
                    raise LinkLost(end.peer, why)
        return [by_fd[fd] for fd, _ in ready]


def pack_blob(blob: Blob) -> tuple[bytes, list[memoryview]]:
    """Its JSON and its tensors' bytes. Raises MalformedMessage for a header that is too long."""
    tensors = [tensor.detach().contiguous().cpu() for tensor in blob.tensors]
    specs = [(str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for tensor in tensors]
    text = json.dumps({"header": blob.header, "tensors": specs}, separators=(",", ":"), sort_keys=True).encode()
    if len(text) > JSON_LIMIT:
        raise MalformedMessage(f"a header of {len(text)} bytes is larger than {JSON_LIMIT}")
    return text, [bytes_of(tensor) for tensor in tensors]


def _fill_blob(header: Header, limit: int, received: dict[int, Blob], peer: int) -> Fill:
    if header.length > JSON_LIMIT:
        raise MalformedMessage(f"{header.key} has a header of {header.length} bytes, more than {JSON_LIMIT}")
    text = bytearray(header.length)
    yield [memoryview(text)]
    value, tensors = read_specs(text, limit, str(header.key))
    yield [bytes_of(tensor) for tensor in tensors]
    received[peer] = Blob(value, tensors)


def read_specs(text: bytes | bytearray, limit: int, what: str) -> tuple[Any, list[Tensor]]:
    """A blob's header and room for its tensors. Raises MalformedMessage."""
    try:
        raw = json.loads(text)
        specs = [(_DTYPES[name], [int(size) for size in shape]) for name, shape in raw["tensors"]]
        value = raw["header"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"{what} has a header that cannot be read: {error!r}") from error
    size = 0
    for dtype, shape in specs:
        count = dtype.itemsize
        for extent in shape:
            if extent < 0:
                raise MalformedMessage(f"{what} declares a tensor of shape {shape}")
            count *= extent
        size += count
    if size > limit:
        raise MalformedMessage(f"{what} declares {size} bytes of tensors, more than {limit}")
    return value, [empty(shape, dtype) for dtype, shape in specs]
