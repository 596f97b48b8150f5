"""Links to the other members: listen, dial, say hello, watch. All of it belongs to the keeper's loop.

For each ordered pair of members there is one connection per view, dialled by the sender; its first frame is the hello,
everything behind it is the data plane's. After that the keeper reads no byte of it: it only watches for the end,
through an epoll of its own that reports hang-ups and nothing else.
"""

import asyncio
import hmac
import logging
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from orch_core import failpoints
from orch_core.contracts import codec
from orch_core.contracts.address import joined, split
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import ViewNumber, WorkerId
from orch_core.dataplane.group import Link
from orch_core.dataplane.tcp import configure
from orch_core.protocol.member import Hello
from orch_core.rpc.network import family, resolved
from orch_core.worker import forks
from orch_core.worker.feeds import Feeds, Wish

CONNECT_S, REDIAL_S = 0.2, 0.02
HELLO_S = 2.0  # from an accepted connection to its whole hello
BACKLOG = 128
ACCEPT_AGAIN_S = 0.05
_LENGTH = struct.Struct("<I")
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

logger = logging.getLogger(__name__)

Key = tuple[ViewNumber, WorkerId]


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first frame of a link."""

    token: str
    hello: Hello | None = None
    follower: WorkerId | None = None  # instead of a hello: it wants to follow, and sends wishes from here on
    version: int = 1


@dataclass(frozen=True, slots=True)
class Listener:
    """What the keeper wants to hear. Called in the loop."""

    greeted: Callable[[ViewNumber, WorkerId], None]  # our hello is written
    heard: Callable[[Hello], None]
    broken: Callable[[ViewNumber, WorkerId], None]
    failed: Callable[[BaseException], None]  # an error in orch itself


class Peers:
    """``start()``, then :meth:`greet` per view; :meth:`links` when all hellos are in; :meth:`drop` when it is over."""

    def __init__(self, host: str, token: str, listener: Listener, feeds: Feeds) -> None:
        self._token = token
        self._feeds = feeds
        self._tell = listener
        self._server = socket.create_server((host, 0), family=family(host), backlog=BACKLOG)
        self._server.setblocking(False)
        forks.watch(self._server)
        self.address = joined(host, self._server.getsockname()[1])
        self._epoll = select.epoll()
        self._watched: dict[int, Key] = {}
        self._dialled: dict[Key, socket.socket] = {}
        self._arrived: dict[Key, socket.socket] = {}
        self._given: set[Key] = set()  # their sockets belong to a group
        self._tasks: set[asyncio.Task[None]] = set()
        self._dialling: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ended)
        self._spawn(self._accept(), "accept", self._tasks)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        tasks = [*self._tasks, *self._dialling]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._forget()
        self._epoll.close()
        self._server.close()

    def greet(self, hello: Hello, peers: tuple[WorkerId, ...]) -> None:
        """Dial each until it answers or :meth:`drop` is called, and write the hello first."""
        addresses = {member.worker: member.address for member in hello.view.members}
        frame = framed(codec.encode(Greeting(self._token, hello)))
        for peer in peers:
            self._spawn(self._dial((hello.view.number, peer), addresses[peer], frame), f"dial {peer}", self._dialling)

    def links(self, view: ViewNumber, peers: list[WorkerId]) -> list[Link]:
        """In the order of `peers`. From here on the sockets are the group's; they are still watched."""
        self._given.update((view, peer) for peer in peers)
        return [Link(sender=self._dialled[view, peer], receiver=self._arrived[view, peer]) for peer in peers]

    def drop(self, below: ViewNumber) -> None:
        """Let go of all links of views below this one: stop watching and dialling, close what is not a group's."""
        for task in self._dialling:
            task.cancel()
        self._forget(below)

    # ---------------------------------------------------------------- the tasks

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._server)
            except OSError as error:  # no descriptor left, or the caller has gone again
                logger.warning("event=accept-failed cause=%r", str(error))
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            self._spawn(self._receive(sock), "receive-hello", self._tasks)

    async def _receive(self, sock: socket.socket) -> None:
        try:
            configure(sock)
            forks.watch(sock)
            async with asyncio.timeout(HELLO_S):
                greeting = codec.decode(Greeting, await _read_frame(sock))
        except (OSError, EOFError, TimeoutError, MalformedMessage) as error:
            logger.info("event=hello-unread cause=%r", str(error) or type(error).__name__)
            sock.close()
            return
        except asyncio.CancelledError:
            sock.close()
            raise
        hello, follower = greeting.hello, greeting.follower
        if not hmac.compare_digest(greeting.token.encode(), self._token.encode()):
            sender = hello.sender if hello is not None else follower
            logger.warning("event=hello-refused sender=%s cause='wrong token'", sender)
            sock.close()
            return
        if hello is None:
            if follower is not None:
                await self._hear_wishes(follower, sock)
            else:
                sock.close()
            return
        key = (hello.view.number, hello.sender)
        if key in self._arrived:
            logger.info("event=hello-again view=%d sender=%s", *key)
            sock.close()
            return
        self._arrived[key] = sock
        self._watch(sock, key)
        self._tell.heard(hello)

    async def _hear_wishes(self, follower: WorkerId, sock: socket.socket) -> None:
        logger.info("event=followed follower=%s", follower)
        self._feeds.accept(follower, sock)
        try:
            while True:
                self._feeds.wish(follower, codec.decode(Wish, await _read_frame(sock)))
        except (OSError, EOFError, MalformedMessage) as error:
            logger.info("event=follower-gone follower=%s cause=%r", follower, str(error))
        finally:
            self._feeds.drop(follower, sock)

    async def _dial(self, key: Key, address: str, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                kind, where = await resolved(*split(address))
            except (OSError, ConfigurationError) as error:
                logger.info("event=address-unknown peer=%s address=%s cause=%r", key[1], address, str(error))
                await asyncio.sleep(CONNECT_S)
                continue
            sock = socket.socket(kind, socket.SOCK_STREAM)
            try:
                configure(sock)
                forks.watch(sock)
                async with asyncio.timeout(CONNECT_S):
                    await loop.sock_connect(sock, where)
                await loop.sock_sendall(sock, frame)
            except (OSError, TimeoutError):
                sock.close()
                await asyncio.sleep(REDIAL_S)
                continue
            except asyncio.CancelledError:
                sock.close()
                raise
            self._dialled[key] = sock
            self._watch(sock, key)
            failpoints.reach("hello-sent", int(key[0]))
            self._tell.greeted(*key)
            return

    # ---------------------------------------------------------------- watching

    def _watch(self, sock: socket.socket, key: Key) -> None:
        self._watched[sock.fileno()] = key
        self._epoll.register(sock.fileno(), _ENDED | select.EPOLLET)

    def _ended(self) -> None:
        for fd, _ in self._epoll.poll(0):
            key = self._watched.pop(fd, None)
            if key is not None:
                self._tell.broken(*key)

    def _forget(self, below: ViewNumber | None = None) -> None:
        for fd, key in list(self._watched.items()):
            if below is None or key[0] < below:
                del self._watched[fd]
                try:
                    self._epoll.unregister(fd)
                except OSError:
                    pass  # closed already, and so forgotten
        for table in (self._dialled, self._arrived):
            for key in [key for key in table if below is None or key[0] < below]:
                sock = table.pop(key)
                if key not in self._given:
                    sock.close()
        self._given = {key for key in self._given if below is not None and key[0] >= below}

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]", name: str, tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._ask_after)

    def _ask_after(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell.failed(error)


def framed(body: bytes) -> bytes:
    """How greetings and wishes travel."""
    return _LENGTH.pack(len(body)) + body


async def _read_frame(sock: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(await _exactly(sock, _LENGTH.size))
    if length > codec.MESSAGE_LIMIT:
        raise MalformedMessage(f"a hello of {length} bytes is larger than {codec.MESSAGE_LIMIT}")
    return await _exactly(sock, length)


async def _exactly(sock: socket.socket, size: int) -> bytes:
    """Not one byte more: what follows is the data plane's."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise EOFError("the peer has gone")
        data += more
    return bytes(data)
