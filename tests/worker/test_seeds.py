"""Golden vectors: whoever changes one of these changes every weight that anybody has trained."""

import random

import numpy as np
import torch

from orch_core.contracts.ids import Shard, Step
from orch_core.worker.seeds import Generators, pass_seed, sample_seed, seed_all, seed_of, step_seed


def test_a_pass_a_step_and_a_sample_have_the_seeds_they_always_had():
    assert pass_seed(7, Step(0), Shard(0)) == 2530073161937582197
    assert step_seed(7, Step(0)) == 9319409356578939333
    assert sample_seed(7, 0, 0) == 2823650914268563782
    assert seed_of("pass", -1, 12, 3) == seed_of("pass", -1, 12, 3) != seed_of("pass", -1, 1, 23)


def test_the_generators_draw_what_they_always_drew():
    own = torch.Generator()
    seed_all(pass_seed(7, Step(3), Shard(4)), own)
    drawn = (torch.randint(1 << 30, (2,)).tolist(), np.random.randint(1 << 30, size=2).tolist(), random.getrandbits(30))
    assert drawn == ([975519753, 196820730], [512990219, 378487646], 821167409)
    assert torch.randint(1 << 30, (2,), generator=own).tolist() == drawn[0]


def test_what_was_taken_is_put_back():
    seed_all(1)
    before = Generators.now()
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    before.put_back()
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == first
