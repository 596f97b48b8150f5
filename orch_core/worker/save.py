"""``run.save``: atomic, written once, whoever is killed on the way.

All members call it, and one writes: who gets the lock first. It then notes which save of which step that was, so the
others skip it. A killed writer's lock vanishes with it, and the next one writes over what it left: the temporary file
has one name per target, so nothing is left lying beside it.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from orch_core.contracts.errors import ConfigurationError


class Saver:
    """One per worker. `folder`: the job's, for locks; None for a job of one."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._calls: dict[str, tuple[int, int]] = {}  # per target: step, and how often in it

    def save(self, path: str | os.PathLike[str], obj: Any, step: int) -> None:
        target = Path(os.path.abspath(path))
        if not target.parent.is_dir():
            raise ConfigurationError(f"run.save({str(path)!r}): there is no folder {target.parent}; make it first")
        last, ordinal = self._calls.get(str(target), (step, -1))
        call = (step, ordinal + 1 if last == step else 0)
        self._calls[str(target)] = call
        if self._folder is None:
            _write(target, obj)
            return
        with _locked(self._folder / "saves", target) as record:
            if _last(record) < call:
                _write(target, obj)
                _note(record, call)


@contextmanager
def _locked(folder: Path, target: Path) -> Iterator[int]:
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    record = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(record, fcntl.LOCK_EX)
        yield record
    finally:
        os.close(record)


def _last(record: int) -> tuple[int, int]:
    """Step and ordinal of the newest save; a record that was cut off by a kill counts as none."""
    try:
        step, ordinal = json.loads(os.pread(record, 100, 0))
        return int(step), int(ordinal)
    except (ValueError, TypeError):
        return -2, 0


def _note(record: int, call: tuple[int, int]) -> None:
    os.pwrite(record, json.dumps(call).encode().ljust(64), 0)


def _write(target: Path, obj: Any) -> None:
    temporary = target.with_name(f".{target.name}.orch-tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch wraps what the file has raised, and names no file
            raise ConfigurationError(f"run.save({str(target)!r}) could not write the file: {_why(error)}") from error
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _why(error: BaseException) -> str:
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
