"""Streams between replicas: raw asyncio, one connection per ordered pair, dialled by who sends on it.

Whoever dials and who accepts prove to each other that they know the job's token, without sending it: the acceptor
begins with a nonce, the dialler answers with its own and an HMAC over both and over who it is and whom it means, the
acceptor with another. From then on frames flow one way: a length, then a message. Sending never waits and may drop:
Raft repeats itself. What comes in waits until its receiver has room, which slows the sender's stream and nothing else.

A connection that breaks is news (`on_reset`), for it is usually the first sign of a death; so is a pair of connections
that is complete (`on_connected`). Links notice a silent network by TCP_USER_TIMEOUT and keepalives, and are dialled
again at short intervals: after a 10 s cut the kernel's own back-off would cost 3 s, this costs 64 ms.
"""

import asyncio
import hmac
import json
import logging
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable

from orch_consensus_raft.messages import VERSION, Message, decode, encode
from orch_core.contracts.address import split
from orch_core.contracts.consensus import ReplicaSpec
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import CoordinatorId

FRAME_LIMIT = 64 * 1024 * 1024  # bytes: a snapshot, and a tail of 32 MiB behind it
GREETING_LIMIT = 1024  # bytes of a frame before the peer has proved who it is
UNSENT_LIMIT = 8 * 1024 * 1024  # bytes waiting for one peer, above which messages to it are dropped
CONNECT_TIMEOUT_S = 0.2  # for connecting and for the greeting, each
REDIAL_S, REDIAL_LIMIT_S = 0.02, 0.1
USER_TIMEOUT_MS = 300
NONCE_SIZE = 16

_LENGTH = struct.Struct("!I")

logger = logging.getLogger(__name__)


