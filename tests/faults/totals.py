"""What a fault run comes to: faults by kind, the books of all runs, and what did not end; of one world or of several."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.books import Books


@dataclass(slots=True, kw_only=True)
class Totals:
    """The sum over the runs so far. `stuck`: of runs that did not end in time, what was told.

    `worlds`: those that came to their end. `dead`: of those that did not start or died, why; what they had found before
    counts.
    """

    faults: Counter[str] = field(default_factory=Counter)
    books: Books = field(default_factory=Books)
    stuck: list[str] = field(default_factory=list)
    runs: int = 0
    worlds: int = 0
    dead: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return self.books.is_clean and not self.stuck and not self.dead

    def add(self, other: Totals) -> None:
        self.faults += other.faults
        self.books.add(other.books)
        self.stuck += other.stuck
        self.runs += other.runs
        self.worlds += other.worlds
        self.dead += other.dead

    def save(self, path: Path) -> None:
        """Writes them whole: a world may die while it does."""
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(self))
        part.replace(path)

    def table(self, elapsed_s: float) -> str:
        books = self.books
        rows = [
            *((f"fault: {name}", count) for name, count in sorted((+self.faults).items())),
            ("faults in all", self.faults.total()),
            ("kinds of faults", len(+self.faults)),
            ("runs", self.runs),
            ("clips", books.clips),
            ("recorded", books.recorded),
            ("failed, as they must", books.failed),
            ("clips lost", len(books.lost)),
            ("half-written", len(books.half_written)),
            ("records changed", len(books.changed)),
            ("plain names that are not the record's video", len(books.misnamed)),
            ("objects of a refused manifest", len(books.strangers)),
            ("other promises broken", len(books.broken)),
            ("clips begun again (attempts beyond one per record)", books.again),
            ("videos that no record names", books.orphans),
            ("runs that did not end in time", len(self.stuck)),
            ("worlds that did not start, or died", len(self.dead)),
            ("seconds", round(elapsed_s)),
        ]
        told = "".join(f"{name:<52}{value:>6}\n" for name, value in rows)
        return told + "".join(f"WRONG: {line}\n" for line in [*books.wrong, *self.stuck, *self.dead])


def load_totals(path: Path) -> Totals:
    """Returns what `Totals.save` wrote, or empty totals if nothing was written."""
    if not path.exists():
        return Totals()
    found = pickle.loads(path.read_bytes())
    assert isinstance(found, Totals), found
    return found
