"""How often the guard is right: 20 plans that empty clips of the demo model, and 20 that do not, each judged by its samples.

Every plan renders the same prompts, which training left out, and each clip is compared with itself without reuse, as a job
compares its samples. What is wrong with a clip is read back from its pixels. Then the guard decides by every draw of one
sample, or of so many as `--samples` says, out of these clips. `--measures FILE` keeps what was measured, or reads it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.calibration.plan_quality import call_share
from jobs.quality.alarms import alarms_of, pixel_statistics
from jobs.quality.compare import alike_facts
from pab.broadcast.rules import NO_BROADCAST, Rules, pyramid
from pab.broadcast.step_rules import StepRules
from pab.families.demo.family import DEMO
from pab.families.demo.training.check import held_out_prompts
from pab.families.demo.training.read_back import read_scenes
from pab.family import ClipRequest
from pab.model import VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.batch import denoise_batch, noise_of
from pab.sampling.denoise import plan_for

Frames = npt.NDArray[np.uint8]
Json = dict[str, Any]
_WINDOW = (450, 930)
_ALL = (-1, 1001)


def good_plans() -> dict[str, Rules]:
    """Returns 20 plans that leave the steps free in which the shape is decided."""
    ranges = [
        (2, 2, 2), (2, 2, 4), (2, 3, 4), (2, 4, 4), (2, 4, 6), (2, 4, 8), (2, 5, 8), (3, 3, 3), (3, 3, 6), (3, 4, 5),
        (3, 5, 5), (3, 5, 7), (None, 4, 6), (2, None, 6), (2, 4, None), (None, None, 8),
    ]  # fmt: skip
    plans: dict[str, Rules] = {
        "pab" + "-".join(str(each or 1) for each in three): pyramid(*three, window=_WINDOW) for three in ranges
    }
    plans |= {name: DEMO.presets[name] for name in ("pab246", "calibrated", "foresight")}
    return plans | {"late": pyramid(3, 5, 7, window=(200, 800))}


def bad_plans() -> dict[str, Rules]:
    """Returns 20 plans that reuse from the second step on, or leave out passes there: the shape is never decided."""
    ranges = [
        (6, 6, 6), (8, 8, 8), (10, 10, 10), (12, 12, 12), (15, 15, 15), (30, 30, 30), (6, 10, 14), (10, 6, 14),
        (14, 10, 6), (5, 15, 30), (30, 15, 5), (15, 5, 30), (8, 16, 24), (24, 16, 8),
    ]  # fmt: skip
    plans: dict[str, Rules] = {"reuse" + "-".join(map(str, three)): pyramid(*three, window=_ALL) for three in ranges}
    passes = {
        "skips1-7": (0, *range(8, 30)), "skips1-9": (0, *range(10, 30)), "skips1-12": (0, *range(13, 30)),
        "every6": tuple(range(0, 30, 6)), "every8": tuple(range(0, 30, 8)), "every10": tuple(range(0, 30, 10)),
    }  # fmt: skip
    return plans | {
        name: StepRules(family="demo", num_steps=30, passes=steps, groups=()) for name, steps in passes.items()
    }


def render(model: VideoModel, requests: list[ClipRequest], rules: Rules) -> tuple[list[Frames], float]:
    """Returns the frames [T, H, W, 3] of each clip, and the share of calls that was computed."""
    plan = plan_for(DEMO, requests[0], rules, "float32")
    done = denoise_batch(
        model, requests, prompts=model.encode_prompts(requests), noise=noise_of(requests, model.latent_shape(requests[0])),
        plan=plan, group=NodeGroup(),
    )  # fmt: skip
    frames = [
        model.decode(done.latents[row : row + 1], request, NodeGroup()).fetch()[0].numpy()
        for row, request in enumerate(requests)
    ]
    return frames, call_share(done.plan)


def measure(model: VideoModel, requests: list[ClipRequest]) -> list[Json]:
    """Returns for each plan what each of its clips is, beside itself without reuse."""
    references, _ = render(model, requests, NO_BROADCAST)
    rows: list[Json] = []
    for kind, plans in (("good", good_plans()), ("bad", bad_plans())):
        for name, rules in plans.items():
            frames, share = render(model, requests, rules)
            clips = [_clip(one, other) for one, other in zip(references, frames, strict=True)]
            rows.append({"kind": kind, "plan": name, "computed_share": round(share, 4), "clips": clips})
            sys.stderr.write(f"{kind} {name}: {[clip['psnr_db'] for clip in clips]}\n")
    return rows


def _clip(reference: Frames, frames: Frames) -> Json:
    own, without = (alarms_of(pixel_statistics(each)) for each in (frames, reference))
    shown, asked = (read_scenes(_video(each))[0] for each in (frames, reference))
    wrong = [name for name in ("shape", "colour", "background") if getattr(shown, name) != getattr(asked, name)]
    return {**alike_facts(reference, frames), "alarms": list(own), "baseline_alarms": list(without), "wrong": wrong}


def _video(frames_THWC: Frames) -> torch.Tensor:
    return torch.from_numpy(frames_THWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def demo_requests(clips: int, steps: int) -> list[ClipRequest]:
    """Returns clips of the demo's own size, of prompts that training left out."""
    size = DEMO.defaults
    return [
        ClipRequest(
            prompt=prompt, negative_prompt=None, seed=seed, num_frames=size.num_frames, height=size.height,
            width=size.width, fps=size.fps, num_steps=steps, guidance_scale=size.guidance_scale,
        )
        for seed, (prompt, _) in enumerate(held_out_prompts(clips, seed=1))
    ]  # fmt: skip
