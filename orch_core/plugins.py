"""Find, check, load and call plugins.

pluggy's own loader imports every installed plugin and silently drops the second one of a name, even in another group.
This one scans the entry points once without importing anything, and then imports and registers exactly what a job has
chosen. Whatever is wrong is a :class:`PluginError` of one sentence that names the plugin, its distribution and the way
out.
"""

import difflib
import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pluggy

from orch_core import __version__, hookspecs
from orch_core.contracts.checkpoint import CheckpointStore
from orch_core.contracts.consensus import Consensus, ReplicaSpec
from orch_core.contracts.errors import OrchError, PluginError
from orch_core.contracts.exporter import Dashboard, Exporter, ProcessResource
from orch_core.contracts.job import JobSpec
from orch_core.contracts.options import Option, OptionValue, convert
from orch_core.contracts.sync import GradientSync

CORE = "orch-core"
FACTORIES: Mapping[str, str] = {  # kind -> the hook that each plugin of the kind implements
    "consensus": "orch_make_consensus",
    "sync": "orch_make_sync",
    "checkpoint": "orch_make_checkpoint_store",
    "telemetry": "orch_make_exporter",
    "dashboard": "orch_make_dashboard",
}
BROADCASTS = ("orch_run_started", "orch_view_changed", "orch_run_ended")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Available:
    """One installed plugin, as its distribution's metadata tells it. Nothing has been imported to know this."""

    kind: str
    name: str
    dist: str
    version: str
    value: str  # the module

    def __str__(self) -> str:
        return f"{self.kind} plugin {self.name!r} ({self.dist} {self.version})"


