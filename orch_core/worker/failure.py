"""From an exception to the report of a failure, and the hints that turn PyTorch's own errors into something to do."""

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from orch_core.contracts import codec
from orch_core.contracts.document import Failure
from orch_core.contracts.errors import ConfigurationError, StrategyError

if TYPE_CHECKING:
    from orch_core.worker.run import Run

_OURS = str(Path(__file__).parent.parent)  # orch_core
_RUNPY = ("<frozen runpy>", "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


def add_hints(error: BaseException, run: "Run | None") -> None:
    """Notes below the message, for errors whose cause lies in how orch runs a script."""
    text = str(error)
    if isinstance(error, ValueError) and "more than 1 value per channel" in text:
        size = f"{run.shards} shards" if run is not None else "shards"
        _note(
            error,
            f"orch: BatchNorm sees one shard at a time (the batch is cut into {size}), and this one has a single "
            f"sample: use a larger batch_size, fewer --shards, or another normalization",
        )
    if (
        "process group has not been initialized" in text
        or "init_process_group" in text
        or _in_init_process_group(error)
    ):
        _note(
            error,
            "orch: nothing of torch.distributed is needed here: leave out init_process_group and the calls that use it",
        )
    if isinstance(error, NameError) and run is not None and run.loops.ran_no_pass:
        _note(
            error,
            f"orch: this worker carried no shard of step {run.step}, so the inner loop's body did not run here: set "
            f"the name before the loop, or use batch.means in the outer body",
        )


def report(error: BaseException, run: "Run | None", worker: str, at: float) -> Failure:
    """What everybody else should know."""
    step, shard, samples = run.loops.where if run is not None else (None, None, ())
    return Failure(
        worker=worker,  # type: ignore[arg-type]
        kind=_kind(error),
        message=_sentence(error),
        traceback=_place(error) if isinstance(error, ConfigurationError) else user_traceback(error),
        step=step,
        shard=shard,
        samples=samples,
        exit_code=2 if isinstance(error, ConfigurationError) else 1,
        at=at,
    )


def write_failure(folder: Path, failure: Failure) -> None:
    """``failures/<worker>.json``, at the moment of the exception; the first one stays."""
    path = folder / "failures" / f"{failure.worker}.json"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(codec.encode(failure))
    os.replace(temporary, path)


def user_traceback(error: BaseException) -> str:
    """As Python prints it, without orch's own frames around the script's; notes included."""
    formatted = traceback.TracebackException.from_exception(error)
    _trim(formatted, set())
    return "".join(formatted.format()).rstrip()


def shown(failure: Failure) -> str:
    """What a worker prints."""
    if failure.kind == "configuration":
        return f"orch: {failure.message}" + (f"\n{failure.traceback}" if failure.traceback else "")
    return failure.traceback or failure.message


def _place(error: BaseException) -> str:
    """The script's line, without the ceremony of a traceback: the sentence says it all."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not _ours(f.filename) and f.filename.endswith(".py")
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    if not own:
        return ""
    last = own[-1]
    return f'  File "{last.filename}", line {last.lineno}, in {last.name}\n    {last.line}'


def _trim(formatted: traceback.TracebackException, seen: set[int]) -> None:
    if id(formatted) in seen:
        return
    seen.add(id(formatted))
    kept = [frame for frame in formatted.stack if not _ours(frame.filename)]
    if kept:
        formatted.stack = traceback.StackSummary.from_list(kept)
    for other in (formatted.__cause__, formatted.__context__):
        if other is not None:
            _trim(other, seen)


def _ours(filename: str) -> bool:
    return filename.startswith(_OURS) or filename in _RUNPY


def _kind(error: BaseException) -> str:
    match error:
        case ConfigurationError():
            return "configuration"
        case StrategyError():
            return "strategy"
        case SystemExit():
            return "exit"
    return "drift" if type(error).__name__ == "StatesDiffer" else "script"


def _sentence(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the script ended itself: sys.exit({error.code!r})"
    text = str(error).strip().splitlines()
    if type(error).__module__.startswith("orch_core."):
        return text[0] if text else type(error).__name__
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _in_init_process_group(error: BaseException) -> bool:
    return any(frame.f_code.co_name == "init_process_group" for frame, _ in traceback.walk_tb(error.__traceback__))


def _note(error: BaseException, text: str) -> None:
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)
