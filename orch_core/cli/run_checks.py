"""Everything that can be wrong with the values of `orch run`, each as one sentence with the wrong value, and exit 2."""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click

MOST_WORKERS_BY_DEFAULT = 4
SEED_LIMIT = 2**63
JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def worker_numbers(workers: int | None, low: int | None, high: int | None, shards: int) -> tuple[int, int, int]:
    """(workers, min, max). What is not given bends to what is; a worker more than there are shards carries nothing."""
    for option, value in (("--workers", workers), ("--min-workers", low), ("--max-workers", high)):
        if value is not None:
            at_least(option, value, 1)
    low = low or 1
    if high is not None and low > high:
        refuse(f"--min-workers {low} is more than --max-workers {high}")
    if workers is None:
        workers = max(low, min(default_workers(), high or default_workers()))
    if low > workers:
        refuse(f"--min-workers {low} is more than --workers {workers}")
    if high is not None and high < workers:
        refuse(f"--max-workers {high} is less than --workers {workers}")
    return workers, low, high or max(workers, shards)


def seed(option: str, value: int) -> int:
    if not 0 <= value < SEED_LIMIT:
        refuse(f"{option} must be between 0 and 2**63 - 1, not {value}")
    return value


def coordinators(value: int) -> int:
    if value < 1 or value % 2 == 0:
        refuse(
            f"--coordinators must be 1 or another odd number, not {value}:"
            " an even number survives no more deaths than the odd one below it"
        )
    return value


def job_name(name: str | None) -> str | None:
    if name is not None and not JOB_NAME.fullmatch(name):
        refuse(
            f"--job {name!r} cannot be a folder's name:"
            " use up to 64 letters, digits, dots, dashes and underscores, a letter or a digit first"
        )
    return name


def script_to_run(script: str | None, *, module: bool) -> str:
    """A file that can be read, or a module that can be found, without running any of it."""
    if not script:
        refuse("name a module behind -m" if module else "name the script to run: orch run [OPTIONS] SCRIPT [ARGS]")
    if module:
        _module_to_run(script)
        return script
    path = Path(script)
    try:
        if path.is_dir():
            refuse(f"the script {script!r} is a folder; name a file, or a package with -m")
        if not path.exists():
            near = _near_file(path)
            refuse(f"there is no script {script!r}" + (f"; did you mean {near!r}?" if near else ""))
    except OSError as error:
        refuse(f"the script {script!r} cannot be read: {error.strerror}")
    if not os.access(path, os.R_OK):
        refuse(f"the script {script!r} cannot be read: permission denied")
    return script


def _module_to_run(module: str) -> None:
    """Looks for each part of its name in the one before. A package that changes its own path, or that an import hook
    finds, may have more than that: it gets the benefit of the doubt."""
    path: list[str] | None = ["", *sys.path]
    name = ""
    for part in module.split("."):
        if path is None:
            refuse(f"{name!r} is a module and no package, so there is no {module!r} in it")
        name = f"{name}.{part}" if name else part
        try:
            spec = PathFinder.find_spec(name, path)
        except KeyError:  # a folder without __init__.py in one that is not imported
            is_package = True
        else:
            if spec is None and name == part and find_spec(part) is not None:
                return
            if spec is None:
                refuse(f"there is no module {name!r} here (-m {module})")
            if _changes_its_path(spec.origin):
                return
            is_package = spec.submodule_search_locations is not None
        path = [str(Path(folder, part)) for folder in path] if is_package else None
    if path is not None and PathFinder.find_spec(f"{module}.__main__", path) is None:
        refuse(f"{module!r} is a package without a __main__.py; name a module in it")


def _changes_its_path(origin: str | None) -> bool:
    if origin is None or not origin.endswith("__init__.py"):
        return False
    try:
        return b"__path__" in Path(origin).read_bytes()
    except OSError:
        return True


def summary_file(path: Path | None, option: str) -> Path | None:
    """Found out now, not after a day of training."""
    if path is None:
        return None
    try:
        if path.is_dir():
            refuse(f"{option} {str(path)!r} is a folder; name a file")
        if not path.parent.is_dir():
            refuse(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}")
    except OSError as error:
        refuse(f"{option} {str(path)!r} cannot be written: {error.strerror}")
    if not os.access(path.parent, os.W_OK):
        refuse(f"{option} {str(path)!r}: the folder {str(path.parent)!r} cannot be written to")
    return path.absolute()


def sync_options(texts: Sequence[str]) -> dict[str, str]:
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            refuse(f"--sync-opt {text!r} should look like NAME=VALUE")
        options[key] = value
    return options


def at_least(option: str, value: int, least: int) -> int:
    if value < least:
        refuse(f"{option} must be at least {least}, not {value}")
    return value


def refuse(sentence: str) -> NoReturn:
    raise click.UsageError(sentence, click.get_current_context(silent=True))


def default_workers() -> int:
    return gpus() or min(MOST_WORKERS_BY_DEFAULT, len(os.sched_getaffinity(0)))


def gpus() -> int:
    """NVIDIA devices that this process may see, without loading torch (1.4 s)."""
    try:
        there = len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, len([v for v in visible.split(",") if v.strip() not in ("", "-1")]))


def _near_file(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".py"]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return str(path.with_name(near[0])) if near else None
