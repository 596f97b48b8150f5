"""Where a step's time goes, told once per step: data, compute, sync, optimizer."""

import time

from orch_core import telemetry
from orch_core.contracts.ids import Step


class Stopwatch:
    """Begins with the batch. Each part is the sum of its pieces; the spans stand one behind the other."""

    __slots__ = ("_at", "_began", "_part", "_spent")

    def __init__(self) -> None:
        self._began = self._at = time.perf_counter()
        self._part = telemetry.OPTIMIZER
        self._spent = dict.fromkeys((telemetry.DATA, telemetry.COMPUTE, telemetry.SYNC, telemetry.OPTIMIZER), 0.0)

    def enter(self, part: str) -> None:
        now = time.perf_counter()
        self._spent[self._part] += now - self._at
        self._part, self._at = part, now

    def tell(self, step: Step, loss: float | None, samples: int) -> None:
        """The outer body is over."""
        self.enter(self._part)
        telemetry.STEP_DURATION.record(self._at - self._began)
        telemetry.SYNC_DURATION.record(self._spent[telemetry.SYNC])
        telemetry.STEP_NUMBER.set(step + 1)
        telemetry.TRAIN_SAMPLES.add(samples)
        if loss is not None:
            telemetry.TRAIN_LOSS.set(loss)
        end = time.time_ns()
        begin = end - int((self._at - self._began) * 1e9)
        telemetry.past_span(telemetry.STEP, begin, end, step=int(step))
        for part, spent in self._spent.items():
            telemetry.past_span(part, begin, begin + int(spent * 1e9), step=int(step))
            begin += int(spent * 1e9)