class Plugins:
    """The plugins of one process: all that are installed, and the few that are loaded."""

    def __init__(self, found: Iterable[EntryPoint] = (), core_version: str = __version__) -> None:
        self._found = {kind: [e for e in found if e.group == f"orch.{kind}"] for kind in FACTORIES}
        self._core_version = core_version
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._loaded: dict[tuple[str, str], ModuleType] = {}
        self._quarantined: set[str] = set()

    @classmethod
    def installed(cls) -> "Plugins":
        """Scan this environment: about 10 ms."""
        scanned = entry_points()
        return cls([entry for kind in FACTORIES for entry in scanned.select(group=f"orch.{kind}")])

    def available(self) -> list[Available]:
        """Everything that is installed, sorted by kind and name, without importing any of it."""
        rows = [_describe(kind, entry) for kind, entries in self._found.items() for entry in entries]
        return sorted(rows, key=lambda row: (list(FACTORIES).index(row.kind), row.name, row.dist))

    def find(self, kind: str, name: str) -> Available:
        """The one plugin of this kind and name, without importing it. Raises PluginError."""
        return _describe(kind, self._entry(kind, name))

    def load(self, kind: str, name: str) -> ModuleType:
        """Import, check and register a plugin; a second call returns the same module. Raises PluginError."""
        if (kind, name) not in self._loaded:
            entry = self._entry(kind, name)
            plugin = _describe(kind, entry)
            self._check_core(plugin, entry)
            module = _import(plugin, entry)
            self._register(plugin, module)
            self._loaded[kind, name] = module
        return self._loaded[kind, name]

    def options(self, kind: str, name: str) -> tuple[Option, ...]:
        """What the plugin lets its user set."""
        return tuple(self._call(kind, name, "orch_add_options") or ())

    def convert(self, kind: str, name: str, given: Mapping[str, str]) -> dict[str, OptionValue]:
        """Options as typed on a command line -> checked values, with the defaults filled in. Raises PluginError."""
        return convert(f"{kind} plugin {name!r}", self.options(kind, name), given)

    def make_consensus(self, name: str, spec: ReplicaSpec) -> Consensus:
        return cast("Consensus", self._make("consensus", name, spec=spec))

    def make_sync(self, name: str, given: Mapping[str, str]) -> GradientSync[Any]:
        """`given`: the options as typed, as in :attr:`JobSpec.sync_options`."""
        return cast("GradientSync[Any]", self._make("sync", name, options=self.convert("sync", name, given)))

    def make_checkpoint_store(self, url: str) -> CheckpointStore:
        scheme = url.partition("://")[0] if "://" in url else "local"
        return cast("CheckpointStore", self._make("checkpoint", scheme, url=url))

    def make_exporter(self, name: str, resource: ProcessResource) -> Exporter | None:
        return cast("Exporter | None", self._call("telemetry", name, "orch_make_exporter", resource=resource))

    def make_dashboard(self, name: str, job: JobSpec, folder: Path, port: int) -> Dashboard | None:
        made = self._call("dashboard", name, "orch_make_dashboard", job=job, folder=folder, port=port)
        return cast("Dashboard | None", made)

    def broadcast(self, hook: str, **arguments: Any) -> list[str]:
        """Tell every loaded plugin, one at a time. One that raises is logged, named in the result and never told again.

        pluggy would stop at the first exception, and the plugins behind it would hear nothing.
        """
        failed = []
        for (kind, name), module in self._loaded.items():
            label = f"{kind} plugin {name!r}"
            if label in self._quarantined:
                continue
            try:
                self._caller(hook, module)(**arguments)
            except Exception:  # somebody else's code; the job must go on without it
                logger.warning("%s raised in %s and will hear no more of this job", label, hook, exc_info=True)
                self._quarantined.add(label)
                failed.append(label)
        return failed

    def _entry(self, kind: str, name: str) -> EntryPoint:
        named = [entry for entry in self._found[kind] if entry.name == name]
        if not named:
            raise PluginError(_unknown(kind, name, sorted({entry.name for entry in self._found[kind]})))
        if len(named) > 1:
            dists = " and ".join(sorted(_describe(kind, entry).dist for entry in named))
            raise PluginError(f"two {kind} plugins are called {name!r}, from {dists}: uninstall one of them")
        return named[0]

    def _check_core(self, plugin: Available, entry: EntryPoint) -> None:
        """A plugin made for another core must not even be imported: its errors would be riddles."""
        from packaging.requirements import Requirement  # only who loads a plugin pays for it
        from packaging.utils import canonicalize_name

        for line in (entry.dist.requires if entry.dist else None) or ():
            needed = Requirement(line)
            if canonicalize_name(needed.name) != CORE or (needed.marker and not needed.marker.evaluate({"extra": ""})):
                continue
            if not needed.specifier.contains(self._core_version, prereleases=True):
                raise PluginError(
                    f"{plugin} needs {CORE} {needed.specifier}, but this is {self._core_version}:"
                    f" pip install --upgrade {plugin.dist} {CORE}"
                )

    def _register(self, plugin: Available, module: ModuleType) -> None:
        label = f"{plugin.kind}/{plugin.name}"
        try:
            self._manager.register(module, label)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            self._manager.unregister(name=label)
            raise PluginError(f"{plugin} has a wrong hook: {_ends(error)}{_near_hook(str(error))}") from error
        if not any(impl.plugin is module for impl in self._hook(FACTORIES[plugin.kind]).get_hookimpls()):
            self._manager.unregister(name=label)
            raise PluginError(f"{plugin} does not implement {FACTORIES[plugin.kind]}: the @hookimpl is missing")

    def _make(self, kind: str, name: str, **arguments: Any) -> Any:
        made = self._call(kind, name, FACTORIES[kind], **arguments)
        if made is None:
            raise PluginError(f"{self.find(kind, name)} made nothing: its {FACTORIES[kind]} returned None")
        return made

    def _call(self, kind: str, name: str, hook: str, **arguments: Any) -> Any:
        module = self.load(kind, name)
        try:
            return self._caller(hook, module)(**arguments)
        except OrchError:
            raise
        except Exception as error:
            raise PluginError(f"{self.find(kind, name)} failed in {hook}: {_cause(error)}") from error

    def _caller(self, hook: str, module: ModuleType) -> pluggy.HookCaller:
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
        return self._manager.subset_hook_caller(hook, others)

    def _hook(self, name: str) -> pluggy.HookCaller:
        return cast("pluggy.HookCaller", getattr(self._manager.hook, name))


@functools.cache
def installed() -> Plugins:
    """This process's plugins; the environment is scanned at the first call."""
    return Plugins.installed()


def _describe(kind: str, entry: EntryPoint) -> Available:
    dist = entry.dist
    return Available(kind, entry.name, dist.name if dist else "?", dist.version if dist else "?", entry.value)


def _import(plugin: Available, entry: EntryPoint) -> ModuleType:
    try:
        module = import_module(entry.module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() in a module is no way to end orch
        raise PluginError(f"{plugin} cannot be loaded from {entry.value}: {_cause(error)}") from error
    return module


def _unknown(kind: str, name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(near)}?" if near else f" (installed: {', '.join(names) or 'none'})."
    safe = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "NAME"
    return f"no {kind} plugin is called {name!r}{guess} If it exists, install it: pip install orch-{kind}-{safe}"


def _near_hook(text: str) -> str:
    found = re.search(r"orch_\w+", text)
    names = [*FACTORIES.values(), "orch_add_options", *BROADCASTS]
    near = difflib.get_close_matches(found[0], names, n=1) if found and found[0] not in names else []
    return f"; did you mean {near[0]}?" if near else ""


def _ends(error: BaseException) -> str:
    """pluggy puts the plugin into the first line and what is wrong into the last."""
    lines = str(error).strip().splitlines()
    return ": ".join(dict.fromkeys((lines[0], lines[-1])))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"
