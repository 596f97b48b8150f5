"""Names and units of everything that orch measures, over the OpenTelemetry API and nothing else.

Without an SDK (an exporter plugin installs one) every call here ends in a no-op of the API: 0.05 us for a metric, 5 us
for a span. So it may stand on the path of a step, but not of a bucket. Telemetry is never load-bearing.

::

    telemetry.STEP_DURATION.record(0.037)
    with telemetry.span(telemetry.STEP, step=12):
        ...
    metadata += telemetry.inject()                # a client's gRPC call carries the context
    with telemetry.remote_context(metadata): ...  # and the server's handler continues it
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from opentelemetry import context, metrics, propagate, trace

SCOPE = "orch"  # the instrumentation scope; the version is the resource's business

_meter = metrics.get_meter(SCOPE)
_tracer = trace.get_tracer(SCOPE)

# ---- metrics: name, unit (UCUM), meaning -----------------------------------------------------------------------------

STEP_DURATION = _meter.create_histogram("orch.step.duration", "s", "One optimizer step, from batch to outer body's end")
STEP_NUMBER = _meter.create_gauge("orch.step.number", "{step}", "Steps applied since the job's beginning")
TRAIN_LOSS = _meter.create_gauge("orch.train.loss", "1", "The step's canonical mean of what was logged as loss")
TRAIN_SAMPLES = _meter.create_counter("orch.train.samples", "{sample}", "Samples that this worker has trained on")
SYNC_DURATION = _meter.create_histogram(
    "orch.sync.duration", "s", "What a step waits for gradients after its last pass"
)
SYNC_BYTES = _meter.create_counter("orch.sync.bytes", "By", "Bytes sent to other members for gradient sync")
VIEW_NUMBER = _meter.create_gauge("orch.view.number", "{view}", "The present view's number")
VIEW_MEMBERS = _meter.create_gauge("orch.view.members", "{worker}", "Members of the present view")
PASS_DURATION = _meter.create_gauge("orch.pass.duration", "s", "What a pass costs this worker: a median of the newest")
DEAL_CHANGES = _meter.create_counter("orch.deal.changes", "{change}", "Deals that measured speed has changed in a view")
RECOVERY_DURATION = _meter.create_histogram(
    "orch.recovery.duration", "s", "From the last step before a failure to the next"
)
RAFT_TERM = _meter.create_gauge("orch.raft.term", "{term}", "The term that this replica knows")
RAFT_COMMIT_DURATION = _meter.create_histogram(
    "orch.raft.commit.duration", "s", "One commit, as the leader waits for it"
)
HEARTBEAT_AGE = _meter.create_gauge("orch.worker.heartbeat.age", "s", "Since the leader last heard of a worker")

# What a reader asks for when it exports; nothing runs before that.


def _process_cpu(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    times = os.times()
    yield metrics.Observation(times.user + times.system)


def _process_memory(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield metrics.Observation(resident_pages * os.sysconf("SC_PAGE_SIZE"))


def _system_memory(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    kib = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    yield metrics.Observation((kib["MemTotal"] - kib["MemAvailable"]) * 1024)


class _SystemCpu:
    """Since the last time it was asked."""

    def __init__(self) -> None:
        self._before = (0, 0)

    def __call__(self, _: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        now = (sum(ticks), ticks[3] + ticks[4])  # all, and of them idle or waiting for a disk
        whole, idle = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        yield metrics.Observation(1 - idle / whole if whole > 0 else 0.0)


_meter.create_observable_counter("process.cpu.time", [_process_cpu], "s", "CPU time of this process")
_meter.create_observable_gauge("process.memory.usage", [_process_memory], "By", "Resident memory of this process")


def observe_host() -> None:
    """Measure this host, too: for the one process per host that is its agent."""
    _meter.create_observable_gauge(
        "system.cpu.utilization", [_SystemCpu()], "1", "Share of this host's CPUs that is busy"
    )
    _meter.create_observable_gauge("system.memory.usage", [_system_memory], "By", "Memory in use on this host")


# ---- spans -----------------------------------------------------------------------------------------------------------

STEP, DATA, COMPUTE, SYNC, OPTIMIZER = "step", "data", "compute", "sync", "optimizer"
RECOVERY, DETECT, AGREE, REFORM, REDO = "recovery", "detect", "agree", "reform", "redo"
ELECTION = "election"
VIEW_CHANGE = "view"

Attribute = str | int | float | bool


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[trace.Span]:
    """A span around a block; a child of the one that is open in this thread or task."""
    with _tracer.start_as_current_span(name, attributes=_prefixed(attributes)) as opened:
        yield opened


def past_span(name: str, start_ns: int, end_ns: int, **attributes: Attribute) -> None:
    """A span whose times (Unix, nanoseconds) are known only now, such as the parts of a recovery or of a step."""
    _tracer.start_span(name, start_time=start_ns, attributes=_prefixed(attributes)).end(end_time=end_ns)


def inject() -> tuple[tuple[str, str], ...]:
    """The open span as gRPC metadata; empty if there is none."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


@contextmanager
def remote_context(metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[None]:
    """What is opened inside continues the caller's trace."""
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


def _prefixed(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {f"orch.{key}": value for key, value in attributes.items()}
