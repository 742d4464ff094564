"""What of a model is measured under peers and our plans: clips of prompts that training left out, plans, limits of time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.bench.peers.chosen import Chosen
from jobs.bench.run import time_limit
from jobs.bench.subjects import TINY
from pab.broadcast.rules import Rules, rules_from_dict
from pab.families import FAMILIES
from pab.families.demo.training.check import held_out_prompts
from pab.family import ClipRequest, Family

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What of a model is measured, and how. What is None is the family's own.

    `clips`: of prompts that training left out. `size`: frames, height, width. `chosen`: of which methods; `only`: a part of
    the names of settings. `last_of_each`: of a method only its last setting. `max_batch`: clips of the largest batch that is
    timed, for `enough_s` seconds or more. `threads`: of comparing clips. `known`: rows that are timed again and keep their
    quality, by whose they are, method and setting. `row_seconds`: what one setting may take. `ends`: of the
    monotonic clock; no setting begins after it.
    """

    family: str
    weights: str | None = None
    clips: int = 16
    steps: int | None = None
    size: tuple[int, int, int] | None = None
    precision: str | None = None
    plans: Sequence[Path] = ()
    chosen: Chosen | None = None
    only: str = ""
    last_of_each: bool = False
    max_batch: int = 64
    enough_s: float = 1.0
    threads: int = 4
    known: Mapping[tuple[str, str, str], Json]
    row_seconds: float | None = None
    ends: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether no setting begins any more."""
        return self.ends is not None and time.monotonic() >= self.ends


def work_of(chosen: Chosen, size: str, *, row_seconds: float, ends: float) -> Work:
    """Returns what a row of `bench` measures. Of "tiny" size: a small clip of few steps, and of each method one setting."""
    work = Work(family=chosen.family, chosen=chosen, known={}, row_seconds=row_seconds, ends=ends)
    if size != TINY:
        return work
    return replace(work, clips=1, steps=8, size=(16, 16, 16), max_batch=1, enough_s=0.0, last_of_each=True)


def limited(work: Work) -> AbstractContextManager[None]:
    """Returns a block that raises TooLongError when it takes longer than one setting may; for the main thread alone."""
    if work.row_seconds is None:
        return nullcontext()
    left = work.row_seconds if work.ends is None else min(work.row_seconds, work.ends - time.monotonic())
    return time_limit(max(left, 1e-3))


def requests_of(work: Work, count: int, seed: int) -> list[ClipRequest]:
    """Returns clips of prompts that training left out."""
    usual = FAMILIES[work.family].defaults
    num_frames, height, width = work.size or (usual.num_frames, usual.height, usual.width)
    return [
        ClipRequest(
            prompt=prompt, negative_prompt=None, seed=number, num_frames=num_frames, height=height, width=width,
            fps=usual.fps, num_steps=work.steps or usual.num_steps, guidance_scale=usual.guidance_scale,
        )
        for number, (prompt, _) in enumerate(held_out_prompts(count, seed=seed))
    ]  # fmt: skip


def plans_of(family: Family, files: Sequence[Path]) -> list[tuple[str, Rules]]:
    """Returns the plans of files that are for a family, or for any."""
    plans = [(path.stem, rules_from_dict(json.loads(path.read_text(encoding="utf-8")))) for path in files]
    return [(name, rules) for name, rules in plans if getattr(rules, "family", None) in (None, family.name)]
