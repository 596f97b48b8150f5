"""The job's folder: made, locked, described in ``job.json``, and found again by the other commands.

``$ORCH_HOME/<job>/`` (``.orch/<job>/`` without the variable) belongs to the user alone. Its agent holds a lock on the
file ``lock`` as long as it lives, so two agents cannot race for a name and a living job is told from a dead one
without trusting a pid. A finished job of the same name makes way: what it has left moves to ``previous/`` in the
folder, and what was there before is deleted.
"""

import fcntl
import json
import os
import random
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from orch_core.contracts import codec
from orch_core.contracts.errors import ConfigurationError, MalformedMessage
from orch_core.contracts.ids import CoordinatorId, JobName
from orch_core.contracts.job import CoordinatorAddress, JobFile, JobSpec

LOCK, DESCRIPTION, PREVIOUS = "lock", "job.json", "previous"
SUBFOLDERS = ("logs", "failures", "notes")
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.02  # somebody who only looks whether the agent lives holds the lock for microseconds
HOST = "127.0.0.1"


class JobFolder:
    """A folder that this process holds. Make one with :func:`claim`."""

    def __init__(self, path: Path, lock: int, previous: Path | None = None) -> None:
        self.path = path
        self.previous = previous  # where an earlier job of this name has gone
        self._lock = lock
        self._ports: list[socket.socket] = []

    @property
    def description_path(self) -> Path:
        return self.path / DESCRIPTION

    def log_of(self, worker: str) -> Path:
        return self.path / "logs" / f"{worker}.out"

    def coordinator(self, which: str) -> Path:
        return self.path / f"coordinator-{which}"

    def describe(self, spec: JobSpec, coordinators: int) -> JobFile:
        """Reserve the ports, write ``job.json``. Raises ConfigurationError."""
        described = JobFile(
            job=spec.name,
            agent_pid=os.getpid(),
            coordinators=tuple(
                CoordinatorAddress(CoordinatorId(f"c{i}"), self._reserve(), self._reserve())
                for i in range(coordinators)
            ),
            token=secrets.token_hex(16),
            spec=spec,
            started_at=time.time(),
        )
        try:
            for one in described.coordinators:
                self.coordinator(one.id).mkdir()
        except OSError as error:
            raise _unusable(self.path, error) from error
        self.write(described)
        return described

    def write(self, described: JobFile) -> None:
        """``job.json``. Raises ConfigurationError."""
        try:
            write_atomically(self.description_path, codec.encode(described), mode=0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def close(self) -> None:
        """Give ports and lock back. Idempotent."""
        for port in self._ports:
            port.close()
        self._ports.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _reserve(self) -> str:
        """A free port that stays this job's: bound and not listening, so that nobody else gets it between two lives
        of a coordinator, which binds it beside us (SO_REUSEPORT)."""
        port = socket.socket()
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port.bind((HOST, 0))
        self._ports.append(port)
        return f"{HOST}:{port.getsockname()[1]}"


def home() -> Path:
    """Where job folders are, absolute. Raises ConfigurationError."""
    path = Path(os.environ.get("ORCH_HOME") or ".orch")
    try:
        return path.absolute()
    except OSError as error:
        raise ConfigurationError(f"{path} is nowhere: the current directory is gone; change to another one") from error


def made_up_name(script: str) -> JobName:
    """From the script's name and the time, short enough to type: ``train-0412-153210-7f``."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in Path(script).stem).strip("-_")
    return JobName(f"{stem[:32] or 'job'}-{time.strftime('%m%d-%H%M%S')}-{random.SystemRandom().randrange(256):02x}")


def claim(root: Path, name: JobName) -> JobFolder:
    """Make the folder of a new job and hold it. Raises ConfigurationError if it is unusable or its job is alive."""
    path = root / name
    lock = -1
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _try_lock(lock):
            raise ConfigurationError(
                f"a job called {name!r} is running (in {path}): choose another --job name, or end it: orch stop --job"
                f" {name}"
            )
        previous = _make_way(path)
        for each in SUBFOLDERS:
            (path / each).mkdir(mode=0o700)
        _check_space(path)
    except ConfigurationError:
        os.close(lock)
        raise
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        raise _unusable(path, error) from error
    return JobFolder(path, lock, previous)


def is_living(path: Path) -> bool:
    """Whether an agent holds the folder."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def read_description(path: Path) -> JobFile:
    """Raises ConfigurationError."""
    try:
        return codec.decode(JobFile, (path / DESCRIPTION).read_bytes())
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no job in {path}") from error
    except OSError as error:
        raise ConfigurationError(f"{path / DESCRIPTION} cannot be read: {error.strerror}") from error
    except MalformedMessage as error:
        raise ConfigurationError(f"{path / DESCRIPTION}: {error}") from error


def find(root: Path, name: str | None, *, living: bool = True) -> Path:
    """The folder of the job called `name`; without a name, of the newest one, of those that live if `living`.

    Raises ConfigurationError, one sentence, if there is none.
    """
    if name is not None:
        if not (root / name / DESCRIPTION).is_file():
            raise ConfigurationError(f"there is no job called {name!r} in {root}{_others(root)}")
        return root / name
    found = [path for path in _newest_first(root) if not living or is_living(path)]
    if not found:
        what = "no job is running" if living else "there is no job"
        raise ConfigurationError(
            f"{what} in {root}{_others(root)}; set ORCH_HOME or go to where `orch run` was started"
        )
    return found[0]


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """The old file or the new one, whole, whatever happens in between. What is no plain file is written in place."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems cannot; the file itself is safe
    finally:
        os.close(handle)


def _try_lock(lock: int) -> bool:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
    return False


def _make_way(path: Path) -> Path | None:
    left = [entry for entry in path.iterdir() if entry.name not in (LOCK, PREVIOUS)]
    if not left:
        return None
    shutil.rmtree(path / PREVIOUS, ignore_errors=True)
    (path / PREVIOUS).mkdir(mode=0o700, exist_ok=True)
    for entry in left:
        os.replace(entry, path / PREVIOUS / entry.name)
    return path / PREVIOUS


def _check_space(path: Path) -> None:
    """A full disk is told now: the first thing that does not fit would be a log or a vote."""
    write_atomically(path / ".space", b"\0" * 65536)
    (path / ".space").unlink()


def _newest_first(root: Path) -> Sequence[Path]:
    def jobs() -> Iterator[tuple[float, Path]]:
        try:
            entries = list(root.iterdir())
        except OSError:
            return
        for entry in entries:
            try:
                started = json.loads((entry / DESCRIPTION).read_bytes())["started_at"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if isinstance(started, int | float):
                yield float(started), entry

    return [path for _, path in sorted(jobs(), reverse=True)]


def _others(root: Path) -> str:
    known = [path.name for path in _newest_first(root)][:5]
    return f" (the newest there: {', '.join(known)})" if known else ""


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the job folder {path} cannot be used: {error.strerror or error}; set ORCH_HOME to a folder that can be"
        " written to"
    )
