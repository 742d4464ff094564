"""What a fault run comes to: faults by kind, the books of all runs, and what did not end; of one world or of several."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.faults.books import Books


@dataclass(slots=True, kw_only=True)
class Totals:
    """The sum over the runs so far. `stuck`: of runs that did not end in time, what was told."""

    faults: Counter[str] = field(default_factory=Counter)
    books: Books = field(default_factory=Books)
    stuck: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def is_clean(self) -> bool:
        return self.books.is_clean and not self.stuck

    def add(self, other: Totals) -> None:
        self.faults += other.faults
        self.books.add(other.books)
        self.stuck += other.stuck
        self.runs += other.runs

    def table(self, elapsed_s: float) -> str:
        books = self.books
        rows = [
            *((f"fault: {name}", count) for name, count in sorted((+self.faults).items())),
            ("faults in all", self.faults.total()),
            ("runs", self.runs),
            ("clips", books.clips),
            ("recorded", books.recorded),
            ("failed, as they must", books.failed),
            ("clips lost", len(books.lost)),
            ("half-written", len(books.half_written)),
            ("records changed", len(books.changed)),
            ("clips begun again (attempts beyond one per record)", books.again),
            ("runs that did not end in time", len(self.stuck)),
            ("seconds", round(elapsed_s)),
        ]
        return "".join(f"{name:<52}{value:>6}\n" for name, value in rows)
