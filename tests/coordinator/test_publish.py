"""Newest wins, per stream, without a queue."""

import asyncio

from orch_core.contracts import codec
from orch_core.contracts.document import Document, Event
from orch_core.contracts.ids import JobName, Step, Term
from orch_core.contracts.job import JobSpec
from orch_core.contracts.status import Progress
from orch_core.coordinator.publish import Board, for_workers


def document(revision: int) -> Document:
    return Document(JobSpec(JobName("test")), 0.0, revision=revision, events=(Event(0.0, "view", "text"),))


def test_a_slow_reader_gets_the_newest_document_and_the_newest_progress_only() -> None:
    async def scenario() -> None:
        board = Board()
        board.open(Term(1), document(1))
        stream = board.read(short=False)
        assert (await anext(stream)).revision == 1
        for number in range(2, 1000):
            board.put(document(number))
            board.show(Progress(step=Step(number)))
        update = await anext(stream)
        assert update.revision == 999
        assert codec.decode(Progress, update.progress or b"").step == 999
        waits = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not waits.done()  # nothing is sent twice
        board.show(Progress())
        assert (await waits).document is None
        await stream.aclose()

    asyncio.run(scenario())


def test_all_streams_end_with_the_leadership_even_if_the_next_one_begins_at_once() -> None:
    async def scenario() -> None:
        board = Board()
        board.open(Term(1), document(1))
        streams = [board.read(short=short) for short in (True, False)]
        for stream in streams:
            await anext(stream)
        waiting = [asyncio.ensure_future(anext(stream, None)) for stream in streams]
        await asyncio.sleep(0)
        board.close()
        board.open(Term(2), document(2))
        assert await asyncio.gather(*waiting) == [None, None]

    asyncio.run(scenario())


def test_each_document_is_encoded_once_for_all_streams() -> None:
    async def scenario() -> None:
        board = Board()
        board.open(Term(1), document(1))
        one, two = board.read(short=True), board.read(short=True)
        assert (await anext(one)).document is (await anext(two)).document
        await one.aclose()
        await two.aclose()

    asyncio.run(scenario())


def test_workers_need_no_history() -> None:
    short = for_workers(document(3))
    assert (short.events, short.revision) == ((), 3)
