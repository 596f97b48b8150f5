"""Every hook of orch: the plugin author's manual.

A plugin is a distribution of its own with one entry point, in the group of its kind, whose value is a *light* module::

    # pyproject.toml of the distribution orch-sync-topk, package orch_sync_topk
    [project.entry-points."orch.sync"]
    topk = "orch_sync_topk.plugin"

    # orch_sync_topk/plugin.py
    from orch_core.hookspecs import hookimpl

    @hookimpl
    def orch_make_sync(options):
        from orch_sync_topk.strategy import TopK    # heavy imports sit inside the hook's body

        return TopK()

Only the plugins that a job has chosen by kind and name are loaded, so a module may be imported in a process that must
stay small. A hook takes any subset of the arguments named here, by name. Each kind has one factory, which the plugin
must implement; ``orch_add_options`` and the broadcasts are optional.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from orch_core.contracts.checkpoint import CheckpointStore
from orch_core.contracts.consensus import Consensus, ReplicaSpec
from orch_core.contracts.document import View
from orch_core.contracts.exporter import Dashboard, Exporter, ProcessResource
from orch_core.contracts.job import JobSpec
from orch_core.contracts.options import Option, OptionValue
from orch_core.contracts.summary import Summary
from orch_core.contracts.sync import GradientSync

PROJECT = "orch"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# ---- factories: one per kind -----------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def orch_make_consensus(spec: ReplicaSpec) -> Consensus | None:
    """Make one replica of a consensus backend (group ``orch.consensus``, `--consensus NAME`).

    Called once per coordinator process, before its event loop runs anything else. Must not connect or open files:
    that is ``start()``. None: this plugin cannot serve `spec`, which ends the coordinator with an error.
    """


@hookspec(firstresult=True)
def orch_make_sync(options: Mapping[str, OptionValue]) -> GradientSync[Any] | None:
    """Make a gradient sync strategy (group ``orch.sync``, `--sync NAME`).

    Called once per worker process, when the layout of the buckets is known and before step 0. `options` holds every
    option that ``orch_add_options`` declares, checked and converted. None is an error.
    """


@hookspec(firstresult=True)
def orch_make_checkpoint_store(url: str) -> CheckpointStore | None:
    """Open a place for checkpoints (group ``orch.checkpoint``). The plugin's name is the scheme of `url`.

    Called once per process that writes or reads checkpoints. None: the URL is not for this plugin, which is an error.
    """


@hookspec(firstresult=True)
def orch_make_exporter(resource: ProcessResource) -> Exporter | None:
    """Make what listens to the OpenTelemetry API in this process (group ``orch.telemetry``).

    Called once per process of a job, early. None: nothing is exported from this process.
    """


@hookspec(firstresult=True)
def orch_make_dashboard(job: JobSpec, folder: Path, port: int) -> Dashboard | None:
    """Make the live page of a job (group ``orch.dashboard``).

    Called once, by the agent; `folder` is the job's. Port 0 means any free one. None: there is no page.
    """


# ---- options ---------------------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def orch_add_options() -> Sequence[Option] | None:
    """Declare what `--sync-opt KEY=VALUE` and the like accept for this plugin. There is no second mechanism.

    Called when the command line is read and again in each process that makes the object. None: it has no options.
    """


# ---- broadcasts: in the agent only, one plugin at a time; one that raises is reported and not called again -----------


@hookspec
def orch_run_started(job: JobSpec, folder: Path) -> None:
    """A job has started: its folder is there and its first coordinators run. The result is ignored."""


@hookspec
def orch_view_changed(view: View) -> None:
    """A view has been installed. Called once per view that the agent sees, in order; may skip some. Result ignored."""


@hookspec
def orch_run_ended(summary: Summary) -> None:
    """The job is over and its processes have ended; `summary` is what `--summary` writes. The result is ignored."""
