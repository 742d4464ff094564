"""Makes random faults in real runs and checks the books of every run: python -m tests.faults --faults 200 --seed 1."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn

from tests.cluster.daemons.processes import DaemonError
from tests.faults.books import Books
from tests.faults.kinds import EVERYWHERE, ON_SCRATCH, ON_SLURM, POISONED, Fault
from tests.faults.one_run import Run, StuckError, start_run
from tests.faults.world import World, open_world

_PER_RUN = 6
_POISON_SHARE = 0.15


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="how many to make (default: 60)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="same seed, same order of faults (default: 1)")
    parser.add_argument("--cluster", choices=["slurm", "local"], default="slurm")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no run after this long (default: 120)")
    arguments = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _stop)
    try:
        with open_world(cluster=arguments.cluster) as world:
            return _make_faults(world, arguments)
    except DaemonError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    # An exit like any other: the daemons are stopped on the way out.
    sys.exit(128 + signum)


def _make_faults(world: World, arguments: argparse.Namespace) -> int:
    rng = random.Random(arguments.seed)
    faults: Counter[str] = Counter()
    total, stuck, number, began = Books(), [], 0, time.monotonic()
    while faults.total() < arguments.faults and time.monotonic() - began < 60 * arguments.minutes:
        number += 1
        planned = _plan(rng, world, min(_PER_RUN, arguments.faults - faults.total()))
        run = start_run(world, rng, number=number, cluster=arguments.cluster, with_poison=POISONED in planned)
        try:
            _make(run, planned, faults)
            books = run.finish()
        except StuckError as error:
            stuck.append(str(error))
            sys.stdout.write(f"{error}\n")
            books = Books()
        finally:
            run.end()
        total.add(books)
        _tell(number, run, books, faults.total(), time.monotonic() - began)
    return _close(total, faults, stuck, runs=number, elapsed_s=time.monotonic() - began)


def _kinds(world: World) -> dict[str, Fault]:
    kinds: Mapping[str, Fault] = EVERYWHERE
    return {**kinds, **(ON_SLURM if world.slurm else {}), **(ON_SCRATCH if world.scratch else {})}


def _plan(rng: random.Random, world: World, count: int) -> list[str]:
    planned = [rng.choice(sorted(_kinds(world))) for _ in range(count)]
    if rng.random() < _POISON_SHARE:
        planned[0] = POISONED
    return planned


def _make(run: Run, planned: list[str], faults: Counter[str]) -> None:
    kinds = _kinds(run.world)
    for name in planned:
        if name == POISONED:
            faults[name] += 1
            continue
        run.wait(run.rng.uniform(0.0, 4.0))
        if run.is_complete:
            return
        if not run.running_drivers():
            run.submit()
        if kinds[name](run):
            faults[name] += 1


def _tell(number: int, run: Run, books: Books, num_faults: int, elapsed_s: float) -> None:
    wrong = [*books.lost, *books.half_written, *books.changed]
    sys.stdout.write(
        f"run {number}: {books.recorded} of {books.clips} clips recorded, {books.failed} failed, {books.again} attempts "
        f"again, {run.submits} submits; {num_faults} faults in {elapsed_s:.0f} s\n"
    )
    for line in wrong:
        sys.stdout.write(f"  WRONG: {line}\n")
    if wrong:
        sys.stdout.write(run.said() + "\n")
    sys.stdout.flush()


def _close(total: Books, faults: Counter[str], stuck: list[str], *, runs: int, elapsed_s: float) -> int:
    rows = [
        *((f"fault: {name}", count) for name, count in sorted(faults.items())),
        ("faults in all", faults.total()),
        ("runs", runs),
        ("clips", total.clips),
        ("recorded", total.recorded),
        ("failed, as they must", total.failed),
        ("clips lost", len(total.lost)),
        ("half-written", len(total.half_written)),
        ("records changed", len(total.changed)),
        ("clips begun again (attempts beyond one per record)", total.again),
        ("runs that did not end in time", len(stuck)),
        ("seconds", round(elapsed_s)),
    ]
    sys.stdout.write("".join(f"{name:<52}{value:>6}\n" for name, value in rows))
    return 0 if total.is_clean and not stuck else 1


if __name__ == "__main__":
    sys.exit(main())
