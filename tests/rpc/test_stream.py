"""The stream that finds the leader, over real sockets."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from orch_core.contracts import codec
from orch_core.contracts.document import Document
from orch_core.contracts.ids import Term, WorkerId
from orch_core.contracts.status import Phase, WorkerStatus
from orch_core.rpc import stream as stream_module
from orch_core.rpc import wire
from orch_core.rpc.stream import LeaderStream
from orch_core.rpc.v1 import control_pb2_grpc
from orch_core.testing.control import HANG_S, ControlPlane, until, worker_status

TOKEN = "a token"


async def first(stream: LeaderStream, wanted: Callable[[wire.Update], bool]) -> wire.Update:
    async with asyncio.timeout(HANG_S):
        async for update in stream.updates():
            if wanted(update):
                return update
    raise AssertionError("the stream ended")


def has_document(update: wire.Update) -> bool:
    return update.document is not None


class Scripted(control_pb2_grpc.CoordinatorServicer):
    """A replica that does what a test wants."""

    def __init__(self, talk: Callable[[Any], AsyncIterator[wire.Update | str]]) -> None:
        self.heard: list[wire.Status] = []
        self.calls = 0
        self._talk = talk

    async def Report(self, requests: Any, context: Any) -> None:
        self.calls += 1
        async for answer in self._talk(requests):
            if isinstance(answer, str):
                await context.write(wire.pack_redirect(answer))
            else:
                await context.write(wire.pack_update(answer))


@contextlib.asynccontextmanager
async def serving(servicer: Scripted) -> AsyncIterator[str]:
    server = grpc.aio.server(options=wire.SERVER_OPTIONS)
    control_pb2_grpc.add_CoordinatorServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def rate(calls: Callable[[], int]) -> float:
    """Calls per second, over half a second or more from the start; a second one must come, however slow it is here."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await until(lambda: calls() >= 2)
    await asyncio.sleep(0.5)
    return calls() / (loop.time() - began)


def test_a_worker_is_heard_by_whoever_leads() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane, LeaderStream(plane.addresses, plane.token, "w0.1") as stream:
            await plane.elect("c2")
            stream.send(worker_status("w0.1", phase=Phase.READY))
            update = await first(stream, lambda u: has_document(u) and u.revision > 1)
            assert stream.leader == plane.address("c2")
            document = codec.decode(Document, update.document or b"")
            assert document.view is not None
            assert document.view.workers == ("w0.1",)

    asyncio.run(scenario())


def test_the_stream_follows_from_leader_to_leader() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane, LeaderStream(plane.addresses, plane.token, "w0.1") as stream:
            stream.send(worker_status("w0.1"))
            for name in ("c0", "c1", "c0", "c2"):
                await plane.elect(name)
                await first(stream, lambda u: has_document(u) and u.term == plane.consensus.term)
                assert stream.leader == plane.address(name)
                board = plane.coordinators[name].board
                await until(lambda board=board: bool(board.progress and board.progress.workers))  # heard again

    asyncio.run(scenario())


def test_the_death_of_the_leader_is_followed_by_the_next_one() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane, LeaderStream(plane.addresses, plane.token, "w0.1") as stream:
            await plane.elect("c0")
            await first(stream, has_document)
            await plane.stop("c0")
            await plane.elect("c1")
            update = await first(stream, lambda u: u.term == plane.consensus.term)
            assert stream.leader == plane.address("c1")
            assert has_document(update)

    asyncio.run(scenario())


def test_unreachable_coordinators_are_no_news() -> None:
    async def scenario() -> None:
        plane = ControlPlane()
        async with LeaderStream(plane.addresses, plane.token, "w0.1") as stream:
            for sequence in range(1000):
                stream.send(worker_status("w0.1", sequence))  # never blocks
            news = asyncio.create_task(first(stream, has_document))
            await asyncio.sleep(0.1)
            assert not news.done()
            async with plane:  # and then they come
                await plane.elect("c0")
                await news
        assert plane.consensus.committed is not None

    asyncio.run(scenario())


def test_the_newest_status_is_the_one_that_a_leader_hears_first() -> None:
    heard: list[wire.Status] = []

    async def talk(requests: Any) -> AsyncIterator[wire.Update]:
        yield wire.Update(b"{}", None, Term(1), 1)
        async for message in requests:
            heard.append(wire.unpack_status(message))
            return

    async def scenario() -> None:
        async with serving(Scripted(talk)) as address:
            stream = LeaderStream([address], TOKEN, "w0.1")
            for sequence in range(50):
                stream.send(worker_status("w0.1", sequence))
            async with stream:
                await until(lambda: bool(heard))

    asyncio.run(scenario())
    assert isinstance(heard[0], WorkerStatus)
    assert heard[0].sequence == 49


def test_a_slow_reader_finds_the_newest_document_and_the_newest_progress() -> None:
    async def talk(requests: Any) -> AsyncIterator[wire.Update]:
        for revision in range(1, 101):
            yield wire.Update(b"document %d" % revision, b"progress %d" % revision, Term(1), revision)
        yield wire.Update(None, b"the last progress", Term(1))
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with serving(Scripted(talk)) as address, LeaderStream([address], TOKEN, "w0.1") as stream:
            await until(lambda: bool(stream._news and stream._news.progress == b"the last progress"))
            update = await first(stream, lambda _: True)
            assert update == wire.Update(b"document 100", b"the last progress", Term(1), 100)

    asyncio.run(scenario())