class Transport:
    """One replica's connections. `deliver` is awaited per message; the other two are called in the loop."""

    def __init__(
        self,
        spec: ReplicaSpec,
        deliver: Callable[[CoordinatorId, Message], Awaitable[None]],
        on_connected: Callable[[CoordinatorId], None],
        on_reset: Callable[[CoordinatorId], None],
    ) -> None:
        self._me, self._peers, self._token = spec.id, dict(spec.peers), spec.token.encode()
        self._given_listener = spec.listener
        self._deliver, self._on_connected, self._on_reset = deliver, on_connected, on_reset
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outward: dict[CoordinatorId, asyncio.StreamWriter] = {}
        self._inward: dict[CoordinatorId, asyncio.StreamWriter] = {}
        self._dropping: set[CoordinatorId] = set()

    async def start(self) -> None:
        """Listen and begin to dial. Raises ConfigurationError for an address that cannot be had."""
        try:
            listener = self._given_listener or _bind(self._peers[self._me])
            self._server = await asyncio.start_server(self._accept, sock=listener)
        except (OSError, ValueError) as error:
            address = self._peers[self._me]
            raise ConfigurationError(f"replica {self._me} cannot listen on {address}: {error}") from error
        for peer in self._peers:
            if peer != self._me:
                self._keep(asyncio.create_task(self._dial_forever(peer), name=f"raft dial {peer}"))

    def send(self, peer: CoordinatorId, message: Message) -> None:
        """Send or drop, at once."""
        writer = self._outward.get(peer)
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > UNSENT_LIMIT:
            if peer not in self._dropping:
                logger.warning("messages dropped, peer does not read replica=%s peer=%s", self._me, peer)
            self._dropping.add(peer)
            return
        self._dropping.discard(peer)
        _write_frame(writer, encode(message))

    def abort(self) -> None:
        """Break every connection and stop listening, as a SIGKILL would. For `close`, and for tests."""
        if self._server is not None:
            self._server.close()
        for writer in [*self._outward.values(), *self._inward.values()]:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Idempotent."""
        self.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._given_listener is not None:
            self._given_listener.close()

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- outward -----------------------------------------------------------------------------------------------------

    async def _dial_forever(self, peer: CoordinatorId) -> None:
        pause = REDIAL_S
        while True:
            try:
                reader, writer = await self._dial(peer)
            except (OSError, TimeoutError, EOFError, ValueError, MalformedMessage) as error:
                logger.debug("dial failed replica=%s peer=%s error=%r", self._me, peer, error)
                pause = min(pause * 1.5, REDIAL_LIMIT_S)
            else:
                pause = REDIAL_S
                await self._hold_outward(peer, reader, writer)
            await asyncio.sleep(pause)

    async def _dial(self, peer: CoordinatorId) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = split(self._peers[peer])
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._greet(peer, reader, writer)
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    async def _greet(self, peer: CoordinatorId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _tune(writer)
        theirs, mine = await _read_frame(reader, GREETING_LIMIT), secrets.token_bytes(NONCE_SIZE)
        proof = self._proof(b"dial", theirs, mine, self._me, peer)
        hello = {"version": VERSION, "from": self._me, "to": peer, "nonce": mine.hex(), "proof": proof.hex()}
        _write_frame(writer, json.dumps(hello).encode())
        answer = await _read_frame(reader, GREETING_LIMIT)
        if not hmac.compare_digest(answer, self._proof(b"accept", theirs, mine, self._me, peer)):
            raise MalformedMessage(f"who answers for {peer} does not know the job's token")

    async def _hold_outward(
        self, peer: CoordinatorId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._outward[peer] = writer
        self._connected(peer)
        try:
            await reader.read(1)  # nothing is ever sent this way: what comes is the end
        except OSError as error:
            logger.debug("link broke replica=%s peer=%s error=%r", self._me, peer, error)
        finally:
            writer.transport.abort()
            del self._outward[peer]
        self._reset(peer)

    # ---- inward ------------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._keep(task)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                peer = await self._answer(reader, writer)
            await self._hold_inward(peer, reader, writer)
        except asyncio.CancelledError:
            pass  # only `abort` cancels; asyncio's own callback for these tasks would report it as an error
        except (OSError, TimeoutError, EOFError, ValueError, MalformedMessage) as error:
            where = writer.get_extra_info("peername")
            logger.warning("connection refused replica=%s from=%s error=%s", self._me, where, str(error) or repr(error))
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> CoordinatorId:
        _tune(writer)
        mine = secrets.token_bytes(NONCE_SIZE)
        _write_frame(writer, mine)
        hello = json.loads(await _read_frame(reader, GREETING_LIMIT))
        if not isinstance(hello, dict) or hello.get("version") != VERSION:
            raise MalformedMessage(f"not a greeting of version {VERSION}")
        peer, nonce, proof = (hello.get(key) for key in ("from", "nonce", "proof"))
        if not (isinstance(peer, str) and isinstance(nonce, str) and isinstance(proof, str)):
            raise MalformedMessage("a greeting lacks something")
        peer, theirs = CoordinatorId(peer), bytes.fromhex(nonce)
        expected = self._proof(b"dial", mine, theirs, peer, self._me)
        if not hmac.compare_digest(bytes.fromhex(proof), expected) or hello.get("to") != self._me:
            raise MalformedMessage(f"{peer!r} does not know the job's token, or means another replica")
        if peer not in self._peers or peer == self._me:
            raise MalformedMessage(f"{peer!r} is no other replica of this job")
        _write_frame(writer, self._proof(b"accept", mine, theirs, peer, self._me))
        return peer

    async def _hold_inward(
        self, peer: CoordinatorId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if (old := self._inward.get(peer)) is not None:
            old.transport.abort()  # its dialler has given it up
        self._inward[peer] = writer
        self._connected(peer)
        try:
            while True:
                await self._deliver(peer, decode(await _read_frame(reader, FRAME_LIMIT)))
        except MalformedMessage as error:
            logger.warning("malformed message, link closed replica=%s peer=%s error=%s", self._me, peer, error)
        except (OSError, EOFError) as error:
            logger.debug("link broke replica=%s peer=%s error=%r", self._me, peer, error)
        finally:
            if self._inward.get(peer) is writer:
                del self._inward[peer]
        self._reset(peer)

    # ---- both --------------------------------------------------------------------------------------------------------

    def _connected(self, peer: CoordinatorId) -> None:
        if peer in self._outward and peer in self._inward:
            logger.info("peer connected replica=%s peer=%s", self._me, peer)
            self._on_connected(peer)

    def _reset(self, peer: CoordinatorId) -> None:
        logger.info("peer connection reset replica=%s peer=%s", self._me, peer)
        self._on_reset(peer)

    def _proof(
        self, side: bytes, acceptors: bytes, diallers: bytes, dialler: CoordinatorId, acceptor: CoordinatorId
    ) -> bytes:
        parts = (side, acceptors, diallers, dialler.encode(), acceptor.encode())
        return hmac.digest(self._token, b"".join(_LENGTH.pack(len(part)) + part for part in parts), "sha256")


def _write_frame(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(_LENGTH.pack(len(body)) + body)


async def _read_frame(reader: asyncio.StreamReader, limit: int) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise MalformedMessage(f"a frame of {length} bytes is larger than {limit}")
    return await reader.readexactly(length)


def _bind(address: str) -> socket.socket:
    """A socket that shares its port with whoever reserved it for this replica (SO_REUSEPORT)."""
    host, port = split(address)
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(where)
    except OSError:
        listener.close()
        raise
    return listener


def _tune(writer: asyncio.StreamWriter) -> None:
    link = writer.get_extra_info("socket")
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
