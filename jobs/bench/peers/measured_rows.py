"""Measures the settings of one loaded model, one after another: a row of figures for each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from jobs.bench.peers.chosen import OURS
from jobs.bench.peers.clips import Clips, Run, timed
from jobs.bench.peers.methods import Setting
from jobs.bench.peers.work import Work, limited
from jobs.bench.run import TooLongError
from jobs.quality.alike import Frames
from jobs.quality.compare import alike_facts
from pab.broadcast.step_rules import StepRules
from pab.family import ClipRequest

Json = dict[str, Any]
MEASURES = ("psnr_db", "ssim", "vmaf")
MEASURED, FAILED, NOT_RUN = "measured", "failed", "not run"
NO_TIME = "no time left (--seconds)"
FAULTS = (RuntimeError, ValueError, AssertionError, TypeError, OSError, TooLongError)


class Rows:
    """Measures a model's settings one after another; clips with everything computed are rendered once for each way."""

    def __init__(
        self,
        *,
        work: Work,
        clips: Clips,
        requests: list[ClipRequest],
        batch: list[ClipRequest],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.work, self.clips, self.requests, self.batch, self.pool = work, clips, requests, batch, pool
        self.whole: dict[tuple[bool, bool, bool], tuple[list[Frames], float]] = {}
        self.whole_seconds: dict[tuple[bool, bool], float] = {}

    def row(self, setting: Setting) -> Json:
        """Returns a setting's figures, or why there are none. `status`: "measured", "failed" or "not run"."""
        line: Json = {"side": setting.side, "method": setting.method, "setting": setting.words, "why": None}
        if self.work.is_over:
            return line | {"status": NOT_RUN, "why": NO_TIME}
        rules, num_steps = setting.rules, self.requests[0].num_steps
        if isinstance(rules, StepRules) and rules.num_steps != num_steps:
            return line | {"status": NOT_RUN, "why": f"a plan of {rules.num_steps} steps; clips have {num_steps}"}
        try:
            with limited(self.work), torch.inference_mode():
                return line | self._measured(setting) | {"status": MEASURED}
        except FAULTS as error:  # what a peer says of a model it does not fit
            return line | {"status": FAILED, "why": why_of(error)}

    def _measured(self, setting: Setting) -> Json:
        clips, run = self.clips, self.clips.under(setting)
        before = self.work.known.get((setting.side, setting.method, setting.words))
        if before is not None:
            return {**before, **self._times(setting)}
        frames, operations = self._rendered(run, one_by_one=setting.watches)
        whole, all_operations = self._whole(setting)
        found = list(self.pool.map(alike_facts, whole, frames))
        measures = {name: spread([clip[name] for clip in found]) for name in MEASURES}
        line = {"operations": operations / all_operations, **self._times(setting), **measures}
        if setting.watches:
            # In a batch its clips decide together.
            batched = clips.counted(run, self.batch)[1] / len(self.batch)
            line["batch_operations"] = batched / (all_operations / len(self.requests))
        return line

    def _times(self, setting: Setting) -> Json:
        clips, key = self.clips, (setting.side == OURS, setting.one_pass)
        if key not in self.whole_seconds:
            self.whole_seconds[key] = self._timed(clips.without_reuse(setting))
        return {"clip_s": self._timed(clips.under(setting)), "whole_clip_s": self.whole_seconds[key]}

    def _timed(self, run: Run) -> float:
        return timed(run, self.batch, self.clips.device, enough_s=self.work.enough_s) / len(self.batch)

    def _rendered(self, run: Any, *, one_by_one: bool) -> tuple[list[Frames], float]:
        parts = [[request] for request in self.requests] if one_by_one else [self.requests]
        done: list[tuple[Tensor, float]] = [self.clips.counted(run, part) for part in parts]
        latents = torch.cat([each for each, _ in done])
        return self.clips.decoded(latents, self.requests), sum(operations for _, operations in done)

    def _whole(self, setting: Setting) -> tuple[list[Frames], float]:
        key = setting.side == OURS, setting.one_pass, setting.watches
        if key not in self.whole:
            self.whole[key] = self._rendered(self.clips.without_reuse(setting), one_by_one=setting.watches)
        return self.whole[key]


def why_of(error: Exception) -> str:
    """Returns the first line of what went wrong, with its kind."""
    if isinstance(error, TooLongError):
        return f"{error}, all that it may take (--row-seconds, --seconds)"
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]


def spread(values: Sequence[float | None]) -> Json:
    """Returns median and worst; a clip that came out the same has no PSNR or VMAF, and is better than all that have."""
    known = sorted(value for value in values if value is not None)
    ordered: list[float | None] = [*known, *(None for value in values if value is None)]
    return {"median": ordered[(len(ordered) - 1) // 2], "worst": ordered[0], "clips": list(values)}
