"""`orch status`: how a job is doing, from whatever still answers."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orch_core.cli.options import job_option, json_option
from orch_core.contracts.errors import ConfigurationError, Unreachable

if TYPE_CHECKING:
    from rich.table import Table

WATCH_S = 1.0
ENDING_S = 0.3
FINAL = ("finished", "stopped", "failed", "interrupted")

StatusJson = dict[str, Any]


@click.command("status")
@json_option
@click.option("--watch", is_flag=True, help="Show it again every second until the job ends.")
@job_option
def command(as_json: bool, watch: bool, job: str | None) -> None:
    """Show how a job is doing: its step, workers, coordinators and latest events."""
    from orch_core.agent import folder

    path = folder.find(folder.home(), job)
    while True:
        status = read(path)
        if watch and not as_json:
            click.clear()
        click.echo(json.dumps(status, allow_nan=False) if as_json else _for_people(status), nl=as_json)
        if not watch or status["status"] in FINAL:
            return
        time.sleep(WATCH_S)


def read(path: Path) -> StatusJson:
    """The coordinators' word, or what a job that has ended, or has only just begun, has left in its folder."""
    from orch_core.agent import folder
    from orch_core.rpc import client

    described = folder.read_description(path)
    rows = [{"id": c.id, "pid": None, "address": c.address, "role": "unreachable"} for c in described.coordinators]
    if folder.is_living(path):
        try:
            return client.inspect([c.address for c in described.coordinators], described.token)
        except Unreachable:
            time.sleep(ENDING_S)  # the coordinators of a job that ends go before its agent
    summary = _summary(path)
    if summary is None and folder.is_living(path):
        began = (path / "events.jsonl").exists()  # then it trains on without any coordinator
        return _skeleton(described.job, "running" if began else "starting", rows)
    if summary is None:
        status = _skeleton(described.job, "failed", rows)
        status["message"] = f"its agent (pid {described.agent_pid}) has ended without a summary"
        return status
    status = _skeleton(described.job, str(summary.get("status", "failed")), rows)
    views = summary.get("views") or [None]
    return {**status, "step": summary.get("steps", 0), "view": views[-1], "summary": summary}


def _skeleton(job: str, status: str, coordinators: list[dict[str, Any]]) -> StatusJson:
    return {
        "version": 1,
        "job": job,
        "status": status,
        "step": 0,
        "leader": None,
        "term": 0,
        "quorum": False,
        "stale": True,
        "view": None,
        "coordinators": coordinators,
        "workers": [],
        "checkpoints": [],
    }


def _summary(path: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads((path / "summary.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path / 'summary.json'} cannot be read: {error}") from error
    return found if isinstance(found, dict) else None


def _for_people(status: StatusJson) -> str:
    """A small screen."""
    import io
    import shutil

    from rich.console import Console, Group
    from rich.text import Text

    file = io.StringIO()
    width = max(40, min(120, shutil.get_terminal_size((100, 24)).columns))
    workers = _table(("worker", "state", "step", "shards", "pass", "pid", "doing"))
    for row in status.get("workers", ()):
        shards = " ".join(map(str, row.get("shards", ())))
        cost = f"{row['pass_ms']:.3g} ms" if row.get("pass_ms") else ""
        _add(workers, row.get("id"), row.get("state"), row.get("step"), shards, cost, row.get("pid"), row.get("doing"))
    coordinators = _table(("coordinator", "role", "address", "pid"))
    for row in status.get("coordinators", ()):
        _add(coordinators, row.get("id"), row.get("role"), row.get("address"), row.get("pid"))
    parts: list[Any] = [Text(line) for line in _headlines(status)]
    parts += [Text(""), workers] if status.get("workers") else []
    parts += [Text(""), coordinators] if status["status"] not in FINAL else []
    events = [_cell(event.get("text")) for event in status.get("events", ())]
    parts += [Text(""), *(Text(f"- {text}") for text in events)] if events else []
    Console(file=file, width=width, color_system=None, force_terminal=False).print(Group(*parts))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def _table(columns: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: "Table", *cells: Any) -> None:
    from rich.text import Text

    table.add_row(*(Text(_cell(cell)) for cell in cells))


def _headlines(status: StatusJson) -> list[str]:
    training = status.get("training") or {}
    steps = f" of {-(-training['epochs'] * training['samples'] // training['batch_size'])}" if training else ""
    means = ", ".join(f"{k} {v:.4g}" for k, v in (status.get("means") or {}).items() if isinstance(v, int | float))
    view = status.get("view")
    lines = [f"job {status['job']}: {status['status']}, step {status['step']}{steps}" + (f", {means}" if means else "")]
    if status.get("message"):
        lines.append(str(status["message"]))
    if status["status"] == "waiting":
        lines.append(f"waits for at least {status.get('min_workers', 1)} workers, and trains on when they are there")
    if view:
        lines.append(f"view {view.get('number')}: {_cell(view.get('reason'))}")
    if status["status"] not in FINAL:
        quorum = "" if status.get("quorum") else "; NO QUORUM: training goes on, but views cannot change"
        lines.append(f"leader {status.get('leader') or 'none'}, term {status.get('term')}{quorum}")
    if failure := status.get("failure"):
        lines.append(f"failed: {_cell(failure.get('message'))}")
    return lines


def _cell(value: Any) -> str:
    from orch_core.agent.logs import clean

    return "" if value is None else clean(str(value)).replace("\n", " ")
