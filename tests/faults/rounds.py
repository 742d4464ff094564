"""The rounds of one world: plans faults by the seed, makes them in one run after another, and closes every run's books."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.daemons.processes import DaemonError
from tests.faults.books import Books
from tests.faults.kinds import ALL_KINDS, UNDECIDED, kinds_of
from tests.faults.one_run import FROM_THE_START, NO_CONDITIONS, POISONS, TWO_MANIFESTS, Run, StuckError
from tests.faults.start import start_run
from tests.faults.totals import Totals
from tests.faults.world import World

_PER_RUN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked of one world. `logs`: where logs of runs go in which something was wrong; None for nowhere."""

    cluster: str
    seed: int
    count: int
    minutes: float = 120.0
    kinds: tuple[str, ...] = ALL_KINDS
    logs: Path | None = None


class Bag:
    """Kinds in random order, each once before any comes again; what could not be made is put back.

    It comes next, and after all others if that was in vain too: what a run has nothing for must not hold up the last ones.
    """

    def __init__(self, names: Sequence[str], rng: random.Random) -> None:
        assert names
        self._names = sorted(names)
        self._rng = rng
        self._left: list[str] = []
        self._missed = Counter[str]()

    def plan(self, count: int) -> list[str]:
        """Takes up to `count` kinds that one run can have together: of each that comes with a run one, of poisons one."""
        planned: list[str] = []
        while len(planned) < count:
            fits = [name for name in self._left if _fits(name, planned)]
            if not fits:
                # A full set has at least one that fits, unless a run has them all.
                fresh = [name for name in self._names if _fits(name, planned)]
                if not fresh:
                    break
                self._left += self._rng.sample(self._names, len(self._names))
                continue
            self._left.remove(fits[0])
            planned.append(fits[0])
        return planned

    def put_back(self, names: Sequence[str]) -> None:
        """Lets these come next, those that were put back before after all others."""
        self._missed.update(names)
        later = [name for name in names if self._missed[name] % 2 == 0]
        unmade = [name for name in self._names if name not in names and name not in self._left]
        rest = self._rng.sample(unmade, len(unmade)) if later else []
        self._left = [*(name for name in names if name not in later), *self._left, *rest, *later]


def _fits(name: str, planned: Collection[str]) -> bool:
    if name in POISONS and any(other in POISONS for other in planned):
        return False  # the clips between them are what is to come through
    if name in FROM_THE_START and name in planned:
        return False
    return not any({name, other} == set(pair) for other in planned for pair in UNDECIDED.items())


def make_faults(world: World, order: Order, totals: Totals, *, keep: Callable[[Totals], None]) -> None:
    """Adds to `totals` what became of `order.count` faults, in as many runs as they need; `keep` is called after each run."""
    rng, began = random.Random(order.seed), time.monotonic()
    possible = {*kinds_of(world), *FROM_THE_START}
    bag = Bag([name for name in order.kinds if name in possible], rng)
    while totals.faults.total() < order.count and time.monotonic() - began < 60 * order.minutes:
        totals.runs += 1
        planned = bag.plan(min(_PER_RUN, order.count - totals.faults.total()))
        run = start_run(
            world, rng, number=totals.runs, cluster=order.cluster,
            planned=[name for name in planned if name in FROM_THE_START],
        )  # fmt: skip
        books, stuck, missed = Books(), "", list[str]()
        try:
            missed = _make(run, planned, totals)
            bag.put_back(missed)
            books = run.finish()
        except StuckError as error:
            stuck = str(error)
            totals.stuck.append(stuck)
        finally:
            if run.broken and not books.broken:
                books.broken += run.broken
            totals.books.add(books)
            _tell(run, order, books, stuck, missed, totals.faults.total(), time.monotonic() - began)
            run.end()
        keep(totals)


def _make(run: Run, planned: Sequence[str], totals: Totals) -> list[str]:
    """Makes the faults, in their order; returns those that there was no time for, or nothing to hit."""
    kinds, faults, left = kinds_of(run.world), totals.faults, []
    # These came with the manifest.
    faults.update(name for name in planned if name in POISONS or name == TWO_MANIFESTS)
    for name in (name for name in planned if name in kinds):
        run.wait(run.rng.uniform(0.0, 4.0))
        if run.is_complete:
            left.append(name)
            continue
        if not run.running_drivers():
            run.submit()
        run.note(f"next: {name}")
        try:
            hit = kinds[name](run)
        except DaemonError as error:
            run.note(f"not made: {error}")
            hit = False
        faults[name] += hit
        left += [] if hit else [name]
        run.note(f"{name}: {'made' if hit else 'nothing to hit'}")
    if NO_CONDITIONS in planned:
        faults[NO_CONDITIONS] += run.world.proxy.dropped > 0
    return left


def _tell(
    run: Run, order: Order, books: Books, stuck: str, missed: Sequence[str], num_faults: int, elapsed_s: float
) -> None:
    name = f"seed {order.seed}, run {run.number}"
    summary = (
        f"{name}: {books.recorded} of {books.clips} clips recorded, {books.failed} failed, {books.again} attempts "
        f"again, {run.submits} submits; {num_faults} faults in {elapsed_s:.0f} s"
    )
    lines = [
        summary,
        *([f"  to be made in a later run, nothing to hit in this one: {', '.join(missed)}"] if missed else []),
        *(f"  WRONG: {line}" for line in books.wrong),
        *([stuck] if stuck else []),
    ]
    if books.wrong or stuck:
        lines += [] if stuck else [run.said()]
        if order.logs:
            folder = order.logs / f"seed{order.seed}-run{run.number}"
            run.keep_logs(folder)
            lines.append(f"{name}: its logs are in {folder}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
