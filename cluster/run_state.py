"""What the dashboard's run page shows: a title, facts in words, and how far each job is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.whole_files import write_json

STATE_FILE = "run-state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """One job and its items by where they stand. `state`: as `JobState` names it."""

    name: str
    state: str
    done: int
    failed: int
    running: int
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The document of the page. `facts`: pairs of a name and what is shown for it."""

    title: str
    facts: Sequence[tuple[str, str]]
    jobs: Sequence[JobLine]


def write_state(folder: Path, state: RunState) -> None:
    """Writes the document in one go, so that the page never reads half of it. Raises OSError."""
    write_json(folder / STATE_FILE, {**asdict(state), "written_at": time.time()})
