"""Processes that load ahead. Forked from the script's process, so the data set need not be picklable.

Unlike a DataLoader's stream, what is to be loaded next may change at any time: after a view change other shards are
this worker's, and those come first. A loader process hears one task at a time and answers it, over a socket pair; it
ends when its parent does, whatever ended that one, and holds none of its parent's connections.
"""

import io
import logging
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils.data import _utils as torch_data

from orch_core.contracts.ids import Shard, Step
from orch_core.worker import forks
from orch_core.worker.samples import Samples, Task

logger = logging.getLogger(__name__)

_COUNT = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
ENDS_WITHIN_S = 2.0

Key = tuple[Step, Shard]


class LoaderDied(RuntimeError):
    """A loader process ended while samples were wanted from it."""


class Pool:
    """Used by the script thread alone. Processes start with the first task."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.size = size
        self._samples = samples
        self._children: list[_Child] = []
        self._ready: dict[Key, Any] = {}
        self._queue: deque[Task] = deque()

    def expect(self, wanted: Sequence[Key], task_of: Callable[[Step, Shard], Task]) -> None:
        """Load these ahead, in this order, and nothing else."""
        if wanted:  # who carries no shards, a follower say, needs no processes
            self._start()
        keys = set(wanted)
        self._ready = {key: data for key, data in self._ready.items() if key in keys}
        under_way = {child.key for child in self._children if child.key is not None}
        self._queue = deque(task_of(*key) for key in wanted if key not in self._ready and key not in under_way)
        for child in self._children:
            child.wanted = child.key in keys
        self._pump(0)

    def take(self, task: Task) -> Any:
        """The loaded samples of a shard; waits for them. Raises what the data set raised, or LoaderDied."""
        self._start()
        key = (task.step, task.shard)
        if key not in self._ready and all(child.key != key for child in self._children):
            self._queue = deque([task, *(other for other in self._queue if (other.step, other.shard) != key)])
        for child in self._children:
            child.wanted = child.wanted or child.key == key
        while key not in self._ready:
            self._pump(None)
        data = self._ready.pop(key)
        self._pump(0)
        if isinstance(data, _Failed):
            data.reraise()
        return data

    def close(self) -> None:
        children, self._children = self._children, []
        for child in children:
            child.sock.close()
        deadline = time.monotonic() + ENDS_WITHIN_S
        for child in children:
            child.reap(deadline)
        self._ready.clear()
        self._queue.clear()

    def _start(self) -> None:
        while len(self._children) < self.size:
            self._children.append(_spawn(self._samples, len(self._children)))

    def _pump(self, timeout: float | None) -> None:
        """Give idle processes tasks, and take what is done; waits for one answer at most."""
        self._assign()
        busy = {child.sock.fileno(): child for child in self._children if child.key is not None}
        if not busy:
            return
        poll = select.poll()
        for fd in busy:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(timeout):
            child = busy[fd]
            key, answer = child.key, child.receive()
            if key is not None and child.wanted:
                self._ready[key] = answer
            child.key = None
        self._assign()

    def _assign(self) -> None:
        for child in self._children:
            if child.key is None and self._queue:
                task = self._queue.popleft()
                child.key, child.wanted = (task.step, task.shard), True
                child.send(task)


class _Child:
    def __init__(self, number: int, pid: int, sock: socket.socket) -> None:
        self.number = number
        self.pid = pid
        self.sock = sock
        self.key: Key | None = None  # of the task that is under way
        self.wanted = False

    def send(self, task: Task) -> None:
        try:
            _send(self.sock, task)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Any:
        try:
            return _receive(self.sock)
        except (EOFError, OSError) as error:
            raise self._died() from error

    def reap(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _died(self) -> LoaderDied:
        how = "ended"
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        except ChildProcessError:
            pass
        what = f" while it loaded shard {self.key[1]} of step {self.key[0]}" if self.key else ""
        return LoaderDied(
            f"data-loader process {self.number} {how}{what}; out of memory, perhaps: use fewer num_workers"
        )


class _Failed:
    """What a data set raised in a loader process."""

    def __init__(self, error: bytes, text: str, trace: str, number: int) -> None:
        self._error = error
        self._text = text
        self._trace = trace
        self._number = number

    def reraise(self) -> NoReturn:
        try:
            error = pickle.loads(self._error)  # from our own child
        except Exception:  # noqa: BLE001 - exceptions often cannot be unpickled
            error = None
        if not isinstance(error, Exception):
            error = RuntimeError(self._text)
        error.add_note(f"in data-loader process {self._number}:\n{self._trace}")
        raise error


# ---------------------------------------------------------------- the child


def _spawn(samples: Samples, number: int) -> _Child:
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads: the child uses none of theirs
        pid = os.fork()
    if pid:
        theirs.close()
        forks.watch(ours)  # a later child must not keep this one's end open
        return _Child(number, pid, ours)
    try:
        ours.close()
        forks.follow_parent(parent)
        _serve(theirs, samples, number)
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not run the script's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _serve(sock: socket.socket, samples: Samples, number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    info = torch_data.worker.WorkerInfo(
        id=number, num_workers=samples.num_workers, seed=samples.seed, dataset=samples.dataset
    )
    torch_data.worker._worker_info = info  # what torch.utils.data.get_worker_info() tells data sets
    while True:
        try:
            task = _receive(sock)
        except (EOFError, OSError):
            return
        try:
            answer = samples.load(task)
        except Exception as error:  # noqa: BLE001 - it is raised again in the parent
            answer = _failed(error, number)
        try:
            _send(sock, answer)
        except OSError:
            return
        except Exception as error:  # noqa: BLE001 - a sample that cannot be pickled
            _send(sock, _failed(error, number))
        sys.stdout.flush()
        sys.stderr.flush()


def _failed(error: Exception, number: int) -> _Failed:
    try:
        pickled = pickle.dumps(error)
    except Exception:  # noqa: BLE001 - exceptions often cannot be pickled
        pickled = b""
    text = f"{type(error).__name__}: {error}"
    return _Failed(pickled, text, "".join(traceback.format_exception(error)).rstrip(), number)


# ---------------------------------------------------------------- between the two, on one machine, of one program


class _Pickler(pickle.Pickler):
    """Tensors travel as raw memory: faster than torch's own way, and without /dev/shm."""

    def reducer_override(self, obj: Any) -> Any:
        if (
            type(obj) is torch.Tensor
            and obj.device.type == "cpu"
            and obj.layout == torch.strided
            and not obj.requires_grad
        ):
            plain = obj.resolve_conj().resolve_neg()
            stride = (
                plain.stride()
                if not plain.is_contiguous() and torch.empty_like(plain).stride() == plain.stride()
                else None
            )
            plain = plain.contiguous()
            raw = (torch.view_as_real(plain) if plain.is_complex() else plain).reshape(-1).view(torch.uint8)
            return _tensor, (pickle.PickleBuffer(raw.numpy()), obj.dtype, tuple(obj.shape), stride)  # type: ignore[arg-type]
        return NotImplemented


