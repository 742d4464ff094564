"""Measures on the prompts that are searched on: changes of sites, and what stands in for whole passes, blocks and sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jobs.calibration.work import Work
from pab.broadcast.plan import BroadcastPlan
from pab.calibration.changes import Changes, Matrix, mean_changes
from pab.calibration.effects import spread_effects
from pab.calibration.groups import SiteGroup, site_groups
from pab.calibration.reference import ReferenceClips, StandInErrors, joined_errors
from pab.calibration.search import ErrorModel, Steps, error_model
from pab.family import ClipRequest, Family
from pab.model import VideoModel
from pab.parallel.mesh import NodeGroup

GAIN_STEPS = 6
"""At how many steps it is measured how far an error moves the finished latents."""
RESIDUAL_BYTES = 6e9
"""Of kept residuals while clips are measured, at most; of large models fewer steps are compared then."""
LIGHT_PASS = 1 / 12
"""Of a pass with blocks, what one without them takes; only progress goes by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on the searched prompts, by group and step. `effects` [G + 1, S]: root mean square movement.

    Behind the groups of sites stands the whole pass. `model` has the same groups.
    """

    groups: tuple[SiteGroup, ...]
    changes: Changes
    effects: Matrix
    model: ErrorModel
    errors: StandInErrors
    has_sites: bool
    """Whether reuse of sites was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How clips are measured. `ranges`, `probe_every`: those of the request.

    `sites`, `residuals`: whether reuse by them is wanted. `batch`: how many clips are measured side by side. `rendered`:
    takes clips without reuse and their finished latents [B, C, T, H, W].
    """

    model: VideoModel
    family: Family
    plan: BroadcastPlan
    group: NodeGroup
    fixed: Steps
    longest: int
    ranges: int
    probe_every: int
    sites: bool
    residuals: bool
    batch: int
    work: Work
    rendered: Callable[[Sequence[ClipRequest], Tensor], None]

    @property
    def groups(self) -> tuple[SiteGroup, ...]:
        """The groups of sites."""
        return site_groups(self.family.sites, ranges=self.ranges)

    def steps_of_work(self, clips: int) -> float:
        """Returns how many steps of a clip measuring takes."""
        steps = self.plan.num_steps
        light = steps * (self.longest + 1) * LIGHT_PASS if self.residuals else 0
        gains = sum(steps - step - 1 for step in self._gain_steps())
        sites = 2 * len(self.groups) * len(self._probed()) if self.sites else 0
        return clips * (steps + light + gains + sites)

    def run(self, requests: Sequence[ClipRequest]) -> Measured:
        """Renders the clips once, and probes them."""
        chunks = [requests[i : i + self.batch] for i in range(0, len(requests), self.batch)]
        changes: list[Changes] = []
        rendered: list[tuple[ReferenceClips, Matrix, Matrix]] = []
        gains: dict[int, list[Matrix]] = {}
        for chunk in chunks:
            for number, request in enumerate(chunk, start=sum(len(each.requests) for each, _, _ in rendered) + 1):
                self.work.tell(f"measuring clip {number} of {len(requests)}: {request.prompt}")
            clips = ReferenceClips(
                model=self.model,
                requests=tuple(chunk),
                plan=self.plan,
                group=self.group,
                window=self._window(chunk[0], len(chunk)),
                passed=partial(self.work.add, len(chunk)),
            )
            changed, kept, whole = clips.render(self.groups)
            if self.residuals:
                self.work.add(len(chunk) * self.plan.num_steps * (clips.window + 1) * LIGHT_PASS)
            self.rendered(chunk, clips.latents)
            changes += changed
            rendered.append((clips, kept, whole))
            for step in self._gain_steps():
                gains.setdefault(step, []).append(clips.gain_at(step))
        guided = np.concatenate(
            [np.stack([clips.sampled(x) for x in clips.guided], axis=1) for clips, _, _ in rendered]
        )
        errors = joined_errors(
            np.concatenate([kept for _, kept, _ in rendered]),
            np.concatenate([whole for _, _, whole in rendered]),
            guided,
            {step: np.concatenate(found) for step, found in gains.items()},
        )
        mean = mean_changes(changes)
        effects, has_sites = self._site_effects([clips for clips, _, _ in rendered], mean, guided, errors.gain)
        return Measured(
            groups=self.groups,
            changes=mean,
            effects=np.mean([np.sqrt(np.square(clip).mean(axis=2)) for clip in effects], axis=0),
            model=error_model(effects, mean.relative),
            errors=errors,
            has_sites=has_sites,
        )

    def _window(self, request: ClipRequest, clips: int) -> int:
        if not self.residuals:
            return 0
        memory = self.family.cost.memory
        if memory is None:
            return self.longest
        tokens = self.family.num_tokens(request.num_frames, request.height, request.width)
        return int(np.clip(RESIDUAL_BYTES // (clips * 2 * tokens * memory.width * 4), 2, self.longest))

    def _gain_steps(self) -> list[int]:
        free = np.flatnonzero(~self.fixed)
        return sorted({int(free[i]) for i in np.linspace(0, len(free) - 1, GAIN_STEPS).round().astype(int)})

    def _probed(self) -> list[int]:
        return [step for step in range(1, self.plan.num_steps, self.probe_every) if not self.fixed[step]]

    def _coarse_to_fine(self) -> list[int]:
        # Some steps of the whole range first: what a bound on time leaves out then lies between two of them.
        probed, found = self._probed(), list[int]()
        stride = 1 << max(0, len(probed) - 1).bit_length()
        while stride:
            found += [step for step in probed[::stride] if step not in found]
            stride //= 2
        return found

    def _site_effects(
        self, rendered: Sequence[ReferenceClips], mean: Changes, guided: Matrix, gain: Matrix
    ) -> tuple[list[Matrix], bool]:
        # Per clip [G + 1, S, n]; where nothing was probed, sites move nothing and are not searched.
        misses: dict[int, dict[int, Matrix]] = {number: {} for number in range(len(self.groups))}
        clips, left = sum(len(each.requests) for each in rendered), 0
        for step in self._coarse_to_fine() if self.sites else ():
            for number, group in enumerate(self.groups):
                # Proving the plan takes longer than one probe; it is not to be left out.
                if left or not self.work.allows(2 * clips, reserved=self.work.reserved):
                    left += 1
                    continue
                misses[number][step] = np.concatenate([each.site_error(group, step) for each in rendered])
        if left:
            self.work.leave_out(f"{left} of {len(self.groups) * len(self._probed())} probes of sites", 2 * clips * left)
        known = self.sites and all(len(probed) > 0 for probed in misses.values())
        moved = gain[:, None] * np.diff(guided, axis=1, prepend=guided[:, :1])
        found = []
        for clip in range(clips):
            rows = [
                spread_effects(
                    {step: _tensor(gain[step] * probed[step][clip]) for step in probed}, mean.neighbours[number]
                )
                if known
                else np.zeros_like(moved[clip])
                for number, probed in misses.items()
            ]
            found.append(np.stack([*rows, -moved[clip]]))
        return found, known


def _tensor(values: Matrix) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
