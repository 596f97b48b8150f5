"""`orch logs`: what workers have printed, also while they print it, also after the job."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import click

from orch_core.cli.options import job_option
from orch_core.contracts.errors import ConfigurationError

FOLLOW_S = 0.2
READ_SIZE = 1024 * 1024


@click.command("logs")
@click.argument("worker", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@job_option
def command(worker: str | None, follow: bool, job: str | None) -> None:
    """Show what workers have printed. WORKER: w1 (its newest life), w1.2, or a coordinator, c0. Default: all."""
    from orch_core.agent import folder

    path = folder.find(folder.home(), job)
    reader = _Reader(path, worker)
    reader.read()
    while follow and folder.is_living(path):
        time.sleep(FOLLOW_S)
        reader.read()
    if follow:
        reader.read()  # what came between the last look and the end
    reader.end()


class _Reader:
    """Prints what has been added to the logs since the last time, line by line."""

    def __init__(self, folder: Path, which: str | None) -> None:
        from orch_core.agent.logs import Lines

        self._folder, self._which = folder, which
        self._at: dict[Path, int] = {}
        self._lines: dict[Path, Lines] = {}
        self._new_lines = Lines
        if which is not None and not self._paths():
            known = ", ".join(p.stem for p in _all(folder)) or "none yet"
            raise ConfigurationError(f"there is no log of {which!r} in {folder}; there are: {known}")

    def read(self) -> None:
        for path in self._paths():
            lines = self._lines.setdefault(path, self._new_lines())
            try:
                with path.open("rb") as file:
                    file.seek(self._at.get(path, 0))
                    while data := file.read(READ_SIZE):
                        self._print(path, lines.feed(data, 0.0))
                    self._at[path] = file.tell()
            except BrokenPipeError:
                raise  # our reader has gone, not the file
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error

    def end(self) -> None:
        for path, lines in self._lines.items():
            self._print(path, lines.end())

    def _print(self, path: Path, text: str) -> None:
        if not text:
            return
        if self._which is None:
            text = "".join(f"{path.stem} | {line}\n" for line in text.split("\n")[:-1])
        click.echo(text, nl=False)

    def _paths(self) -> Sequence[Path]:
        which = self._which
        if which is None:
            return _all(self._folder)
        if (self._folder / f"coordinator-{which}" / "log").is_file() and os.sep not in which:
            return [self._folder / f"coordinator-{which}" / "log"]
        lives = [p for p in _all(self._folder) if which in (p.stem, p.stem.partition(".")[0])]
        return lives[-1:]


def _all(folder: Path) -> list[Path]:
    """In the order of places and lives."""
    from orch_core.contracts.ids import WorkerId, worker_order

    found = []
    for path in (folder / "logs").glob("w*.out"):
        try:
            found.append((worker_order(WorkerId(path.stem)), path))
        except ValueError:
            continue
    return [path for _, path in sorted(found)]
