"""One-shot questions and commands, for the command line. Blocking."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed, wait_random

from orch_core.contracts.errors import ConfigurationError, MalformedMessage, Unreachable
from orch_core.rpc import wire
from orch_core.rpc.v1 import control_pb2 as pb
from orch_core.rpc.v1 import control_pb2_grpc

INSPECT_S = 1.0
COMMAND_S = 5.0
WHO = "cli"

StatusJson = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CommandDone:
    """The command is part of the committed document of this revision."""

    revision: int


def inspect(addresses: Sequence[str], token: str, timeout_s: float = INSPECT_S) -> StatusJson:
    """What `orch status --json` prints: the leader's answer if there is one, else the newest one, marked stale.

    Asks all replicas at once; who does not answer within `timeout_s` shows as unreachable. Raises Unreachable if nobody
    answers, ConfigurationError if the token is refused.
    """
    answers, refusals = [], 0
    with ExitStack() as stack:
        calls = [
            _stub(stack, address).Inspect.future(
                pb.InspectRequest(version=wire.VERSION), metadata=wire.metadata(token, WHO), timeout=timeout_s
            )
            for address in addresses
        ]
        for call in calls:
            try:
                answers.append(_status(call.result().status))
            except grpc.RpcError as error:
                refusals += _code(error) is grpc.StatusCode.UNAUTHENTICATED
            except MalformedMessage:
                continue
    if not answers:
        raise _nobody(addresses, refusals)
    return merge(answers)


def merge(answers: Sequence[StatusJson]) -> StatusJson:
    """One status out of those of several replicas, each of which knows best about itself."""

    def rank(answer: StatusJson) -> tuple[bool, int, int]:
        return not answer.get("stale", True), answer.get("term", 0), answer.get("revision", 0)

    newest = max(answers, key=rank)
    itself = {
        row["id"]: row for answer in answers for row in answer.get("coordinators", ()) if row["id"] == answer.get("by")
    }
    rows = [
        itself.get(row["id"], {**row, "pid": None, "role": "unreachable"}) for row in newest.get("coordinators", ())
    ]
    return {**newest, "coordinators": rows}


def command(
    addresses: Sequence[str], token: str, name: str, args: Mapping[str, str], timeout_s: float = COMMAND_S
) -> CommandDone:
    """Ask the leader to change the document, and wait until that is durable.

    Follows redirects and elections for `timeout_s`, so a command may be carried out twice: commands are idempotent.
    Raises Unreachable if no leader could be found, ConfigurationError if the leader or the token says no.
    """
    request = pb.CommandRequest(version=wire.VERSION, name=name, args=json.dumps(dict(args)).encode())
    for attempt in _again(timeout_s):
        with attempt:
            return _ask_leader(addresses, token, request, timeout_s)
    raise AssertionError("unreachable: the last attempt raises")


def _again(timeout_s: float) -> Retrying:
    """The policy: soon, and for a bounded time."""
    return Retrying(
        retry=retry_if_exception_type(Unreachable),
        wait=wait_fixed(0.05) + wait_random(0, 0.05),
        stop=stop_after_delay(timeout_s),
        reraise=True,
    )


def _ask_leader(addresses: Sequence[str], token: str, request: pb.CommandRequest, timeout_s: float) -> CommandDone:
    todo, asked, refusals = list(addresses), set[str](), 0
    with ExitStack() as stack:
        while todo:
            address = todo.pop(0)
            if address in asked:
                continue
            asked.add(address)
            try:
                reply = _stub(stack, address).Command(
                    request, metadata=wire.metadata(token, WHO), timeout=max(0.2, timeout_s / len(addresses))
                )
            except grpc.RpcError as error:
                refusals += _code(error) is grpc.StatusCode.UNAUTHENTICATED
                continue
            if reply.error:
                raise ConfigurationError(reply.error)
            if not reply.redirect:
                return CommandDone(reply.revision)
            if reply.leader:
                todo.insert(0, reply.leader)
    raise _nobody(addresses, refusals, leads=True)


def _stub(stack: ExitStack, address: str) -> Any:  # the generated stubs are untyped
    channel = stack.enter_context(grpc.insecure_channel(address, options=wire.CLIENT_OPTIONS))
    return control_pb2_grpc.CoordinatorStub(channel)


def _status(data: bytes) -> StatusJson:
    try:
        status = json.loads(data)
    except ValueError as error:
        raise MalformedMessage(f"a coordinator's status is not JSON: {error}") from error
    if not isinstance(status, dict) or status.get("version") != 1:
        raise MalformedMessage("a coordinator's status has a version that this program does not speak")
    return status


def _code(error: grpc.RpcError) -> grpc.StatusCode | None:
    code = getattr(error, "code", None)  # gRPC's errors are calls, which their types do not say
    return code() if callable(code) else None


def _nobody(addresses: Sequence[str], refusals: int, *, leads: bool = False) -> ConfigurationError | Unreachable:
    if refusals:
        return ConfigurationError("the coordinators refuse the token: use the job.json of the job that runs there")
    where = ", ".join(addresses)
    if leads:
        return Unreachable(f"no leader could be found at {where}: look at `orch status`, and try again")
    return Unreachable(f"no coordinator answers at {where}: the job is over, or its host cannot be reached")
