"""What a member sends to those who follow: its share of one captured State(s), then its share of each step's results.

::

    follower ── Wish(state, attempt 1, share 0 of 3) ──► each member       its keeper hears it
    member   ── "w2.3 asks, attempt 1" in its barrier part of s - 1        all members do: then all capture State(s)
    member   ── its share of State(s), of results s - 1, s, s + 1, ... ──► follower
    follower ── Wish(had, step) ──► each member                            results up to it are let go of
    follower ── Wish(results, after step, share 0 of 2) ──► each member    one of them has died: the rest in new shares

The script thread only copies its share of the state and hands on references: results are never changed. Each follower
has a thread that sends. Who takes too long to follow is dropped, so a follower never costs a member more than memory.
"""

import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from orch_core import failpoints
from orch_core.contracts.ids import Step, WorkerId
from orch_core.dataplane.group import LOOK_AFTER_MS, Blob
from orch_core.dataplane.kept import Results
from orch_core.dataplane.memory import empty
from orch_core.dataplane.shares import Packed, Share, checksum
from orch_core.dataplane.tcp import Header, Kind, Sender, bytes_of, configure, unreachable

KEPT_RESULTS = 1024  # steps
KEPT_BYTES = 1 << 30  # of results that a follower has not got yet; always at least KEPT_LEAST steps
KEPT_LEAST = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """A follower's word to a member."""

    what: str  # "state" | "results" | "had"
    number: int = 0  # of the attempt, or of the new cut of shares; frames carry the newest one
    step: Step | None = None  # results behind this one; had: up to this one
    index: int = 0  # the share
    of: int = 1
    version: int = 1


