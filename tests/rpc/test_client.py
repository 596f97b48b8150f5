"""One-shot questions and commands."""

import asyncio

import pytest

from orch_core.contracts.errors import ConfigurationError, Unreachable
from orch_core.rpc import client
from orch_core.testing.control import ControlPlane, until


def test_the_leaders_answer_is_the_one_that_is_shown() -> None:
    async def scenario() -> client.StatusJson:
        async with ControlPlane() as plane:
            await plane.elect("c1")
            await until(lambda: plane.coordinators["c1"].board.progress is not None)
            return await asyncio.to_thread(client.inspect, plane.addresses, plane.token)

    status = asyncio.run(scenario())
    assert (status["by"], status["leader"], status["stale"], status["quorum"]) == ("c1", "c1", False, True)
    assert [row["role"] for row in status["coordinators"]] == ["follower", "leader", "follower"]
    assert all(row["pid"] for row in status["coordinators"])


def test_a_dead_replica_shows_as_unreachable() -> None:
    async def scenario() -> client.StatusJson:
        async with ControlPlane() as plane:
            await plane.elect("c1")
            await plane.stop("c0")
            return await asyncio.to_thread(client.inspect, plane.addresses, plane.token)

    rows = asyncio.run(scenario())["coordinators"]
    assert [(row["id"], row["role"]) for row in rows] == [("c0", "unreachable"), ("c1", "leader"), ("c2", "follower")]
    assert rows[0]["pid"] is None


def test_without_a_leader_any_replica_answers_from_what_it_has() -> None:
    async def scenario() -> client.StatusJson:
        async with ControlPlane() as plane:
            await plane.elect("c1")
            await plane.elect(None)
            plane.consensus.quorum = False
            return await asyncio.to_thread(client.inspect, plane.addresses, plane.token)

    status = asyncio.run(scenario())
    assert (status["stale"], status["quorum"], status["leader"], status["revision"]) == (True, False, None, 1)


def test_nobody_there_is_a_sentence() -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        client.inspect(["127.0.0.1:1"], "token")
    with pytest.raises(Unreachable, match="no leader could be found"):
        client.command(["127.0.0.1:1"], "token", "stop", {}, timeout_s=0.3)


def test_a_refused_token_is_a_sentence_of_its_own() -> None:
    async def scenario() -> None:
        async with ControlPlane(1) as plane:
            await plane.elect("c0")
            with pytest.raises(ConfigurationError, match="refuse the token"):
                await asyncio.to_thread(client.inspect, plane.addresses, "guessed")
            with pytest.raises(ConfigurationError, match="refuse the token"):
                await asyncio.to_thread(client.command, plane.addresses, "guessed", "stop", {})

    asyncio.run(scenario())


def test_a_command_finds_the_leader_and_is_committed_when_it_returns() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane:
            await plane.elect("c2")
            done = await asyncio.to_thread(client.command, plane.addresses, plane.token, "stop", {})
            document = plane.coordinators["c2"].board.document
            assert document is not None
            assert document.stop == "stopped"
            assert done.revision <= document.revision
            again = await asyncio.to_thread(client.command, plane.addresses, plane.token, "stop", {})
            assert again.revision == document.revision  # nothing to change, nothing to commit

    asyncio.run(scenario())


def test_a_command_waits_for_an_election() -> None:
    async def scenario() -> None:
        async with ControlPlane() as plane:
            command = asyncio.create_task(asyncio.to_thread(client.command, plane.addresses, plane.token, "stop", {}))
            await asyncio.sleep(0.1)
            assert not command.done()
            await plane.elect("c0")
            await command

    asyncio.run(scenario())


def test_the_leader_says_why_it_refuses_a_command() -> None:
    async def scenario() -> None:
        async with ControlPlane(1) as plane:
            await plane.elect("c0")
            with pytest.raises(ConfigurationError, match="'dance' is no command"):
                await asyncio.to_thread(client.command, plane.addresses, plane.token, "dance", {})

    asyncio.run(scenario())


def test_merging_prefers_the_newest_of_stale_answers() -> None:
    def answer(by: str, revision: int) -> client.StatusJson:
        rows = [{"id": i, "pid": 1 if i == by else None, "address": "", "role": "follower"} for i in ("c0", "c1", "c2")]
        return {"version": 1, "by": by, "stale": True, "term": 4, "revision": revision, "coordinators": rows}

    merged = client.merge([answer("c0", 3), answer("c2", 5)])
    assert merged["revision"] == 5
    assert [row["role"] for row in merged["coordinators"]] == ["follower", "unreachable", "follower"]
