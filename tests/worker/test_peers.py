"""Links between two keepers of one loop, on loopback."""

import asyncio
import errno

import pytest

from orch_core.contracts.document import Cause, View, ViewMember
from orch_core.contracts.ids import Step, ViewNumber, WorkerId
from orch_core.protocol.deal import Position
from orch_core.protocol.member import Hello
from orch_core.worker import peers
from orch_core.worker.feeds import Feeds
from orch_core.worker.peers import Listener, Peers

HANG_S = 60.0
A, B = WorkerId("w0.1"), WorkerId("w1.1")


def ignore(*_):
    pass


def test_an_error_at_accept_does_not_end_accepting(monkeypatch):
    monkeypatch.setattr(peers, "ACCEPT_AGAIN_S", 0.0)

    async def scenario():
        loop = asyncio.get_running_loop()
        errors = [OSError(errno.EMFILE, "too many open files"), OSError(errno.ECONNABORTED, "the caller has gone")]
        accept, heard = loop.sock_accept, loop.create_future()

        async def reluctantly(server):
            if errors:
                raise errors.pop(0)
            return await accept(server)

        monkeypatch.setattr(loop, "sock_accept", reluctantly)
        listener = Peers("127.0.0.1", "token", Listener(ignore, heard.set_result, ignore, heard.set_exception), Feeds())
        caller = Peers("127.0.0.1", "token", Listener(ignore, ignore, ignore, heard.set_exception), Feeds())
        members = (ViewMember(A, listener.address), ViewMember(B, caller.address))
        view = View(ViewNumber(1), members, Cause.START, "a test's", Step(0), 0.0)
        listener.start()
        caller.start()
        try:
            caller.greet(Hello(view, B, Position(), "same", ()), (A,))
            async with asyncio.timeout(HANG_S):
                assert (await heard).sender == B
            assert errors == []
        finally:
            await caller.close()
            await listener.close()

    asyncio.run(scenario())


def test_an_error_of_our_own_behind_a_hello_is_told():
    async def scenario():
        failed = asyncio.get_running_loop().create_future()

        def breaks(_):
            raise RuntimeError("a bug")

        listener = Peers("127.0.0.1", "token", Listener(ignore, breaks, ignore, failed.set_result), Feeds())
        caller = Peers("127.0.0.1", "token", Listener(ignore, ignore, ignore, ignore), Feeds())
        members = (ViewMember(A, listener.address), ViewMember(B, caller.address))
        view = View(ViewNumber(1), members, Cause.START, "a test's", Step(0), 0.0)
        listener.start()
        caller.start()
        try:
            caller.greet(Hello(view, B, Position(), "same", ()), (A,))
            async with asyncio.timeout(HANG_S):
                with pytest.raises(RuntimeError, match="a bug"):
                    raise await failed
        finally:
            await caller.close()
            await listener.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("nonsense", ["nowhere", "no-such-host.invalid:1"])
def test_an_address_that_is_none_is_a_peer_that_does_not_answer(nonsense):
    """What another worker says of itself must not end this one."""

    async def scenario():
        failed = asyncio.get_running_loop().create_future()
        caller = Peers("127.0.0.1", "token", Listener(ignore, ignore, ignore, failed.set_result), Feeds())
        members = (ViewMember(A, nonsense), ViewMember(B, caller.address))
        caller.start()
        try:
            caller.greet(
                Hello(View(ViewNumber(1), members, Cause.START, "a test's", Step(0), 0.0), B, Position()), (A,)
            )
            (dialling,) = caller._dialling
            done, _ = await asyncio.wait([dialling, failed], timeout=0.5)
            assert not done
        finally:
            await caller.close()

    asyncio.run(scenario())