class Feeds:
    """All followers of this member. The keeper's side: accept, wish, drop. The script's: waiting, capture, push."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._feeds: dict[WorkerId, _Feed] = {}
        self._replaced: set[_Feed] = set()  # the same follower has dialled again; the keeper has not seen their end yet

    # ---------------------------------------------------------------- the keeper's side

    def accept(self, follower: WorkerId, sock: socket.socket) -> None:
        """A follower has dialled. Takes the socket over."""
        with self._lock:
            before = self._feeds.pop(follower, None)
            self._feeds[follower] = _Feed(follower, sock)
            if before is not None:
                self._replaced.add(before)
        if before is not None:
            before.close()

    def wish(self, follower: WorkerId, wish: Wish) -> None:
        with self._lock:
            feed = self._feeds.get(follower)
        if feed is not None:
            feed.wish(wish)

    def drop(self, follower: WorkerId, sock: socket.socket) -> None:
        """Its connection has ended."""
        with self._lock:
            feed = self._feeds.get(follower)
            if feed is not None and feed.uses(sock):
                del self._feeds[follower]
            else:
                feed = next((old for old in self._replaced if old.uses(sock)), None)
            if feed is None:
                return
            self._replaced.discard(feed)
        feed.close()
        feed.release()

    # ---------------------------------------------------------------- the script's side

    @property
    def any(self) -> bool:
        return bool(self._feeds)

    def size_up(self, changing: int) -> None:
        """So many bytes of a state will have to be copied: memory for it is made ready, for copying into fresh memory
        takes ten times as long."""
        with self._lock:
            feeds = list(self._feeds.values())
        for feed in feeds:
            feed.make_room(changing)

    def waiting(self) -> tuple[tuple[str, int], ...]:
        """Who wants a state, and with which attempt: for the barrier."""
        if not self._feeds:
            return ()
        with self._lock:
            return tuple((f.follower, number) for f in self._feeds.values() if (number := f.waits()) is not None)

    def knows(self, asked: Sequence[tuple[str, int]]) -> bool:
        return any(WorkerId(name) in self._feeds for name, _ in asked)

    def capture(self, asked: Sequence[tuple[str, int]], step: Step, state: Blob, changing: int) -> None:
        """All members have State(`step`) and do this for the same followers: copies this member's shares, as far as
        they are of the first `changing` bytes."""
        with self._lock:
            feeds = [(feed, number) for name, number in asked if (feed := self._feeds.get(WorkerId(name))) is not None]
        began, packed = time.perf_counter(), Packed.of(state)
        for feed, number in feeds:
            feed.capture(number, step, packed, changing)
            took = 1000 * (time.perf_counter() - began)
            logger.info("event=captured follower=%s step=%d bytes=%d ms=%.1f", feed.follower, step, packed.size, took)

    def push(self, results: Results) -> None:
        """This member has applied a step."""
        if not self._feeds:
            return
        with self._lock:
            feeds = [feed for feed in self._feeds.values() if feed.active]
        if feeds:
            packed = Packed.of(results.encode())
            for feed in feeds:
                feed.push(results.step, packed)


@dataclass(frozen=True, slots=True)
class _Item:
    step: Step
    packed: Packed


class _Feed:
    """One follower."""

    def __init__(self, follower: WorkerId, sock: socket.socket) -> None:
        configure(sock)
        self.follower = follower
        self._sender = Sender(0, sock)
        self._changed = threading.Condition()
        self._number = 0
        self._share = Share(0, 1)
        self._waits = False
        self._wanted = 0  # bytes of room for the copy of a share
        self._room: memoryview | None = None
        self._state: tuple[Step, bytes, list[memoryview]] | None = None  # captured and not yet sent
        self._items: deque[_Item] = deque()  # results that the follower has not confirmed
        self._next = 0  # the first of them that is not sent
        self._bytes = 0
        self.active = False  # a state was captured for it: every later step's results are sent
        self._closed = False
        self._users = 2  # of the socket: the thread that sends, and the keeper, which reads
        self._thread = threading.Thread(target=self._send, name=f"orch-feeds-{follower}", daemon=True)
        self._thread.start()

    def uses(self, sock: socket.socket) -> bool:
        return self._sender.sock is sock

    def waits(self) -> int | None:
        return self._number if self._waits and self._room is not None else None

    def make_room(self, changing: int) -> None:
        with self._changed:
            if self._waits and self._room is None:
                lo, hi = self._share.span(changing)
                self._wanted = max(1, hi - lo)
                self._changed.notify()

    def wish(self, wish: Wish) -> None:
        with self._changed:
            match wish.what:
                case "state":
                    self._number, self._share, self._waits = wish.number, Share(wish.index, wish.of), True
                    self._state, self.active, self._room, self._wanted = None, False, None, 0
                    self._items.clear()
                    self._next = self._bytes = 0
                case "results" if wish.step is not None:
                    self._number, self._share = wish.number, Share(wish.index, wish.of)
                    self._forget(wish.step)
                    self._next = 0
                case "had" if wish.step is not None:
                    self._forget(wish.step)
            self._changed.notify()

    def _forget(self, step: Step) -> None:
        while self._items and self._items[0].step <= step:
            self._bytes -= self._items.popleft().packed.size
            self._next = max(0, self._next - 1)

    def capture(self, number: int, step: Step, packed: Packed, changing: int) -> None:
        with self._changed:
            if not self._waits or number != self._number or self._room is None:
                return
            self._waits, self.active = False, True
            self._state = (step, packed.text, packed.copied(self._share, self._room, changing))
            self._room = None
            self._changed.notify()

    def push(self, step: Step, packed: Packed) -> None:
        with self._changed:
            self._items.append(_Item(step, packed))
            self._bytes += packed.size
            many = len(self._items) > KEPT_RESULTS or self._bytes > KEPT_BYTES
            if many and len(self._items) > KEPT_LEAST:
                logger.warning("event=follower-too-slow follower=%s behind=%d", self.follower, len(self._items))
                self._end()
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._end()
            self._changed.notify()

    def release(self) -> None:
        """The last of two closes the descriptor."""
        with self._changed:
            self._users -= 1
            if self._users == 0:
                self._sender.sock.close()

    def _end(self) -> None:
        self._closed, self.active, self._waits = True, False, False
        self._state = None
        self._items.clear()
        try:
            self._sender.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already

    # ---------------------------------------------------------------- the thread

    def _send(self) -> None:
        try:
            while (frame := self._frame()) is not None:
                header, text, parts = frame
                half = len(parts) // 2
                self._sender.put(header, [memoryview(text), *parts[:half]])
                if header.kind is Kind.SHARE_OF_STATE:
                    self._pump()
                    failpoints.reach("state-half-sent", header.step)
                self._sender.add(parts[half:])
                self._pump()
        except (OSError, EOFError) as error:
            logger.info("event=feed-ended follower=%s why=%r", self.follower, str(error))
        finally:
            self.close()
            self.release()

    def _frame(self) -> tuple[Header, bytes, Sequence[memoryview]] | None:
        """The next share to send; None at the end."""
        with self._changed:
            while not self._closed and self._state is None and self._next >= len(self._items):
                if self._wanted:
                    self._get_room()
                else:
                    self._changed.wait()
            if self._closed:
                return None
            number, share = self._number, self._share
            if self._state is not None:
                step, text, parts = self._state
                self._state = None
                kind = Kind.SHARE_OF_STATE
            else:
                item = self._items[self._next]
                self._next += 1
                kind, step, text, parts = Kind.SHARE_OF_RESULTS, item.step, item.packed.text, item.packed.share(share)
        header = Header(
            kind, step, bucket=number, round=share.index, part=share.of, signature=checksum(parts), length=len(text)
        )
        return header, text, parts

    def _get_room(self) -> None:
        """Memory whose pages are there. The lock is not held meanwhile."""
        size, number, self._wanted = self._wanted, self._number, 0
        self._changed.release()
        try:
            room = bytes_of(empty(size, torch.uint8).zero_())
        finally:
            self._changed.acquire()
        if number == self._number:
            self._room = room

    def _pump(self) -> None:
        sender, poll = self._sender, select.poll()
        poll.register(sender.sock.fileno(), select.POLLOUT)
        while sender.pending:
            sender.pump()
            if not sender.blocked:
                continue
            while not poll.poll(LOOK_AFTER_MS):
                if why := unreachable(sender.sock):
                    raise OSError(why)
