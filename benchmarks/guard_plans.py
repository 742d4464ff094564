"""How often the guard is right: 20 plans that empty clips of the demo model, and 20 that do not, each judged by its samples.

Every plan renders the same prompts, which training left out, and each clip is compared with itself without reuse, as a job
compares its samples. What is wrong with a clip is read back from its pixels. Then the guard decides by every draw of one
sample, or of so many as `--samples` says, out of these clips. `--measures FILE` keeps what was measured, or reads it.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.calibration.plan_quality import call_share
from jobs.quality.alarms import alarms_of, pixel_statistics
from jobs.quality.compare import alike_facts
from jobs.quality.guard import are_good
from pab.broadcast.rules import NO_BROADCAST, Rules, pyramid
from pab.broadcast.step_rules import StepRules
from pab.families.demo.family import DEMO
from pab.families.demo.training.check import held_out_prompts
from pab.families.demo.training.read_back import read_scenes
from pab.family import ClipRequest, LoadRequest
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


def decisions(rows: list[Json], samples: int) -> list[Json]:
    """Returns, for each plan, in what share of all draws of so many samples the guard steps it down."""
    told: list[Json] = []
    for row in rows:
        draws = [list(draw) for draw in combinations(row["clips"], samples)]
        stepped = sum(not are_good([_named(clip) for clip in draw], DEMO.floor) for draw in draws)
        wrong = sum(bool(clip["wrong"]) for clip in row["clips"])
        told.append({**row, "stepped_down": stepped / len(draws), "wrong_clips": wrong})
    return told


def _named(clip: Json) -> Json:
    return {"clip_id": "sample", "not_finite": None, **clip}


def table(told: list[Json]) -> str:
    """Returns the decisions as a table in Markdown, and how many plans of each kind were stepped down at every draw."""
    lines = ["| plan | calls computed | PSNR, dB | VMAF | wrong clips | stepped down |", "|---|---|---|---|---|---|"]
    for row in told:
        psnr, vmaf = ([clip[name] for clip in row["clips"]] for name in ("psnr_db", "vmaf"))
        lines.append(
            f"| {row['kind']}: `{row['plan']}` | {row['computed_share']:.0%} | {min(psnr):.1f} to {max(psnr):.1f} | "
            f"{min(vmaf):.0f} to {max(vmaf):.0f} | {row['wrong_clips']} of {len(psnr)} | {row['stepped_down']:.0%} |"
        )
    for kind in ("bad", "good"):
        alike = [row for row in told if row["kind"] == kind]
        always = sum(row["stepped_down"] == 1 for row in alike)
        ever = sum(row["stepped_down"] > 0 for row in alike)
        lines.append(f"\n{len(alike)} {kind} plans: {always} stepped down whatever is drawn, {ever} by some draw")
    return "\n".join(lines)


def main() -> int:
    """Runs the measurement, or reads it, and shows what the guard decides."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard_plans", description=__doc__)
    parser.add_argument("--clips", type=int, default=3, help="prompts that training left out")
    parser.add_argument("--steps", type=int, default=DEMO.defaults.num_steps)
    parser.add_argument("--samples", type=int, default=1, help="clips that a job compares")
    parser.add_argument("--measures", type=Path, help="a JSON file: read if it is there, else written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measures and options.measures.exists():
        rows: list[Json] = json.loads(options.measures.read_text())
    else:
        model = DEMO.load(LoadRequest(weights=None, precision="float32", device="cpu"))
        with torch.inference_mode():
            rows = measure(model, demo_requests(options.clips, options.steps))
    if options.measures and not options.measures.exists():
        options.measures.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(table(decisions(rows, options.samples)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
