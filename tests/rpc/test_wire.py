"""Envelopes, and who may open them."""

import pytest

from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import AgentId, Term, WorkerId
from orch_core.contracts.status import AgentStatus, Phase, WorkerStatus
from orch_core.rpc import wire
from orch_core.rpc.v1 import control_pb2 as pb

WORKER = WorkerStatus(WorkerId("w1.2"), 7, 42, "here", "127.0.0.1:1", Phase.READY)
AGENT = AgentStatus(AgentId("a0"), 3, "here", stop="stopped")


@pytest.mark.parametrize("status", [WORKER, AGENT])
def test_a_status_survives_the_wire(status: wire.Status) -> None:
    assert wire.unpack_status(pb.StatusUp.FromString(wire.pack_status(status).SerializeToString())) == status


@pytest.mark.parametrize(
    "update",
    [
        wire.Update(b"{}", b"[]", Term(3), 9),
        wire.Update(None, b"[]", Term(3)),
        wire.Update(None, None, Term(1)),
    ],
)
def test_an_update_survives_the_wire(update: wire.Update) -> None:
    assert wire.unpack_update(pb.Update.FromString(wire.pack_update(update).SerializeToString())) == update


def test_a_follower_redirects_even_if_it_knows_of_no_leader() -> None:
    assert wire.unpack_update(wire.pack_redirect("")) == wire.Redirect("")
    assert wire.unpack_update(wire.pack_redirect("127.0.0.1:9")) == wire.Redirect("127.0.0.1:9")


@pytest.mark.parametrize(
    "message",
    [
        pb.StatusUp(),
        pb.StatusUp(version=1),
        pb.StatusUp(version=2, worker=b"{}"),
        pb.StatusUp(version=1, worker=b"{}"),
        pb.StatusUp(version=1, worker=b"\xff\xfe"),
        pb.StatusUp(version=1, agent=b'{"agent": 3}'),
    ],
)
def test_nonsense_is_a_malformed_message_and_nothing_else(message: pb.StatusUp) -> None:
    with pytest.raises(MalformedMessage):
        wire.unpack_status(message)


def test_an_update_of_another_version_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="version 9"):
        wire.unpack_update(pb.Update(version=9))


@pytest.mark.parametrize(("given", "known"), [("secret", True), (b"secret", True), ("Secret", False), ("", False)])
def test_only_the_secret_itself_opens(given: str | bytes, known: bool) -> None:
    assert wire.knows("secret", given) is known


def test_a_secret_may_be_any_text() -> None:
    assert not wire.knows("geheim-ü", "geheim-u")
