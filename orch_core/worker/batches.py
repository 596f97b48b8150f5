"""The loops of a training script: ``run.epochs``, ``run.batches`` and the inner loop over a batch.

What a script may do wrong in them is found here and said in a sentence. An error that the script swallows comes up
again at its next call, because training must not go on with other weights than everybody else's.
"""

import dis
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from orch_core import failpoints, telemetry
from orch_core.contracts.document import Training
from orch_core.contracts.errors import ConfigurationError, LoopError
from orch_core.contracts.ids import Shard, Step
from orch_core.protocol.order import epoch_of, first_step
from orch_core.worker.handover import Ended
from orch_core.worker.loader import Loader
from orch_core.worker.seeds import pass_seed, seed_all, step_seed
from orch_core.worker.stopwatch import Stopwatch

if TYPE_CHECKING:
    from orch_core.worker.run import Run

LEFT_EARLY = (
    "the inner loop was left early (break, return, an exception or next()): it must run to its end, because the mean "
    "gradient is in .grad only then; to leave out a bad batch use `continue`, to end training run.stop()"
)


class Epochs:
    """``for epoch in run.epochs(3)``: from the job's present epoch on."""

    def __init__(self, loops: "Loops", count: int) -> None:
        self._loops = loops
        self._count = count
        self._iterated = False

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        if self._iterated:
            raise self._loops.wrong("run.epochs() was looped over twice: a job has one loop over epochs")
        self._iterated = True
        return self._loops.epochs(self._count)


class Batches:
    """``for batch in run.batches(dataset, batch_size=240)``: this epoch's steps. Its length is in steps."""

    def __init__(self, loops: "Loops", loader: Loader) -> None:
        self._loops = loops
        self._loader = loader

    def __len__(self) -> int:
        return self._loops.steps_in_epoch(self._loader)

    def __iter__(self) -> "Iterator[Batch]":
        return self._loops.batches()


class Batch:
    """One global batch, which is one step. Iterating runs this worker's passes; afterwards `.grad` holds the mean."""

    def __init__(self, loops: "Loops", step: Step) -> None:
        self._loops = loops
        self._iterated = False
        self.step = step

    def __iter__(self) -> Iterator[Any]:
        if self._iterated:
            raise self._loops.wrong(
                "a batch was looped over twice: each pass of a step runs once; keep what you need from the first loop"
            )
        self._iterated = True
        return self._loops.passes(self)

    @property
    def means(self) -> Mapping[str, float]:
        """Canonical means of what the step's passes have logged; the same bits on every member."""
        self._loops.check()
        return self._loops.means(self.step)


