"""``orch.init()`` and what it returns: everything that a training script touches."""

import atexit
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from orch_core import failpoints, plugins
from orch_core.contracts.document import Training
from orch_core.contracts.errors import ConfigurationError, OrchError
from orch_core.contracts.ids import Shard, Step
from orch_core.contracts.job import JobStatus
from orch_core.contracts.note import NoteWriter
from orch_core.contracts.status import Note
from orch_core.dataplane.buffers import BufferLayout
from orch_core.dataplane.engine import Engine
from orch_core.dataplane.layout import Layout
from orch_core.worker import failure
from orch_core.worker.alone import SummaryFile, handover_alone
from orch_core.worker.batches import Batches, Epochs, Loops
from orch_core.worker.handover import Announcement, Handover
from orch_core.worker.loader import Loader
from orch_core.worker.prepared import Prepared
from orch_core.worker.save import Saver
from orch_core.worker.seeds import fingerprint, seed_all
from orch_core.worker.setting import Setting, read_setting
from orch_core.worker.steps import Steps

_run: "Run | None" = None


def init() -> "Run":
    """Begin: seeds torch, numpy and random. A second call returns the same run.

    In a worker of a job this attaches to what ``orch run`` has started; in plain Python it is a job of one.
    """
    global _run
    if _run is None:
        _run = Run.alone(read_setting())
    _run.begin()
    return _run


def attach(run: "Run") -> None:
    """Make `run` what :func:`init` returns: for the process entry of a worker."""
    global _run
    _run = run


