import pytest
import torch

from orch_core.contracts.ids import JobName
from orch_core.contracts.job import JobSpec
from orch_core.worker import run as runs
from orch_core.worker.alone import handover_alone
from orch_core.worker.setting import Setting


@pytest.fixture
def alone(tmp_path):
    """Make a job of one, as ``init()`` does in plain Python, but without hooks into this process's end."""
    threads = torch.get_num_threads()

    def make(*, seed=7, shards=4, summary=None, **spec):
        setting = Setting(JobSpec(JobName("test"), seed=seed, shards=shards, **spec), summary=summary)
        run = runs.Run(setting, handover_alone(setting))
        run.begin()
        return run

    yield make
    torch.set_num_threads(threads)
