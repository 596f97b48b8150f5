"""The board on which the leader publishes, and the streams that read it.

A stream has no queue: it remembers which document and which progress it has passed on, and takes the newest when it is
ready for more. So a slow receiver costs nothing and sees only what is still true.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from orch_core.contracts import codec
from orch_core.contracts.document import Document
from orch_core.contracts.ids import Term
from orch_core.contracts.status import Progress
from orch_core.rpc.wire import Update


class Board:
    """Open while this replica leads. What is on it has been committed, progress excepted."""

    def __init__(self) -> None:
        self.term: Term | None = None  # None: closed
        self.document: Document | None = None
        self.progress: Progress | None = None
        self._bytes: dict[bool, bytes] = {}  # short form? -> the document
        self._progress_bytes = b""
        self._progress_number = 0
        self._changed = asyncio.Event()

    def open(self, term: Term, document: Document) -> None:
        self.term = term
        self.progress, self._progress_bytes = None, b""
        self.put(document)

    def put(self, document: Document) -> None:
        """A newer document is committed. Encoded once for all streams."""
        self.document = document
        self._bytes = {False: codec.encode(document), True: codec.encode(for_workers(document))}
        self._wake()

    def show(self, progress: Progress) -> None:
        self.progress = progress
        self._progress_bytes = codec.encode(progress)
        self._progress_number += 1
        self._wake()

    def close(self) -> None:
        """This replica leads no more: all streams end."""
        self.term = None
        self._wake()

    async def read(self, *, short: bool) -> AsyncIterator[Update]:
        """What one stream sends: the document at once, then the newest of everything. Ends when the board closes."""
        term, revision, number = self.term, -1, -1
        while self.term is not None and self.term == term:
            changed = self._changed
            document = self.document
            assert document is not None
            new_document, new_progress = document.revision != revision, self._progress_number != number
            revision, number = document.revision, self._progress_number
            if new_document or new_progress:
                yield Update(
                    self._bytes[short] if new_document else None,
                    self._progress_bytes if new_progress else None,
                    term,
                    revision if new_document else 0,
                )
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def for_workers(document: Document) -> Document:
    """The part that workers need: no history."""
    return replace(document, views=document.views[-1:], events=(), recoveries=(), deaths=(), checkpoints=())
