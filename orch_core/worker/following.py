"""A joiner's way to the state, beside the view that trains on (ARCHITECTURE.md, "The life of a join").

::

    Following(...).start()      a thread dials every member and asks each for a share of one State(s)
      handover.take_state()     all shares are here: the script may install it
      handover.take_results()   of step s, s + 1, ...: the script runs its loops on them, without passes
    stop()                      it is a member now, or the process ends

If a member goes before the state is whole, the next attempt asks those of the newest view. Behind that only results are
missing: the rest is asked for in new shares from whoever is left of those that have sent the state.
"""

import logging
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from orch_core import failpoints
from orch_core.contracts import codec
from orch_core.contracts.address import split
from orch_core.contracts.document import ViewMember
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import Step, WorkerId
from orch_core.dataplane.kept import Results
from orch_core.dataplane.shares import Incoming, Share, checksum
from orch_core.dataplane.tcp import HEADER_BYTES, Header, Kind, configure
from orch_core.worker import forks
from orch_core.worker.feeds import Wish
from orch_core.worker.handover import Handover
from orch_core.worker.peers import Greeting, framed

CONNECT_S = 1.0
AGAIN_S = 0.1  # between two attempts
TEXT_LIMIT = 64 * 1024 * 1024

logger = logging.getLogger(__name__)

Members = Callable[[], Sequence[ViewMember]]


class _Gone(Exception):
    """Not enough of those who feed are left."""


@dataclass(slots=True)
class _Message:
    """A state or a step's results, as far as they are here."""

    step: Step
    incoming: Incoming


@dataclass(slots=True, eq=False)
class _Link:
    worker: WorkerId
    sock: socket.socket
    alive: bool = True


@dataclass(slots=True)
class _Stage:
    """What is awaited under the newest cut of shares."""

    number: int
    links: list[_Link] = field(default_factory=list)
    state: _Message | None = None
    results: dict[Step, _Message] = field(default_factory=dict)
    had: Step | None = None  # results up to this one are with the script; None: not even the state is


