"""The rounds of one world: plans faults by the seed, makes them in one run after another, and closes every run's books."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Mapping

from tests.cluster.daemons.processes import DaemonError
from tests.faults.books import Books
from tests.faults.kinds import EVERYWHERE, ON_SCRATCH, ON_SLURM, Fault
from tests.faults.one_run import POISONS, Run, StuckError, start_run
from tests.faults.totals import Totals
from tests.faults.world import World

_PER_RUN = 16
_POISONED_CLIPS = 1
"""At most so many in a run: the clips between them are what is to come through."""


def make_faults(world: World, *, cluster: str, seed: int, count: int, minutes: float) -> Totals:
    """Makes `count` faults, in as many runs as they need; begins no run after so many minutes."""
    rng = random.Random(seed)
    totals, began = Totals(), time.monotonic()
    while totals.faults.total() < count and time.monotonic() - began < 60 * minutes:
        totals.runs += 1
        planned = _plan(rng, world, min(_PER_RUN, count - totals.faults.total()))
        run = start_run(world, rng, number=totals.runs, cluster=cluster, poisons=_poisons(planned))
        books = Books()
        try:
            _make(run, planned, totals.faults)
            books = run.finish()
        except StuckError as error:
            totals.stuck.append(str(error))
            sys.stdout.write(f"{error}\n")
        finally:
            run.end()
        totals.books.add(books)
        _tell(f"seed {seed}, run {totals.runs}", run, books, totals.faults.total(), time.monotonic() - began)
    return totals


def _kinds(world: World) -> dict[str, Fault]:
    kinds: Mapping[str, Fault] = EVERYWHERE
    return {**kinds, **(ON_SLURM if world.slurm else {}), **(ON_SCRATCH if world.scratch else {})}


def _plan(rng: random.Random, world: World, count: int) -> list[str]:
    names = sorted([*_kinds(world), *POISONS])
    planned: list[str] = []
    while len(planned) < count:
        name = rng.choice(names)
        if name not in POISONS or len(_poisons(planned)) < _POISONED_CLIPS:
            planned.append(name)
    return planned


def _poisons(planned: list[str]) -> list[str]:
    return [name for name in planned if name in POISONS]


def _make(run: Run, planned: list[str], faults: Counter[str]) -> None:
    kinds = _kinds(run.world)
    # These came with the manifest.
    faults.update(_poisons(planned))
    for name in planned:
        if name in POISONS:
            continue
        run.wait(run.rng.uniform(0.0, 4.0))
        if run.is_complete:
            return
        if not run.running_drivers():
            run.submit()
        try:
            faults[name] += kinds[name](run)
        except DaemonError as error:
            sys.stdout.write(f"not made: {name}: {error}\n")


def _tell(name: str, run: Run, books: Books, num_faults: int, elapsed_s: float) -> None:
    wrong = [*books.lost, *books.half_written, *books.changed]
    sys.stdout.write(
        f"{name}: {books.recorded} of {books.clips} clips recorded, {books.failed} failed, {books.again} attempts "
        f"again, {run.submits} submits; {num_faults} faults in {elapsed_s:.0f} s\n"
    )
    for line in wrong:
        sys.stdout.write(f"  WRONG: {line}\n")
    if wrong:
        sys.stdout.write(run.said() + "\n")
    sys.stdout.flush()
