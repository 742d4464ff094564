"""Which plans of a job are guarded, by which samples each is judged, and which milder plans come after it.

All of it follows from the clips of the job and its settings, so every rank and every start finds the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.rendering.loops import clip_requests
from jobs.rendering.rules_of_clips import clip_rules
from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import NO_BROADCAST
from pab.family import Family

NONE = "none"
LEAST_MILDER = 0.03
"""The next plan of a ladder computes at least this share of all calls more: each one costs a render of every sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedPlan:
    """Clips of a job that are judged together: those of one family, broadcast, and choice of steps and noise levels.

    `key`: names the decision in the bucket. `samples`: keys of the clips that may be compared, in the order of the draw.
    """

    key: str
    model: str
    broadcast: str
    num_steps: int
    samples: tuple[str, ...]


def plan_key(clip: Clip, rules_digest: str, min_quality: str) -> str:
    """Names what decides a clip's plan besides its size, and what is asked of it: 12 hex digits."""
    asked = [
        clip.model, clip.broadcast, rules_digest, clip.num_steps, clip.sampling, clip.flow_shift, clip.lora,
        min_quality,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def guarded_plans(
    clips: Sequence[Clip], settings: JobSettings, find_family: Callable[[str], Family], *, again: frozenset[str]
) -> tuple[GuardedPlan, ...]:
    """Returns the guarded plans of these clips, in their order; none if the run renders nothing twice.

    Clips that reuse nothing have nothing to guard, and rows that cannot be rendered fail by themselves. `again`: keys of
    clips that have failed or killed their group before; they are samples only if there are no others.
    """
    if not settings.render.baseline:
        return ()
    members: dict[str, list[Clip]] = {}
    keys: dict[object, str | None] = {}
    for clip in clips:
        kind = (clip.model, clip.broadcast, clip.num_steps, clip.sampling, clip.flow_shift, clip.lora, _size(clip))
        if kind not in keys:
            keys[kind] = _key_if_guarded(clip, settings, find_family(clip.model))
        if (key := keys[kind]) is not None:
            members.setdefault(key, []).append(clip)
    return tuple(
        GuardedPlan(
            key=key,
            model=alike[0].model,
            broadcast=alike[0].broadcast,
            num_steps=alike[0].num_steps,
            samples=tuple(clip.key for clip in drawn(alike, again=again)),
        )
        for key, alike in members.items()
    )


def _key_if_guarded(clip: Clip, settings: JobSettings, family: Family) -> str | None:
    try:
        rules = clip_rules(clip, family, settings)
        plan = family.plan(clip_requests(clip)[0], rules, settings.render.precision_of(family))
    except ValueError:
        return None
    if not isinstance(rules, ForesightRules) and len(plan.full_steps) == plan.num_steps:
        return None
    return plan_key(clip, rules.digest, settings.render.min_quality)


def drawn(clips: Sequence[Clip], *, again: frozenset[str] = frozenset()) -> list[Clip]:
    """Returns the clips in the order in which they become samples: as if by chance, but the same at every start.

    A clip whose size or prompt was not drawn yet comes before others.
    """
    waiting = sorted(clips, key=lambda clip: (clip.key in again, hashlib.sha256(clip.key.encode()).hexdigest()))
    sizes: dict[object, int] = {}
    prompts: dict[str, int] = {}
    order: list[Clip] = []
    while waiting:
        # Only the first are looked at: the order of the rest of a large job does not matter.
        best = min(
            waiting[:_LOOKED_AT],
            key=lambda clip: (clip.key in again, sizes.get(_size(clip), 0), prompts.get(clip.prompt, 0)),
        )
        waiting.remove(best)
        order.append(best)
        sizes[_size(best)] = sizes.get(_size(best), 0) + 1
        prompts[best.prompt] = prompts.get(best.prompt, 0) + 1
    return order


_LOOKED_AT = 256


def _size(clip: Clip) -> tuple[int, ...]:
    return clip.num_frames, clip.height, clip.width, clip.loops


def next_milder(family: Family, clip: Clip, *, tried: Sequence[str], share: float, precision: str) -> str:
    """Returns the name of the preset that comes after plans that were not good enough; "none" at last.

    The presets of the family are ordered by the share of calls that they compute for this clip; a plan that is none of them,
    such as one that `calibrate` found, is followed by the family's default, if that computes more. `tried`: the names so far,
    the one that was asked for first. `share`: what the last one computed. Presets that decide while they render are left
    out: what they will compute is not known.
    """
    milder: dict[str, float] = {}
    for name, rules in family.presets.items():
        if isinstance(rules, ForesightRules) or rules == NO_BROADCAST or name in tried:
            continue
        try:
            found = family.plan(clip_requests(clip)[0], rules, precision).computed_share
        except ValueError:
            continue  # a plan file for other sites
        if share + LEAST_MILDER <= found < 1.0:
            milder[name] = found
    if len(tried) == 1 and tried[0] not in family.presets and family.defaults.broadcast in milder:
        return family.defaults.broadcast
    return min(milder, key=lambda name: milder[name], default=NONE)
