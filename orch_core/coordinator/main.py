"""A coordinator process: one replica of the document, and the leader if the others agree.

``python -m orch_core.coordinator.main --job-file PATH --id c0``. Started and watched by an agent: it ends by itself
when that is gone. Everything else it has to know stands in ``job.json``.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from orch_core import failpoints, plugins
from orch_core.contracts import codec
from orch_core.contracts.address import split
from orch_core.contracts.consensus import Consensus, ReplicaSpec
from orch_core.contracts.errors import ConfigurationError, OrchError
from orch_core.contracts.ids import CoordinatorId
from orch_core.contracts.job import CoordinatorAddress, JobFile
from orch_core.coordinator.elections import Elections
from orch_core.coordinator.lead import Leader
from orch_core.coordinator.publish import Board
from orch_core.coordinator.service import Service
from orch_core.rpc import wire
from orch_core.rpc.network import check_heard, family
from orch_core.rpc.priority import raise_priority
from orch_core.rpc.v1 import control_pb2_grpc

PARENT_CHECK_S = 0.25
FAREWELL_S = 5.0
GRACE_S = 0.2  # what open calls get when the process ends
CALLS_LIMIT = 1024
FAILED, WRONG_USE = 1, 2

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"time=%(asctime)s level=%(levelname)s id={options.id} %(message)s",
    )
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""), options.id)
        job = read_job(options.job_file)
        folder = options.folder or options.job_file.parent / f"coordinator-{options.id}"
        logger.info("event=starting pid=%d priority=%s", os.getpid(), raise_priority(inherit=True))
        asyncio.run(serve(job, CoordinatorId(options.id), folder))
    except BaseExceptionGroup as group:
        return _complain(_first(group))
    except (OrchError, OSError) as error:
        return _complain(error)
    logger.info("event=ended")
    return 0


def read_job(path: Path) -> JobFile:
    """Raises ConfigurationError."""
    try:
        return codec.decode(JobFile, path.read_bytes())
    except (OSError, OrchError) as error:
        raise ConfigurationError(f"the job file {path} cannot be read: {error}") from error


async def run_replica(job: JobFile, me: CoordinatorId, folder: Path) -> None:
    """As :func:`serve`, and what goes wrong in one of its tasks is raised by itself."""
    try:
        await serve(job, me, folder)
    except BaseExceptionGroup as group:
        raise _first(group) from group


async def serve(job: JobFile, me: CoordinatorId, folder: Path) -> None:
    """Run one replica until SIGTERM, or until the agent that started it is gone."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    row = _row(job, me)
    _private(folder)
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(_bind(row.peer_address))
        consensus = plugins.installed().make_consensus(job.spec.consensus, _replica(job, me, folder, listener))
        board = Board()
        elections = Elections(consensus)
        leader = Leader(consensus, job.spec, board, elections, started_at=job.started_at)
        service = Service(job, consensus, board, leader)
        await _start(consensus, stack)
        await start_server(service, row.address, stack)
        logger.info("event=serving address=%s peers=%s", row.address, row.peer_address)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(leader.run(), name="leader"),
                group.create_task(service.follow(), name="follow"),
                group.create_task(elections.watch(), name="elections"),
                group.create_task(_watch_parent(job.agent_pid, stop), name="watch-parent"),
                group.create_task(_watch_end(job.agent_pid, service, stop), name="watch-end"),
            ]
            await stop.wait()
            logger.info("event=ending")
            for task in tasks:
                task.cancel()


async def start_server(service: Service, address: str, stack: contextlib.AsyncExitStack) -> None:
    """Listen for calls; `stack` ends that."""
    server = grpc.aio.server(options=wire.SERVER_OPTIONS, maximum_concurrent_rpcs=CALLS_LIMIT)
    control_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {address}: another program uses the port") from error
    await server.start()
    stack.push_async_callback(server.stop, GRACE_S)


async def _start(consensus: Consensus, stack: contextlib.AsyncExitStack) -> None:
    stack.push_async_callback(consensus.close)  # also after half a start
    await consensus.start()


async def _watch_parent(agent_pid: int, stop: asyncio.Event) -> None:
    """A coordinator without its agent is of no use to anybody. 0: nobody owns it."""
    while agent_pid and os.getppid() == agent_pid:  # noqa: ASYNC110 - no event tells it
        await asyncio.sleep(PARENT_CHECK_S)
    if agent_pid:
        logger.warning("event=orphaned agent_pid=%d", agent_pid)
        stop.set()


async def _watch_end(agent_pid: int, service: Service, stop: asyncio.Event) -> None:
    """Started by hand: it ends by itself when the job has, and everybody had the time to hear of it."""
    while not agent_pid:
        document = service.document
        if document is not None and document.status.final:
            await asyncio.sleep(FAREWELL_S)
            stop.set()
            return
        await asyncio.sleep(PARENT_CHECK_S)


def _replica(job: JobFile, me: CoordinatorId, folder: Path, listener: socket.socket) -> ReplicaSpec:
    peers = {row.id: row.peer_address for row in job.coordinators}
    return ReplicaSpec(id=me, peers=peers, folder=folder, token=job.token, listener=listener)


def _row(job: JobFile, me: CoordinatorId) -> CoordinatorAddress:
    for row in job.coordinators:
        if row.id == me:
            check_heard((split(a)[0] for a in (row.address, row.peer_address)), insecure=job.insecure)
            return row
    known = ", ".join(row.id for row in job.coordinators)
    raise ConfigurationError(f"job {job.job} has no coordinator {me!r}: it has {known}")


def _bind(address: str) -> socket.socket:
    """Bound, not listening, beside the socket with which the agent keeps the port reserved."""
    host, port = split(address)
    listener = socket.socket(family(host))
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {address}: {error.strerror}") from error
    return listener


def _private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {folder}: {error.strerror}") from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _complain(error: BaseException) -> int:
    """One sentence for people; for what nobody foresaw the traceback, too."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        sentence = f"the disk or the network does not serve ({error.strerror or error}){where}"
    else:
        sentence = str(error) or type(error).__name__
    known = isinstance(error, OrchError | OSError)
    logger.error("event=failed why=%r", sentence, exc_info=None if known else error)
    print(f"orch coordinator: {sentence}", file=sys.stderr)
    return WRONG_USE if isinstance(error, ConfigurationError) else FAILED


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orch_core.coordinator.main", description=__doc__)
    parser.add_argument("--job-file", type=Path, required=True, help="the job's job.json")
    parser.add_argument("--id", required=True, help="which of its coordinators this is, c0 say")
    parser.add_argument("--folder", type=Path, help="where the replica keeps its log (default: beside job.json)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
