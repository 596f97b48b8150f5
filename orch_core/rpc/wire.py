"""Protobuf <-> contracts, and what every channel and call of the control plane has in common."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from orch_core.contracts import codec
from orch_core.contracts.errors import MalformedMessage
from orch_core.contracts.ids import Term
from orch_core.contracts.status import AgentStatus, WorkerStatus
from orch_core.rpc.v1 import control_pb2 as pb

VERSION = 1
TOKEN_KEY, WHO_KEY = "orch-token", "orch-who"
KEEPALIVE_MS = 2_000  # a host that is gone is noticed within twice this; also becomes TCP_USER_TIMEOUT

Status: TypeAlias = WorkerStatus | AgentStatus

_SIZES = [
    ("grpc.max_send_message_length", codec.MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", codec.MESSAGE_LIMIT),
]
CLIENT_OPTIONS: Sequence[tuple[str, Any]] = [
    *_SIZES,
    ("grpc.enable_http_proxy", 0),  # or even loopback goes through $http_proxy
    ("grpc.enable_retries", 0),  # who retries, and when, is decided in one place, and that is not gRPC
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection without an inherited back-off
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),
]
SERVER_OPTIONS: Sequence[tuple[str, Any]] = [
    *_SIZES,
    ("grpc.so_reuseport", 1),  # the agent keeps the port reserved with a socket of its own
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
]


@dataclass(frozen=True, slots=True)
class Update:
    """News from the leader. Bytes, so that who does not need a document's content does not pay for reading it."""

    document: bytes | None  # contracts.document.Document, committed
    progress: bytes | None  # contracts.status.Progress
    term: Term
    revision: int = 0  # of `document`


@dataclass(frozen=True, slots=True)
class Redirect:
    """The replica that was asked does not lead."""

    leader: str  # host:port; empty: it knows of nobody


def metadata(token: str, who: str) -> tuple[tuple[str, str], ...]:
    return ((TOKEN_KEY, token), (WHO_KEY, who))


def knows(token: str, given: str | bytes) -> bool:
    """Whether a call carries the job's secret. Takes as long whatever was given."""
    return hmac.compare_digest(token.encode(), given if isinstance(given, bytes) else given.encode())


def pack_status(status: Status) -> pb.StatusUp:
    match status:
        case WorkerStatus():
            return pb.StatusUp(version=VERSION, worker=codec.encode(status))
        case AgentStatus():
            return pb.StatusUp(version=VERSION, agent=codec.encode(status))


def unpack_status(message: pb.StatusUp) -> Status:
    """Raises MalformedMessage."""
    _check(message.version)
    match message.WhichOneof("status"):
        case "worker":
            return codec.decode(WorkerStatus, message.worker)
        case "agent":
            return codec.decode(AgentStatus, message.agent)
    raise MalformedMessage("a status is neither a worker's nor an agent's")


def pack_update(update: Update) -> pb.Update:
    return pb.Update(
        version=VERSION,
        document=update.document or b"",
        revision=update.revision,
        progress=update.progress or b"",
        term=update.term,
    )


def pack_redirect(leader: str) -> pb.Update:
    return pb.Update(version=VERSION, redirect=True, leader=leader)


def unpack_update(message: pb.Update) -> Update | Redirect:
    """Raises MalformedMessage."""
    _check(message.version)
    if message.redirect:
        return Redirect(message.leader)
    return Update(message.document or None, message.progress or None, Term(message.term), message.revision)


def _check(version: int) -> None:
    if version != VERSION:
        raise MalformedMessage(f"a message has version {version}; this program speaks version {VERSION}")