class Loops:
    """Where the script stands in its loops."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._count: int | None = None  # epochs
        self._loader: Loader | None = None
        self._fault: BaseException | None = None
        self._in_epochs = False
        self._in_batches = False
        self._batch: Batch | None = None  # yielded, and its outer body is not over
        self._in_inner = False
        self._inner_done = False
        self._epoch_looped = False  # batches() has been looped over in this epoch
        self._wants_end = False  # the loops were left; nobody has waited for the end yet
        self._ended = False
        self._logged: dict[str, float] = {}
        self._shard: Shard | None = None
        self._samples: list[int] = []
        self._samples_carried = 0  # by this worker, in the open step
        self._watch = Stopwatch()
        self.epoch = 0

    # ---------------------------------------------------------------- faults

    def wrong(self, sentence: str) -> LoopError:
        """A LoopError that will come up again if it is swallowed; an earlier one, if there was one."""
        first = self.remember(LoopError(sentence))
        return first if isinstance(first, LoopError) else LoopError(sentence)

    def remember(self, error: BaseException) -> Any:
        """The first error is the cause of the later ones, so it is the one to raise."""
        if self._fault is None:
            self._fault = error
        return self._fault

    def check(self) -> None:
        """Raise again what the script has swallowed, and wait for the end if the loops were left."""
        if self._fault is not None:
            raise self._fault
        if self._wants_end:
            self._end()

    @property
    def fault(self) -> BaseException | None:
        return self._fault

    @property
    def where(self) -> tuple[Step | None, Shard | None, tuple[int, ...]]:
        """Step, shard and sample indices, for the report of an exception."""
        step = self._batch.step if self._batch is not None else None
        return step, self._shard, tuple(self._samples) if self._shard is not None else ()

    @property
    def ran_no_pass(self) -> bool:
        """The script is in the outer body of a step of which this worker carried no shard."""
        return self._batch is not None and self._inner_done and not self._run.steps.passes

    # ---------------------------------------------------------------- epochs

    def make_epochs(self, count: int) -> Epochs:
        self.check()
        if type(count) is not int or count < 0:
            raise ConfigurationError(f"run.epochs({count!r}): give the number of epochs, 0 or more")
        if self._count is not None:
            raise self.wrong("run.epochs() was called twice: a job has one loop over epochs")
        self._count = count
        return Epochs(self, count)

    def epochs(self, count: int) -> Iterator[int]:
        steps = self._run.steps
        if not steps.started:
            steps.start(self.remember)
        self.epoch = 0
        if self._run.joins():
            try:
                steps.join()
            except Ended:
                return
            self.epoch = self._epoch_of_next()
        self._in_epochs = True
        try:
            while self.epoch < count and not self._finished():
                self._epoch_looped = False
                self._run.tell_epoch(self.epoch)
                yield self.epoch
                self.check()
                self._close_epoch()
                self.epoch = max(self.epoch + 1, self._epoch_of_next())
        except GeneratorExit:
            self._in_epochs = False
            self._leave(_by_break())
            raise
        self._in_epochs = False
        self._end()

    def _epoch_of_next(self) -> int:
        training = self._run.steps.training
        if training is None:
            return 0
        return epoch_of(self._run.steps.next_step, samples=training.samples, batch_size=training.batch_size)

    def _finished(self) -> bool:
        return self._run.steps.is_over()

    def _close_epoch(self) -> None:
        steps, training = self._run.steps, self._run.steps.training
        if self._in_batches:  # left by a break that this generator did not see
            self._leave_batches()
        if not self._epoch_looped and not steps.over:
            size = {} if training is None else {"samples": training.samples, "batch_size": training.batch_size}
            if training is None or epoch_of(steps.next_step, **size) <= self.epoch:
                raise self.wrong(
                    f"epoch {self.epoch} ended without a loop over run.batches(): there is one in every epoch"
                )

    def _leave(self, certain: bool) -> None:
        """The loop over epochs was dropped: by `break` or `return` (certainly), or by an exception on its way out."""
        if self._fault is not None or self._run.failed:
            return
        if self._in_batches:
            self._leave_batches()
        steps = self._run.steps
        if steps.training is None:
            return
        steps.over = steps.over or ("left" if not self._finished() else "steps")
        self._wants_end = True
        if certain:
            try:
                self._end()
            except Exception as error:  # noqa: BLE001 - a generator that is being closed cannot raise: the next call does
                self.remember(error)

    def settle(self) -> None:
        """The script has come to its end without an exception."""
        self.check()
        if self._in_inner and not self._inner_done:
            raise self.wrong(LEFT_EARLY)

    def _end(self) -> None:
        """Wait until the end of training is committed. Whoever comes here first waits for all."""
        if self._ended:
            return
        self._ended, self._wants_end = True, False
        steps = self._run.steps
        if self._loader is not None:
            self._loader.close()
        if steps.applied is None or steps.training is None:
            raise self.wrong("training has ended before its first step: loop over run.batches() in run.epochs()")
        self._batch = None
        if steps.over == "left":
            self._run.tell_left(Step(steps.next_step - 1))
        steps.end()
        self._run.finished()

    # ---------------------------------------------------------------- batches

    def make_batches(self, make: Callable[[], Loader], dataset: Any, batch_size: int, shuffle: bool) -> Batches:
        self.check()
        if self._ended:
            raise self.wrong("run.batches() after the end of training: there are no more steps to run")
        if self._loader is None:
            self._loader = make()
        elif not self._loader.same_as(dataset, batch_size, shuffle):
            raise self.wrong(
                "run.batches() was called with another data set or batch size than before: combine the data sets in "
                "one (ConcatDataset, or a data set of pairs); evaluate with a plain DataLoader"
            )
        return Batches(self, self._loader)

    def steps_in_epoch(self, loader: Loader) -> int:
        size = {"samples": loader.length, "batch_size": loader.batch_size}
        return first_step(self.epoch + 1, **size) - first_step(self.epoch, **size)

    def batches(self) -> "Iterator[Batch]":
        self.check()
        if not self._in_epochs:
            raise self.wrong("run.batches() outside of run.epochs(): loop over it inside `for epoch in run.epochs(n):`")
        if self._in_batches:
            raise self.wrong("two loops over run.batches() are open at once: combine the data sets in one")
        if self._epoch_looped:
            raise self.wrong(
                f"run.batches() was looped over twice in epoch {self.epoch}: combine the data sets in one, and "
                f"evaluate with a plain DataLoader"
            )
        self._epoch_looped = self._in_batches = True
        return self._batches()

    def _batches(self) -> "Iterator[Batch]":
        run, loader = self._run, self._loader
        assert loader is not None
        assert self._count is not None
        if run.steps.training is None or run.steps.applied is None:
            run.get_ready(Training(self._count, loader.length, loader.batch_size))
        run.steps.train(Training(self._count, loader.length, loader.batch_size))
        if run.steps.applied is None:
            run.steps.join()  # a slow starter: only now it is known whether the job is in this epoch
        try:
            while self._in_this_epoch():
                step = run.steps.begin()
                if step is None or not self._in_this_epoch():
                    break
                self._batch, self._inner_done = Batch(self, step), False
                self._watch = Stopwatch()
                loader.expect(self._ahead(loader, step))
                yield self._batch
                self._outer_body_over()
        except GeneratorExit:
            if _by_break():
                self._leave_batches()
            raise
        self._in_batches = False

    def _in_this_epoch(self) -> bool:
        return not self._run.steps.over and (self._run.steps.applied is None or self._epoch_of_next() <= self.epoch)

    def _ahead(self, loader: Loader, step: Step) -> list[tuple[Step, Shard]]:
        wanted: list[tuple[Step, Shard]] = []
        training = self._run.steps.training
        while training is not None and step < training.steps and len(wanted) < loader.ahead:
            mine = self._run.steps.shards_wanted(step)
            wanted += [(step, shard) for shard in mine]
            if not mine and wanted:
                break
            if not mine and step > self._run.steps.next_step:
                break
            step = Step(step + 1)
        return wanted[: loader.ahead]

    def _outer_body_over(self) -> None:
        """The script asks for the next batch."""
        batch = self._batch
        assert batch is not None
        self.check()
        if not self._inner_done:
            if self._in_inner:
                raise self.wrong(LEFT_EARLY)
            raise self.wrong(
                f"step {batch.step} ended without its inner loop: write `for ... in batch:` around forward and backward"
            )
        self._run.steps.outer_body_over()
        self._watch.tell(batch.step, self._run.steps.means.get("loss"), self._samples_carried)
        failpoints.reach("outer-body", batch.step)
        self._batch = None

    def _leave_batches(self) -> None:
        """The loop over batches was left, and the step's outer body with it: training ends after this step."""
        if not self._in_batches:
            return
        self._in_batches = False
        if self._batch is not None and not self._inner_done:
            if self._in_inner:
                self.wrong(LEFT_EARLY)
            elif self._run.steps.applied == -1:
                self.wrong("the loop over run.batches() was left in its first step, before the inner loop has run")
            self._batch = None
        self._run.steps.over = self._run.steps.over or "left"

    # ---------------------------------------------------------------- passes

    def passes(self, batch: Batch) -> Iterator[Any]:
        run, loader = self._run, self._loader
        assert loader is not None
        self.check()
        if batch is not self._batch:
            raise self.wrong(
                "a batch was looped over after its step: loop over it at once, in the loop over run.batches()"
            )
        self._in_inner = True
        run.steps.enter()
        try:
            while (shard := run.steps.next_pass()) is not None:
                self._shard, self._logged = shard, {}
                watch = self._watch
                watch.enter(telemetry.DATA)
                task = loader.task(batch.step, shard)
                self._samples = task.indices
                run.note(batch.step, shard, task.indices)
                if loader.ahead:
                    loader.expect(self._ahead(loader, batch.step))
                data = loader.load(task)
                run.steps.restore_buffers()
                run.steps.gradients.begin_pass()
                seed_all(pass_seed(run.seed, batch.step, shard), run.generator)
                watch.enter(telemetry.COMPUTE)
                yield data
                self.check()
                grads = run.steps.gradients.end_pass()
                run.steps.end_pass(shard, grads, self._logged)
                self._shard = None
                watch.enter(telemetry.SYNC)
        except GeneratorExit:
            run.steps.gradients.leave_pass()
            self.wrong(LEFT_EARLY)
            raise
        except BaseException as error:
            self.remember(error)
            raise
        self._in_inner, self._inner_done, self._shard = False, True, None
        run.note(None)
        self._watch.enter(telemetry.OPTIMIZER)
        self._samples_carried = run.steps.passes * (loader.batch_size // run.shards)
        seed_all(step_seed(run.seed, batch.step), run.generator)

    def means(self, step: Step) -> Mapping[str, float]:
        if self._run.steps.applied != step:
            if self._run.steps.next_step == step:
                raise self.wrong(f"batch.means before the end of step {step}'s inner loop: read it in the outer body")
            raise self.wrong("batch.means of an earlier step: read it in the outer body of its own step")
        return self._run.steps.means

    def log(self, values: Mapping[str, Any]) -> None:
        self.check()
        numbers = {name: _number(name, value) for name, value in values.items()}
        if self._shard is not None:
            self._logged.update(numbers)
        elif self._batch is not None and self._inner_done:
            self._run.steps.outer.update(numbers)
        elif self._batch is not None:
            raise self.wrong("run.log() between the two loops: log in the inner loop, or behind it in the outer body")


def _number(name: str, value: Any) -> float:
    try:
        return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise ConfigurationError(
            f"run.log({name}=...) was given a {type(value).__name__}{shape}: log one number, the mean of a tensor say"
        ) from error


def _by_break() -> bool:
    """Called where a generator is being closed: was it dropped by `break` or `return`, not by an exception?

    A loop's iterator is dropped by an instruction of its own in the first case; in the second the frame stands at the
    call that raised. Where that cannot be told (another Python, a wrapper like tqdm) the answer is False, and the
    end is awaited later: at the script's next call or at its end.
    """
    frame = sys._getframe(1).f_back
    if frame is None or sys.version_info[:2] != (3, 11):
        return False
    code = frame.f_code.co_code
    return 0 <= frame.f_lasti < len(code) and dis.opname[code[frame.f_lasti]] == "POP_TOP"
