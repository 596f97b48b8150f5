from orch_core.agent.host import _remembering
from orch_core.contracts.document import Training
from orch_core.contracts.status import Progress


def test_what_only_the_living_tell_is_kept_when_the_last_of_them_has_gone():
    told = Progress(step=5, means={"loss": 0.5}, training=Training(1, 60, 12), first_step_at=3.0)
    last = _remembering(told, Progress(step=6))
    assert (last.step, last.means, last.training, last.first_step_at) == (6, told.means, told.training, 3.0)
    assert _remembering(None, told) == told
