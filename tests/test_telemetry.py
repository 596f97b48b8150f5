"""The names and units that dashboards are built on, and that nothing happens without an SDK."""

import json
import subprocess
import sys
from pathlib import Path

from orch_core import telemetry

UNITS = {
    "orch.step.duration": "s",
    "orch.step.number": "{step}",
    "orch.train.loss": "1",
    "orch.train.samples": "{sample}",
    "orch.sync.duration": "s",
    "orch.sync.bytes": "By",
    "orch.view.number": "{view}",
    "orch.view.members": "{worker}",
    "orch.pass.duration": "s",
    "orch.deal.changes": "{change}",
    "orch.recovery.duration": "s",
    "orch.raft.term": "{term}",
    "orch.raft.commit.duration": "s",
    "orch.worker.heartbeat.age": "s",
    "process.cpu.time": "s",
    "process.memory.usage": "By",
    "system.cpu.utilization": "1",
    "system.memory.usage": "By",
}
RECORD_ALL = """
import json
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from orch_core import telemetry

reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
metrics.set_meter_provider(MeterProvider([reader]))
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracers)

telemetry.observe_host()
for instrument in vars(telemetry).values():
    for act in ("record", "add", "set"):
        if hasattr(instrument, act) and hasattr(instrument, "_name"):
            getattr(instrument, act)(1)
with telemetry.span(telemetry.STEP, step=3):
    carried = telemetry.inject()
    telemetry.past_span(telemetry.SYNC, 1_000, 2_000, step=3)
with telemetry.remote_context([*carried, ("bytes-bin", b"x")]):
    with telemetry.span(telemetry.ELECTION):
        pass
found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
step = next(s for s in spans.get_finished_spans() if s.name == "step")
print(json.dumps({
    "metrics": {m.name: m.unit for m in found},
    "spans": sorted(s.name for s in spans.get_finished_spans()),
    "one_trace": len({s.context.trace_id for s in spans.get_finished_spans()}) == 1,
    "attributes": dict(step.attributes),
}))
"""


def test_every_metric_has_its_name_and_unit_and_spans_carry_over_processes() -> None:
    done = subprocess.run([sys.executable, "-c", RECORD_ALL], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["metrics"] == UNITS
    assert seen["spans"] == ["election", "step", "sync"]
    assert seen["one_trace"]
    assert seen["attributes"] == {"orch.step": 3}


def test_without_an_sdk_everything_is_a_no_op() -> None:
    telemetry.STEP_DURATION.record(1)
    with telemetry.span(telemetry.STEP, step=1) as span:
        assert not span.is_recording()
        assert telemetry.inject() == ()
    with telemetry.remote_context([]):
        pass
    telemetry.past_span(telemetry.SYNC, 1, 2)


def test_nothing_is_named_that_is_never_measured() -> None:
    """A name with nobody who records it is an empty chart."""
    tree = Path(telemetry.__file__).parent
    code = "".join(path.read_text() for path in tree.rglob("*.py") if path != Path(telemetry.__file__))
    names = {name for name in vars(telemetry) if name.isupper() and name != "SCOPE"}
    assert "SYNC_BYTES" in names
    assert {name for name in names if f"telemetry.{name}" not in code} == set()
    assert "telemetry.observe_host()" in code
