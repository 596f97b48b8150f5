import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from orch_core.protocol import views
from orch_core.testing.mutants import MUTANTS, Edit, Mutant
from orch_core.testing.simulator import Simulation, Violation, simulate
from orch_core.testing.simulator.__main__ import main
from orch_core.testing.simulator.scenarios import SCENARIOS

SEEDS = 500
PARTS = 5
SCENARIO_SEEDS = 10
MUTANT_SCENARIO_SEEDS = 2
MUTANT_RANDOM_SEEDS = 400


@pytest.mark.parametrize("part", range(PARTS))
def test_random_jobs_keep_every_promise(part):
    for seed in range(part, SEEDS, PARTS):
        simulate(seed)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_schedule_that_broke_a_draft_does_no_harm(name):
    met = 0
    for seed in range(SCENARIO_SEEDS):
        simulation = SCENARIOS[name](seed)
        simulation.run()
        met += "reached" in simulation.milestones
    assert met > SCENARIO_SEEDS // 2, "the schedule that this is about does not come about any more"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name):
    with MUTANTS[name].planted():
        assert noticed_in_a_scenario() or noticed_in_a_random_job()


def noticed_in_a_scenario():
    return any(breaks(SCENARIOS[scenario](seed)) for scenario in SCENARIOS for seed in range(MUTANT_SCENARIO_SEEDS))


def noticed_in_a_random_job():
    return any(breaks(Simulation(seed)) for seed in range(MUTANT_RANDOM_SEEDS))


def breaks(simulation):
    try:
        simulation.run()
    except (Violation, LookupError):  # a message to somebody who is no peer is a KeyError of the model
        return True
    return False


def test_a_mutant_is_gone_afterwards():
    before = {name: inspect.getsource(getattr(views, name)) for name in ("form", "_removals")}
    originals = (views.form, views._removals)
    for mutant in MUTANTS.values():
        with mutant.planted():
            pass
    assert (views.form, views._removals) == originals
    assert before == {name: inspect.getsource(getattr(views, name)) for name in before}


def test_a_mutant_whose_rule_is_written_differently_now_is_an_error():
    stale = Mutant("stale", "a rule", (Edit(views, "form", "what is not there", ""),))
    with pytest.raises(LookupError, match="form"), stale.planted():
        pass


def test_a_seed_is_a_schedule():
    def trace(seed):
        lines = []
        Simulation(seed, trace=lines.append).run()
        return lines

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_a_seed_is_the_same_schedule_in_every_process():
    command = [sys.executable, "-m", "orch_core.testing.simulator", "--seeds", "20", "--processes", "1", "--json"]
    found = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        found.append({k: v for k, v in json.loads(done.stdout).items() if k != "seeds_per_s"})
    assert found[0] == found[1]
    assert found[0]["violations"] == []


def test_the_command_prints_how_fast_it_was(capsys):
    assert main(["--seeds", "5", "--processes", "1"]) == 0
    assert "seeds/s" in capsys.readouterr().out


def test_the_command_fails_with_the_seed_when_a_promise_is_broken(capsys):
    assert main(["--seeds", "15", "--processes", "1", "--mutant", "first-done-ends"]) == 1
    assert re.search(r"^seed \d, at ", capsys.readouterr().out, re.MULTILINE)


def test_the_command_traces_one_seed(capsys):
    assert main(["--seed", "7", "--trace"]) == 0
    assert "the job is finished" in capsys.readouterr().out
