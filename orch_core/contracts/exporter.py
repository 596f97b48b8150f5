"""The telemetry and dashboard contracts. The core speaks the OpenTelemetry API; an exporter installs what listens."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from orch_core.contracts.ids import JobName


@dataclass(frozen=True, slots=True)
class ProcessResource:
    """Who sends: becomes OpenTelemetry resource attributes."""

    job: JobName
    process: str  # "w2.3", "c0", "agent"
    role: str  # "worker" | "coordinator" | "agent"
    host: str
    options: Mapping[str, str] = field(default_factory=dict)


class Exporter(ABC):
    """Installs providers for the OpenTelemetry API in this process. Never load-bearing: bounded, drops are counted."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def close(self, timeout_s: float) -> None:
        """Flush for at most `timeout_s` and stop. Must not hold the process up any longer."""


class Dashboard(ABC):
    """Serves the live page in a process of its own."""

    @abstractmethod
    def start(self) -> str:
        """Start serving; the page's address."""

    @abstractmethod
    def close(self) -> None: ...
