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
class LatestItem:
    """Something that was done. `picture`: a small JPEG file in base64; empty if there is none."""

    name: str
    picture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The document of the page. `facts`: pairs of a name and what is shown for it.

    `latest`: what was done last, the newest first. `failures`: pairs of a name and why. `log`: its last lines.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    jobs: Sequence[JobLine]
    latest: Sequence[LatestItem] = ()
    failures: Sequence[tuple[str, str]] = ()
    log: Sequence[str] = ()


def write_state(folder: Path, state: RunState) -> None:
    """Writes the document in one go, so that the page never reads half of it. Raises OSError."""
    write_json(folder / STATE_FILE, {**asdict(state), "written_at": time.time()})
