"""Named points at the effect boundaries of the live processes, so that a test can kill exactly there.

A point is one line, ``reach("barrier-sent", step)``, and costs well under 100 ns while nothing is armed. What happens
there is told by one variable, read where a process starts (never here)::

    ORCH_FAILPOINTS=point:step:action[@who][,point:step:action[@who]...]

`step` is a number or ``*``. `action` is ``kill`` (SIGKILL to itself), ``stop`` (SIGSTOP to itself), ``raise``,
``exit:CODE`` or ``sleep:MILLISECONDS``. `who` is the beginning of a process's id, in whole parts: ``@w1`` means every
life of place w1, ``@w1.1`` its first life only. Each entry fires once per process.
"""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from orch_core.contracts.errors import ConfigurationError, OrchError

VARIABLE = "ORCH_FAILPOINTS"
POINTS: Mapping[str, str] = {
    "contributed": "a worker has sent its part of a round of the step",
    "barrier-sent": "a worker has sent its part of the step's barrier and has not seen the others'",
    "applied": "a worker has left the inner loop of the step and has not begun the outer body",
    "outer-body": "a worker has ended the outer body of the step",
    "hello-sent": "a worker has sent the first of its hellos for a view",
    "state-half-sent": "a member has sent about half of its share of State(s) to a joiner",
    "state-half-received": "a joiner has received a share of State(s)",
    "followed": "a follower has all of State(s), and its script has not seen it",
    "before-first-view": "a worker is ready and no view has been installed yet",
    "before-end-commit": "the leader is about to commit the end of the job",
    "after-end-commit": "the leader has committed the end of the job and told nobody",
    "persist": "a replica is about to make entries durable",
    "persisted": "a replica has made entries durable and sent nothing that depends on it",
    "send": "a replica is about to send a message",
}


class FailpointRaised(OrchError):
    """What the action ``raise`` raises."""


@dataclass(frozen=True, slots=True)
class Failpoint:
    point: str
    step: int | None  # None: any
    action: str
    number: int = 0  # exit code or milliseconds


_armed: dict[str, list[Failpoint]] | None = None


def reach(point: str, step: int = -1) -> None:
    """The process is at `point` of `step`. Does nothing unless a failpoint is armed for it."""
    if _armed is not None:
        _reach(_armed, point, step)


def arm(spec: str, who: str = "") -> None:
    """Set this process's failpoints, forgetting earlier ones. `spec` is the variable's text, `who` this process's id.

    Raises ConfigurationError.
    """
    global _armed
    mine: dict[str, list[Failpoint]] = {}
    for entry in filter(None, (part.strip() for part in spec.split(","))):
        text, _, prefix = entry.partition("@")
        failpoint = _parse(text)
        if not prefix or who == prefix or who.startswith(f"{prefix}."):
            mine.setdefault(failpoint.point, []).append(failpoint)
    _armed = mine or None


def disarm() -> None:
    """Forget every failpoint."""
    arm("")


def _reach(armed: dict[str, list[Failpoint]], point: str, step: int) -> None:
    for failpoint in armed.get(point, ()):
        if failpoint.step is None or failpoint.step == step:
            armed[point].remove(failpoint)  # once
            _act(failpoint)
            return


def _act(failpoint: Failpoint) -> None:
    os.write(2, f"orch: failpoint {failpoint.point} fires: {failpoint.action}\n".encode())  # last words, for the log
    match failpoint.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise FailpointRaised(f"failpoint {failpoint.point} was armed to raise")
        case "exit":
            os._exit(failpoint.number)
        case "sleep":
            time.sleep(failpoint.number / 1000)


def _parse(text: str) -> Failpoint:
    parts = text.split(":")
    if len(parts) not in (3, 4):
        raise ConfigurationError(f"{VARIABLE}: {text!r} does not look like point:step:action")
    point, step, action = parts[:3]
    if point not in POINTS:
        raise ConfigurationError(f"{VARIABLE}: there is no point {point!r}; there are {', '.join(POINTS)}")
    if not (step == "*" or step.lstrip("-").isdecimal()):
        raise ConfigurationError(f"{VARIABLE}: the step in {text!r} should be a number or *")
    takes_number = action in ("exit", "sleep")
    if action not in ("kill", "stop", "raise", "exit", "sleep") or takes_number != (len(parts) == 4):
        raise ConfigurationError(f"{VARIABLE}: the action in {text!r} should be kill, stop, raise, exit:N or sleep:MS")
    if takes_number and not parts[3].isdecimal():
        raise ConfigurationError(f"{VARIABLE}: {parts[3]!r} in {text!r} should be a number")
    return Failpoint(point, None if step == "*" else int(step), action, int(parts[3]) if takes_number else 0)
