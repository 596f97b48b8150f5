"""The handlers: nonsense is dropped in one line, and nobody gets in without the token."""

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest

from orch_core.contracts.document import Event
from orch_core.contracts.ids import AgentId, WorkerId
from orch_core.contracts.status import AgentStatus, Phase, ProcessReport, ProcessState
from orch_core.coordinator import service
from orch_core.rpc import wire
from orch_core.rpc.v1 import control_pb2 as pb
from orch_core.rpc.v1 import control_pb2_grpc
from orch_core.testing.control import ControlPlane, until, worker_status


def channel(plane: ControlPlane, name: str = "c0") -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(plane.address(name), options=wire.CLIENT_OPTIONS)


def stub(opened: grpc.aio.Channel) -> Any:
    return control_pb2_grpc.CoordinatorStub(opened)


def test_malformed_statuses_are_dropped_in_one_line_each_and_the_stream_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd_worker = worker_status("mallory")
    odd_report = AgentStatus(AgentId("a0"), 1, "here", (ProcessReport(WorkerId("x"), 1, ProcessState.RUNNING),))
    nonsense = [
        pb.StatusUp(version=1),
        pb.StatusUp(version=99, worker=b"{}"),
        pb.StatusUp(version=1, worker=b"{"),
        pb.StatusUp(version=1, agent=b"[" * 5000),
        wire.pack_status(odd_worker),
        wire.pack_status(odd_report),
    ]

    async def scenario() -> None:
        async with ControlPlane(1) as plane, channel(plane) as opened:
            await plane.elect("c0")
            call = stub(opened).Report(metadata=wire.metadata(plane.token, "w0.1"))
            for message in nonsense:
                await call.write(message)
            await call.write(wire.pack_status(worker_status("w0.1", phase=Phase.READY)))
            board = plane.coordinators["c0"].board
            await until(lambda: bool(board.document and board.document.places))
            assert [p.worker for p in board.document.places] == ["w0.1"]  # type: ignore[union-attr]
            call.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert sum("status-malformed" in line for line in caplog.messages) == len(nonsense)
    assert all("\n" not in line for line in caplog.messages)


@pytest.mark.parametrize("metadata", [None, [(wire.TOKEN_KEY, "guessed"), (wire.WHO_KEY, "eve")]])
@pytest.mark.parametrize("method", ["Report", "Inspect", "Command"])
def test_no_call_is_answered_without_the_token(method: str, metadata: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def call(opened: grpc.aio.Channel) -> None:
        match method:
            case "Report":
                await stub(opened).Report(metadata=metadata).read()
            case "Inspect":
                await stub(opened).Inspect(pb.InspectRequest(version=1), metadata=metadata)
            case "Command":
                await stub(opened).Command(pb.CommandRequest(version=1, name="stop"), metadata=metadata)

    async def scenario() -> None:
        async with ControlPlane(1) as plane, channel(plane) as opened:
            await plane.elect("c0")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(opened)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            document = plane.coordinators["c0"].board.document
            assert document is not None
            assert not document.stop

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert sum("token-refused" in line for line in caplog.messages) == 1


def test_a_follower_names_the_leader_and_ends_the_stream() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane, channel(plane, "c1") as opened:
            call = stub(opened).Report(metadata=wire.metadata(plane.token, "w0.1"))
            assert wire.unpack_update(await call.read()) == wire.Redirect("")
            assert await call.read() is grpc.aio.EOF
            await plane.elect("c2")
            call = stub(opened).Report(metadata=wire.metadata(plane.token, "w0.1"))
            assert wire.unpack_update(await call.read()) == wire.Redirect(plane.address("c2"))
            reply = await stub(opened).Command(
                pb.CommandRequest(version=1, name="stop"), metadata=wire.metadata(plane.token, "cli")
            )
            assert (reply.redirect, reply.leader, reply.error) == (True, plane.address("c2"), "")

    asyncio.run(scenario())


def test_who_asks_during_an_election_is_served_by_its_winner_without_asking_again() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane, channel(plane, "c1") as opened:
            call = stub(opened).Report(metadata=wire.metadata(plane.token, "w0.1"))
            answer = asyncio.ensure_future(call.read())
            await asyncio.sleep(service.ELECTION_S / 4)
            await plane.elect("c1")
            update = wire.unpack_update(await answer)
            assert isinstance(update, wire.Update)
            assert update.document is not None
            call.cancel()

    asyncio.run(scenario())


def test_a_follower_is_inspected_from_what_it_has_seen_committed() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane, channel(plane, "c1") as opened:
            await plane.elect("c0")
            plane.coordinators["c0"].leader.post(worker_status("w0.1", phase=Phase.READY))
            await until(lambda: len(plane.consensus.history) > 1)
            await asyncio.sleep(0)
            reply = await stub(opened).Inspect(pb.InspectRequest(version=1), metadata=wire.metadata(plane.token, "cli"))
            status = json.loads(reply.status)
            assert (status["stale"], status["view"]["number"], status["workers"][0]["id"]) == (True, 1, "w0.1")

    asyncio.run(scenario())


@pytest.mark.parametrize("args", [b"[]", b"{", b'{"how": 3}', b" " * 70_000])
def test_malformed_arguments_of_a_command_are_answered_with_a_sentence(args: bytes) -> None:
    async def scenario() -> None:
        async with ControlPlane(1) as plane, channel(plane) as opened:
            await plane.elect("c0")
            reply = await stub(opened).Command(
                pb.CommandRequest(version=1, name="stop", args=args), metadata=wire.metadata(plane.token, "cli")
            )
            assert "arguments" in reply.error

    asyncio.run(scenario())


def test_a_receiver_that_does_not_read_is_sent_the_newest_when_it_does() -> None:
    async def scenario() -> None:
        async with ControlPlane(1) as plane, channel(plane) as opened:
            await plane.elect("c0")
            call = stub(opened).Report(metadata=wire.metadata(plane.token, "a0"))
            await call.read()
            board = plane.coordinators["c0"].board
            assert board.document is not None
            big = replace(board.document, events=(Event(0.0, "view", "x" * 400_000),))
            for revision in range(2, 301):
                board.put(replace(big, revision=revision))
                await asyncio.sleep(0)
            got, last = 0, 0
            while last < 300:
                update = wire.unpack_update(await call.read())
                assert isinstance(update, wire.Update)
                got, last = got + 1, max(last, update.revision)
            assert got < 150  # what fits into the sockets' buffers, and the newest
            call.cancel()

    asyncio.run(scenario())
