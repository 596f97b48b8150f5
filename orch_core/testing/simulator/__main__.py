"""``python -m orch_core.testing.simulator --seeds 10000``: many random jobs on all cores, or one with its trace."""

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from orch_core.testing.mutants import MUTANTS
from orch_core.testing.simulator.simulation import Outcome, Simulation, simulate
from orch_core.testing.simulator.world import Violation

BATCH = 100
SHOWN = 10


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    mutant = MUTANTS[options.mutant].planted() if options.mutant else contextlib.nullcontext()
    if options.seed is not None:
        with mutant:
            return _one(options.seed, trace=options.trace, as_json=options.json)
    return _many(options)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orch_core.testing.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many random jobs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="break this rule, to see that it is noticed")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happens")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    return parser.parse_args(argv)


def _one(seed: int, *, trace: bool, as_json: bool) -> int:
    simulation = Simulation(seed, trace=print if trace else None)
    if trace:
        print(simulation.swarm.described())
    outcome = _outcome(simulation)
    _show([outcome], 0.0, as_json=as_json)
    return 1 if outcome.violation else 0


def _outcome(simulation: Simulation) -> Outcome:
    try:
        return simulation.run()
    except Violation as violation:
        return simulation.outcome(str(violation))


def _many(options: argparse.Namespace) -> int:
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for found in _run(options):
        outcomes += found
        if not options.json and sys.stderr.isatty():
            rate = len(outcomes) / (time.monotonic() - began)
            print(f"\r{len(outcomes)} of {options.seeds} seeds, {rate:.0f} seeds/s", end="", file=sys.stderr)
    if not options.json and sys.stderr.isatty():
        print(file=sys.stderr)
    _show(outcomes, time.monotonic() - began, as_json=options.json)
    return 1 if any(o.violation for o in outcomes) else 0


def _run(options: argparse.Namespace) -> Iterator[list[Outcome]]:
    last = options.first + options.seeds
    batches = [(low, min(low + BATCH, last), options.mutant) for low in range(options.first, last, BATCH)]
    if options.processes == 1:
        yield from map(_batch, batches)
        return
    with ProcessPoolExecutor(options.processes) as pool:
        yield from pool.map(_batch, batches)


def _batch(batch: tuple[int, int, str | None]) -> list[Outcome]:
    low, high, mutant = batch
    with MUTANTS[mutant].planted() if mutant else contextlib.nullcontext():
        return [_guarded(seed) for seed in range(low, high)]


def _guarded(seed: int) -> Outcome:
    try:
        return simulate(seed)
    except Violation as violation:
        return Outcome(seed, 0, 0.0, 0, 0, 0, str(violation))
    except Exception:  # noqa: BLE001 - a crash of the model is a finding, and names its seed
        return Outcome(seed, 0, 0.0, 0, 0, 0, f"seed {seed}: {traceback.format_exc(limit=-3)}")


def _show(outcomes: list[Outcome], took_s: float, *, as_json: bool) -> None:
    bad = [o for o in outcomes if o.violation]
    found = {
        "version": 1,
        "seeds": len(outcomes),
        "seeds_per_s": round(len(outcomes) / took_s, 1) if took_s else None,
        "events": sum(o.events for o in outcomes),
        "virtual_s": round(sum(o.virtual_s for o in outcomes), 1),
        "views": sum(o.views for o in outcomes),
        "steps": sum(o.steps for o in outcomes),
        "violations": [o.violation for o in bad],
    }
    if as_json:
        print(json.dumps(found))
        return
    for outcome in bad[:SHOWN]:
        print(outcome.violation)
    rate = f", {found['seeds_per_s']} seeds/s" if took_s else ""
    print(
        f"{len(outcomes)} seeds{rate}: {found['events']} events, {found['virtual_s']} s of virtual time, "
        f"{found['views']} views, {found['steps']} steps; {len(bad)} violations"
    )


if __name__ == "__main__":
    sys.exit(main())