class Run:
    """One training run, as its script sees it."""

    def __init__(self, setting: Setting, handover: Handover) -> None:
        spec = setting.spec
        self._setting = setting
        self._handover = handover
        self._saver = Saver(setting.folder)
        self._notes = NoteWriter(setting.folder / "notes" / setting.worker) if setting.folder is not None else None
        self._summary = SummaryFile(setting)
        self._device = _device(setting.place)
        self._generator = torch.Generator()
        self._ready = False
        self.failed = False  # an exception ends the script: nothing is awaited any more
        self.prepared = Prepared()
        self.steps = Steps(spec, handover, self.prepared, self._make_engine)
        self.loops = Loops(self)
        self.shards = spec.shards
        self._begun = False

    def begin(self) -> None:
        """The script has called ``init()``."""
        if not self._begun:
            self._begun = True
            torch.set_num_threads(self._setting.spec.threads)
            seed_all(self.seed % 2**64, self._generator)
            self._handover.tell(doing="building the model")

    @classmethod
    def alone(cls, setting: Setting) -> "Run":
        """Plain Python."""
        run = cls(setting, handover_alone(setting))
        run._summary.check()
        previous = sys.excepthook

        def explain(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            run.failed = True
            failure.add_hints(error, run)
            previous(kind, error, trace)

        sys.excepthook = explain
        atexit.register(run._at_exit)
        return run

    # ---------------------------------------------------------------- for scripts

    @property
    def device(self) -> torch.device:
        """cuda:(place % count), else the CPU."""
        return self._device

    @property
    def seed(self) -> int:
        """The job's."""
        return self._setting.spec.seed

    @property
    def generator(self) -> torch.Generator:
        """For randomness of the script's own: seeded like everything else before each pass and outer body."""
        return self._generator

    @property
    def step(self) -> int:
        """The step whose batch is being worked on; between batches the number of steps done."""
        step = self.loops.where[0]
        return self.steps.next_step if step is None else step

    @property
    def epoch(self) -> int:
        return self.loops.epoch

    @property
    def is_main(self) -> bool:
        """One member says True. A hint: what runs under it may run twice, or be skipped, when a worker dies."""
        return self.steps.is_first if self.steps.is_first is not None else self._setting.place == 0

    def prepare(self, *objects: Any) -> None:
        """What recovers: models, optimizers, schedulers, a GradScaler, anything with state_dict and load_state_dict."""
        self.loops.check()
        if self.prepared.closed:
            raise self.loops.wrong("run.prepare() after run.epochs() has begun: prepare everything before the loops")
        for obj in objects:
            self.prepared.add(obj)
            if isinstance(obj, torch.amp.GradScaler) and obj.is_enabled():
                obj.scale(torch.zeros((), device=self._device))  # a member without shards steps with it, too

    def keep(self, **objects: Any) -> None:
        """The same for objects of your own: picked up and put back as a whole at step boundaries, without pickle."""
        self.loops.check()
        if self.prepared.closed:
            raise self.loops.wrong("run.keep() after run.epochs() has begun: keep everything before the loops")
        for name, obj in objects.items():
            self.prepared.keep(name, obj)

    def epochs(self, count: int) -> Epochs:
        """Loop over it once: from the job's present epoch to `count` - 1."""
        return self.loops.make_epochs(count)

    def batches(
        self,
        dataset: Any,
        batch_size: int,
        *,
        shuffle: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> Batches:
        """The steps of one epoch. `batch_size` is the global one and a multiple of the number of shards."""

        def make() -> Loader:
            return Loader(
                dataset,
                batch_size,
                seed=self.seed,
                shards=self.shards,
                device=self._device,
                shuffle=shuffle,
                collate_fn=collate_fn,
                num_workers=num_workers,
                pin_memory=pin_memory,
            )

        return self.loops.make_batches(make, dataset, batch_size, shuffle)

    def log(self, **values: Any) -> None:
        """In a pass: one number per name, averaged over the shards that log it (the last call of a name counts).

        In the outer body: a value that is the same on every member, such as a learning rate.
        """
        self.loops.log(values)

    def stop(self) -> None:
        """End training: all members end after one and the same step, the present or the next one."""
        self.loops.check()
        self.steps.stop_wanted = True

    def save(self, path: Any, obj: Any) -> None:
        """``torch.save``, atomic, and written by one of the members that call it."""
        self.loops.check()
        self._saver.save(path, obj, self.step if self._ready or self.steps.applied is not None else -1)

    # ---------------------------------------------------------------- for the loops

    def joins(self) -> bool:
        """Whether this life begins in the middle of a job; then it is ready from here on."""
        if not self._handover.job_runs():
            return False
        self._announce(None)
        return True

    def get_ready(self, training: Training) -> None:
        """The first ``batches()``."""
        if not self._ready:
            self._announce(training)

    def _announce(self, training: Training | None) -> None:
        self._ready = True
        model: tuple[str, ...] = ()
        if training is not None:
            numbers = f"loops {training.epochs} epochs, {training.samples} samples, batch size {training.batch_size}"
            model = (numbers, *self.prepared.describe())
        announcement = Announcement(fingerprint(self._device), model, training)
        self._handover.tell_now(announcement=announcement, training=training, doing="")
        failpoints.reach("before-first-view", 0)

    def note(self, step: Step | None, shard: Shard = Shard(0), samples: Sequence[int] = ()) -> None:
        """Where the agent finds it after a kill."""
        if self._notes is not None:
            self._notes.write(None if step is None else Note(step, shard, tuple(samples)))

    def tell_epoch(self, epoch: int) -> None:
        self._handover.tell(epoch=epoch)

    def tell_left(self, step: Step) -> None:
        self._handover.tell_now(left=step)

    def finished(self) -> None:
        """The end of training is committed."""
        told = self._handover.read()[1]
        if told.done is not None:
            self._write_summary(JobStatus.FINISHED)  # "stopped" is what `orch stop` does

    def _make_engine(self) -> Engine:
        spec = self._setting.spec
        strategy = plugins.installed().make_sync(spec.sync, spec.sync_options)
        layout = Layout.of(zip(self.prepared.names, self.prepared.parameters, strict=True), spec.bucket_bytes)
        buffers = BufferLayout.of((buffer.name, buffer.tensor) for buffer in self.prepared.buffers)
        return Engine(strategy, spec.sync, layout, buffers, seed=spec.seed, shards=spec.shards)

    # ---------------------------------------------------------------- the end of the process

    def settle(self) -> None:
        """The script has ended without an exception: wait for the end of training if its loops were left."""
        self.loops.settle()

    def _at_exit(self) -> None:
        """Plain Python ends."""
        if not self.failed:
            try:
                self.settle()
            except OrchError as error:
                print(f"orch: {error}", file=sys.stderr, flush=True)
                self.failed = True
        self._write_summary(JobStatus.FAILED if self.failed else JobStatus.INTERRUPTED)

    def _write_summary(self, status: JobStatus) -> None:
        told = self._handover.read()[1]
        try:
            self._summary.write(status, told.done, told.first_step_at)
        except OSError as error:
            raise ConfigurationError(
                f"the summary cannot be written: {error}; give ORCH_SUMMARY another path"
            ) from error


def _device(place: int) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", place % torch.cuda.device_count())
    return torch.device("cpu")