def test_a_document_that_is_older_than_the_last_one_is_dropped_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(requests: Any) -> AsyncIterator[wire.Update]:
        yield wire.Update(b"new", None, Term(2), 7)
        yield wire.Update(b"old", b"progress", Term(2), 6)
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with serving(Scripted(talk)) as address, LeaderStream([address], TOKEN, "w0.1") as stream:
            seen = []
            while not seen or seen[-1].progress is None:
                seen.append(await first(stream, lambda _: True))
            assert [update.document for update in seen if update.document] == [b"new"]

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert sum("stale-document" in line for line in caplog.messages) == 1


def test_a_replica_that_never_answers_holds_nobody_up() -> None:
    """It is stopped: the kernel accepts its connections, and that is all."""

    async def scenario() -> None:
        async with ControlPlane(1) as plane:
            await plane.elect("c0")
            with socket.create_server(("127.0.0.1", 0)) as frozen:
                host, port = frozen.getsockname()
                began = time.monotonic()
                async with LeaderStream([f"{host}:{port}", *plane.addresses], plane.token, "w0.1") as stream:
                    await first(stream, has_document)
                    assert stream.leader == plane.address("c0")
                    assert time.monotonic() - began < stream_module.ANSWER_S

    asyncio.run(scenario())


def test_a_leader_that_says_nothing_any_more_is_left_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "SILENCE_S", 0.3)

    async def frozen(requests: Any) -> AsyncIterator[wire.Update]:
        yield wire.Update(b"of the frozen one", None, Term(1), 1)
        await asyncio.Event().wait()

    async def lively(requests: Any) -> AsyncIterator[wire.Update]:
        yield wire.Update(b"of the next one", None, Term(2), 2)
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with serving(Scripted(frozen)) as old, serving(Scripted(lively)) as new:
            async with LeaderStream([old, new], TOKEN, "w0.1") as stream:
                await first(stream, lambda u: u.document == b"of the frozen one")
                await first(stream, lambda u: u.document == b"of the next one")

    asyncio.run(scenario())


def test_two_replicas_that_name_each_other_are_not_asked_in_a_hurry() -> None:
    async def scenario() -> None:
        names: dict[str, str] = {}

        def pointing_to(other: str) -> Scripted:
            async def talk(requests: Any) -> AsyncIterator[str]:
                yield names[other]

            return Scripted(talk)

        one, two = pointing_to("two"), pointing_to("one")
        async with serving(one) as first_address, serving(two) as second_address:
            names.update(one=first_address, two=second_address)
            async with LeaderStream([first_address, second_address], TOKEN, "w0.1"):
                calls_per_s = await rate(lambda: one.calls + two.calls)
        assert calls_per_s <= 80

    asyncio.run(scenario())


def test_a_leader_that_keeps_hanging_up_is_not_dialled_in_a_hurry() -> None:
    async def talk(requests: Any) -> AsyncIterator[wire.Update]:
        yield wire.Update(b"{}", None, Term(1), 1)

    async def scenario() -> None:
        servicer = Scripted(talk)
        async with serving(servicer) as address, LeaderStream([address], TOKEN, "w0.1"):
            calls_per_s = await rate(lambda: servicer.calls)
        assert calls_per_s <= 40

    asyncio.run(scenario())


def test_a_wrong_token_is_never_let_in_and_leaves_a_line_on_the_other_side(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with ControlPlane(1) as plane:
            await plane.elect("c0")
            with caplog.at_level(logging.WARNING):
                async with LeaderStream(plane.addresses, "guessed", "w0.1") as stream:
                    stream.send(worker_status("w0.1", phase=Phase.READY))
                    await until(lambda: "token-refused" in caplog.text)
                    assert stream.leader is None
            board = plane.coordinators["c0"].board
            assert board.document is not None
            assert board.document.places == ()

    asyncio.run(scenario())
    assert "guessed" not in caplog.text
    assert TOKEN not in caplog.text


def test_updates_end_with_the_stream_and_nothing_is_left_running() -> None:
    async def scenario() -> None:
        async with ControlPlane(1) as plane:
            await plane.elect("c0")
            async with LeaderStream(plane.addresses, plane.token, "w0.1") as stream:
                reader = asyncio.create_task(_drain(stream))
                await until(lambda: stream.leader is not None)
            async with asyncio.timeout(HANG_S):
                await reader
            ours = ("leader-stream", "ask ", "report ")  # gRPC's own have no names
            await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith(ours)])

    asyncio.run(scenario())


def test_workers_get_the_document_without_its_history() -> None:
    async def scenario() -> None:
        async with ControlPlane(workers=1) as plane:
            await plane.elect("c0")
            async with LeaderStream(plane.addresses, plane.token, WorkerId("w0.1")) as worker:
                worker.send(worker_status("w0.1", phase=Phase.READY))
                async with LeaderStream(plane.addresses, plane.token, "a0") as agent:
                    short = await first(worker, lambda u: u.revision >= 2)
                    long = await first(agent, lambda u: u.revision >= 2)
        of_worker = codec.decode(Document, short.document or b"")
        of_agent = codec.decode(Document, long.document or b"")
        assert of_worker.view == of_agent.view
        assert of_agent.events
        assert not of_worker.events

    asyncio.run(scenario())


async def _drain(stream: LeaderStream) -> None:
    async for _ in stream.updates():
        pass