def _tensor(raw: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...] | None) -> torch.Tensor:
    """With the memory layout it had where that is dense: some kernels' bits depend on it."""
    flat = torch.from_numpy(np.asarray(raw))
    if not flat.numel():
        return torch.empty(shape, dtype=dtype)
    if dtype.is_complex:
        real = flat.view(torch.float64 if dtype == torch.complex128 else torch.float32)
        made = torch.view_as_complex(real.view(*shape, 2))
    else:
        made = flat.view(dtype).view(shape)
    return made if stride is None else torch.empty_strided(shape, stride, dtype=dtype).copy_(made)


def _send(sock: socket.socket, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    out = io.BytesIO()
    _Pickler(out, protocol=5, buffer_callback=buffers.append).dump(value)
    views = [out.getbuffer(), *(buffer.raw() for buffer in buffers)]
    head = _COUNT.pack(len(views)) + b"".join(_SIZE.pack(view.nbytes) for view in views)
    sock.sendall(head)
    for view in views:
        sock.sendall(view)


def _receive(sock: socket.socket) -> Any:
    (count,) = _COUNT.unpack(_exactly(sock, _COUNT.size))
    sizes = [_SIZE.unpack(_exactly(sock, _SIZE.size))[0] for _ in range(count)]
    body = _exactly(sock, sizes[0])
    memories = []
    for size in sizes[1:]:
        memory = torch.empty(size, dtype=torch.uint8)  # aligned as torch aligns: kernels' bits may depend on it
        if size:
            _fill(sock, memoryview(memory.numpy()))  # type: ignore[arg-type]
        memories.append(memory)
    return pickle.loads(body, buffers=[memory.numpy() for memory in memories])


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    _fill(sock, memoryview(data))
    return data


def _fill(sock: socket.socket, view: memoryview) -> None:
    while view:
        count = sock.recv_into(view)
        if count == 0:
            raise EOFError("the other end is gone")
        view = view[count:]