class Following:
    """One per joiner. `members` gives those of the newest view; `wake` makes the keeper look."""

    def __init__(self, me: WorkerId, token: str, members: Members, handover: Handover, wake: Callable[[], None]):
        self._me = me
        self._token = token
        self._members = members
        self._handover = handover
        self._wake = wake
        self._changed = threading.Condition()
        self._stage = _Stage(0)
        self._stopped = False
        self.lost = False  # nobody is left who could feed this worker
        self._thread = threading.Thread(target=self._run, name="orch-follows", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Any thread; idempotent. Nothing more is taken."""
        with self._changed:
            self._stopped = True
            self._let_go(self._stage.links)
            self._changed.notify_all()

    def seen(self, workers: Collection[WorkerId]) -> None:
        """The newest view: who is not in it feeds nobody, though its connection may still stand."""
        with self._changed:
            links = [link for link in self._stage.links if link.alive]
            good = self._has_asked_all(workers)
            self._let_go([link for link in links if not good or link.worker not in workers])
            self._changed.notify_all()

    def _has_asked_all(self, workers: Collection[WorkerId]) -> bool:
        """Members capture a state when all of them have heard the wish: while none is on its way here, who has just
        become a member must hear it, too."""
        stage = self._stage
        if stage.had is not None or stage.state is not None:
            return True
        return {*workers} - {self._me} <= {link.worker for link in stage.links}

    @property
    def fed_by(self) -> frozenset[WorkerId]:
        """Who has fed this worker to the last."""
        with self._changed:
            return frozenset(link.worker for link in self._stage.links)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        number = 0
        while not self._stopped:
            number += 1
            try:
                self._attempt(number)
            except _Gone as error:
                logger.info("event=follows-again worker=%s attempt=%d why=%r", self._me, number, str(error))
            if self._stage.had is not None:
                break
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, AGAIN_S)
        if not self._stopped:
            self.lost = True
            self._wake()

    def _attempt(self, number: int) -> None:
        """Ask all members for their shares, and keep up with them until :meth:`stop`. Raises _Gone."""
        members = [member for member in self._members() if member.worker != self._me]
        if not members:
            raise _Gone("there is nobody to follow yet")
        links = [link for member in members if (link := self._dial(member)) is not None]
        with self._changed:
            self._stage = _Stage(number, links)
        for link in links:  # each closes its socket when it ends
            threading.Thread(target=self._read, args=(link,), name=f"orch-fed-by-{link.worker}", daemon=True).start()
        try:
            if not self._has_asked_all([member.worker for member in self._members()]):  # of the newest view by now
                raise _Gone(f"only {len(links)} of {len(members)} members are asked")
            for index, link in enumerate(links):
                self._say(link, Wish("state", number, None, index, len(links)))
            self._keep_up()
        finally:
            self._let_go(links)

    def _keep_up(self) -> None:
        """Until :meth:`stop`, or until nobody feeds any more. Raises _Gone."""
        with self._changed:
            while not self._stopped:
                if all(link.alive for link in self._stage.links):
                    self._changed.wait()
                else:
                    self._go_on_without()

    def _go_on_without(self) -> None:
        """One of those who feed has gone. Raises _Gone."""
        stage = self._stage
        left = [link for link in stage.links if link.alive]
        if stage.had is None:
            self._stage = _Stage(0)  # what is still under way counts no more
        if stage.had is None or not left:
            raise _Gone("who has sent a part of the state is gone")
        stage.number += 1
        stage.links = left
        stage.results.clear()
        for index, link in enumerate(left):
            self._say(link, Wish("results", stage.number, stage.had, index, len(left)))

    # ---------------------------------------------------------------- links

    def _dial(self, member: ViewMember) -> _Link | None:
        try:
            sock = socket.create_connection(split(member.address), timeout=CONNECT_S)
        except (OSError, ConfigurationError) as error:
            logger.info("event=feed-undialled worker=%s at=%s why=%r", self._me, member.address, str(error))
            return None
        forks.watch(sock)
        configure(sock)
        sock.setblocking(True)
        link = _Link(member.worker, sock)
        greeting = Greeting(self._token, follower=self._me)
        try:
            sock.sendall(framed(codec.encode(greeting)))
        except OSError:
            sock.close()
            return None
        return link

    def _say(self, link: _Link, wish: Wish) -> None:
        """Never waits: a member that does not even read is no help."""
        frame = framed(codec.encode(wish))
        try:
            sent = link.sock.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            sent = 0
        if sent < len(frame) and link.alive:
            self._let_go([link])

    def _let_go(self, links: Sequence[_Link]) -> None:
        for link in links:
            link.alive = False
            try:
                link.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # gone already

    # ---------------------------------------------------------------- one thread per link

    def _read(self, link: _Link) -> None:
        try:
            while True:
                header = Header.unpack(_exactly(link.sock, HEADER_BYTES))
                if header.length > TEXT_LIMIT:
                    raise MalformedMessage(f"a header of {header.length} bytes is larger than {TEXT_LIMIT}")
                text = bytes(_exactly(link.sock, header.length))
                self._take(link, header, text)
        except (OSError, EOFError, MalformedMessage) as error:
            level = logging.WARNING if isinstance(error, MalformedMessage) else logging.INFO
            logger.log(level, "event=feed-lost worker=%s from=%s why=%r", self._me, link.worker, str(error))
        finally:
            with self._changed:
                link.alive = False
                self._changed.notify_all()
            link.sock.close()

    def _take(self, link: _Link, header: Header, text: bytes) -> None:
        share = Share(header.round, header.part)
        with self._changed:
            message = self._awaited(header, share, text)
            # of an earlier cut: read and forgotten
            incoming = Incoming(text, share.of, str(header.key)) if message is None else message.incoming
            room = incoming.room(share, text)
        for view in room:
            _fill(link.sock, view)
        if checksum(room) != header.signature:
            raise MalformedMessage(f"{header.key} came from {link.worker} with a wrong checksum")
        if header.kind is Kind.SHARE_OF_STATE:
            failpoints.reach("state-half-received", header.step)
        if message is not None:
            with self._changed:
                incoming.filled(share)
                self._deliver()

    def _awaited(self, header: Header, share: Share, text: bytes) -> _Message | None:
        stage = self._stage
        if header.bucket != stage.number:
            return None
        step = Step(header.step)
        match header.kind:
            case Kind.SHARE_OF_STATE:
                if stage.state is None:
                    stage.state = _Message(step, Incoming(text, share.of, str(header.key)))
                return stage.state
            case Kind.SHARE_OF_RESULTS:
                if step not in stage.results:
                    stage.results[step] = _Message(step, Incoming(text, share.of, str(header.key)))
                return stage.results[step]
        raise MalformedMessage(f"{header.key} came where a share was expected")

    def _deliver(self) -> None:
        """Hand on what is complete, in order."""
        stage, handover = self._stage, self._handover
        if stage.had is None and stage.state is not None and stage.state.incoming.complete:
            failpoints.reach("followed", stage.state.step)
            stage.had = Step(stage.state.step - 1)
            logger.info(
                "event=follows worker=%s step=%d bytes=%d", self._me, stage.state.step, stage.state.incoming.size
            )
            taken = handover.take_state(stage.state.step, stage.state.incoming.blob)
            stage.state, self._stopped = None, self._stopped or not taken
            self._changed.notify_all()
            self._wake()
        while stage.had is not None and not self._stopped:
            message = stage.results.get(Step(stage.had + 1))
            if message is None or not message.incoming.complete:
                return
            del stage.results[message.step]
            if not handover.take_results(Results.decode(message.incoming.blob)):
                self._stopped = True
                self._changed.notify_all()
                return
            stage.had = message.step
            for link in stage.links:
                self._say(link, Wish("had", stage.number, stage.had))
            self._wake()


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    _fill(sock, memoryview(data))
    return data


def _fill(sock: socket.socket, view: memoryview) -> None:
    while len(view):
        count = sock.recv_into(view)
        if count == 0:
            raise EOFError("the member has gone")
        view = view[count:]
