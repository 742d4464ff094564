"""What a reuse does to the finished clip: one group reuses at one step, and the latents at the end are compared.

Steps before the first one that differs are replayed from kept predictions, so a probe costs only the steps after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.state import Visit
from pab.broadcast.step_rules import StepRules
from pab.calibration.changes import Changes, ListeningVisit, Sampler, Samples
from pab.calibration.groups import WHOLE_PASS, SiteGroup
from pab.calibration.passes import ModelWithPasses
from pab.family import ClipRequest
from pab.model import EncodedPrompt, StepInput, VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import denoise, initial_noise

EFFECT_SAMPLE = 1 << 17
"""Numbers of the finished latents that effects are told by."""
_TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredClip:
    """A clip rendered without reuse. `predictions`: of each step and branch. `latents`: whole, at the end."""

    request: ClipRequest
    prompt: EncodedPrompt
    plan: BroadcastPlan
    changes: Changes
    predictions: Mapping[tuple[int, str], Tensor]
    latents: Tensor


def measure_clip(
    model: VideoModel,
    request: ClipRequest,
    groups: Sequence[SiteGroup],
    plan: BroadcastPlan,
    *,
    group: NodeGroup,
) -> MeasuredClip:
    """Renders a clip by a plan that reuses nothing and keeps what is needed to judge any other.

    Its changes are those of the groups, and last those of whole passes.
    Raises ValueError on several ranks: samples and effects are of whole outputs.
    """
    if group.clip.size > 1:
        raise ValueError(f"a clip is measured on one rank, this group has {group.clip.size}; start one process")
    assert len(plan.full_steps) == plan.num_steps, "the plan reuses"
    samples, predictions = Samples(), dict[tuple[int, str], Tensor]()

    def listen(latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        prediction = model.predict(latents, step_input, text, ListeningVisit(visit=visit, samples=samples), group)
        predictions[visit.step, visit.branch] = prediction
        samples.take(WHOLE_PASS.names[0], visit.branch, (prediction,))
        return prediction

    (prompt,) = model.encode_prompts([request])
    done = denoise(
        ModelWithPasses(model=model, make_pass=listen), request, prompt=prompt,
        noise=initial_noise(request, model.latent_shape(request)), plan=plan, group=group,
    )  # fmt: skip
    return MeasuredClip(
        request=request,
        prompt=prompt,
        plan=plan,
        changes=samples.changes([*groups, WHOLE_PASS]),
        predictions=predictions,
        latents=done.latents,
    )


def measure_effect(
    model: VideoModel, clip: MeasuredClip, site_group: SiteGroup, step: int, *, group: NodeGroup
) -> Tensor:  # fmt: skip
    """Returns [n] float32 on the CPU: how far the finished latents move when one group reuses the step before.

    The group may be WHOLE_PASS. Of large latents a sample of EFFECT_SAMPLE numbers, the same for all effects.
    """
    assert step > 0, "the first step computes"
    num_steps = clip.plan.num_steps
    computing = tuple(s for s in range(num_steps) if s != step)
    if site_group == WHOLE_PASS:
        rules = StepRules(num_steps=num_steps, groups=(), passes=computing)
    else:
        rules = StepRules(num_steps=num_steps, groups=(site_group.computing_at(computing),))
    plan = make_plan(rules, clip.plan.timesteps, clip.plan.sites)

    def replay(latents: Tensor, step_input: StepInput, text: object, visit: Visit, group: NodeGroup) -> Tensor:
        if visit.step < step - 1:
            return clip.predictions[visit.step, visit.branch]
        return model.predict(latents, step_input, text, visit, group)

    noise = initial_noise(clip.request, model.latent_shape(clip.request))
    done = denoise(
        ModelWithPasses(model=model, make_pass=replay), clip.request, prompt=clip.prompt, noise=noise, plan=plan,
        group=group,
    )  # fmt: skip
    return Sampler(limit=EFFECT_SAMPLE)(done.latents - clip.latents).cpu()


def spread_effects(probed: Mapping[int, Tensor], change: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns [S, n]: the effect of every step from those of some; there is none at step 0.

    `change` [S - 1]: mean squared change of the output from each step to the next. Between two probed steps the direction
    goes along a straight line, and the size of the effect for a change of one along a geometric one.
    """
    steps = sorted(probed)
    vectors = np.stack([probed[step].double().numpy() for step in steps])
    norms = np.maximum(np.linalg.norm(vectors, axis=1), _TINY)
    amplitudes = np.sqrt(np.maximum(np.concatenate([change[:1], change]), _TINY))
    sensitivity = np.log(norms / amplitudes[steps])
    rows = [np.zeros(vectors.shape[1])]
    for step in range(1, len(amplitudes)):
        place = float(np.interp(step, steps, np.arange(len(steps))))
        before, after = int(place), min(int(place) + 1, len(steps) - 1)
        share = place - before
        direction = (1 - share) * vectors[before] / norms[before] + share * vectors[after] / norms[after]
        size = amplitudes[step] * np.exp((1 - share) * sensitivity[before] + share * sensitivity[after])
        rows.append(size * direction / max(float(np.linalg.norm(direction)), _TINY))
    return np.stack(rows)
