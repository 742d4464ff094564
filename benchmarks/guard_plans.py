"""How often the guard is right: 20 plans that empty clips of a trained model, and 20 that do not, each judged by its samples.

Every plan renders the same prompts, which training left out, and each clip is compared with itself without reuse, as a job
compares its samples. What is wrong with a clip, and whether it shows what was asked for, is read back from its pixels. Then
the guard decides by every draw of one sample, or of so many as `--samples` says, out of these clips. `--measures FILE` keeps
what was measured, clip by clip; what it holds is not measured again. `--plans` names some of the plans, for more clips.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.planted_plans import bad_plans, good_plans
from jobs.calibration.plan_quality import RenderedClips
from jobs.quality.alarms import alarms_of, pixel_statistics
from jobs.quality.compare import alike_facts
from jobs.quality.guard import are_good
from pab.broadcast.rules import Rules
from pab.families import find_family
from pab.families.demo.scene import Scene
from pab.families.demo.training.check import held_out_prompts
from pab.families.demo.training.read_back import READ_ATTRIBUTES, read_scenes
from pab.family import ClipRequest, Family, LoadRequest
from pab.parallel.mesh import NodeGroup

Frames = npt.NDArray[np.uint8]
Json = dict[str, Any]
Keep = Callable[[], None]
Asked = list[tuple[ClipRequest, Scene]]


def plans_of(family: Family, names: str | None) -> dict[str, tuple[str, Rules]]:
    """Returns kind and rules of each plan, all of them or those named. Raises KeyError for a name of none."""
    kinds = {"good": good_plans(family), "bad": bad_plans(family)}
    plans = {name: (kind, rules) for kind, found in kinds.items() for name, rules in found.items()}
    return plans if names is None else {name: plans[name] for name in names.split(",")}


def measure(clips: RenderedClips, asked: Asked, plans: Mapping[str, tuple[str, Rules]], rows: Json, keep: Keep) -> None:
    """Adds to `rows`, for each plan, what each clip is that is not in them, beside itself without reuse.

    `keep` is called after each clip.
    """
    for request, scene in asked:
        for name, (kind, rules) in plans.items():
            row = rows.setdefault(name, {"kind": kind, "plan": name, "computed_share": 0.0, "clips": {}})
            if str(request.seed) in row["clips"]:
                continue
            (reference,) = clips.without_reuse([request])
            frames, done = clips.render(request, rules)
            row["computed_share"] = round(done.plan.computed_share, 4)
            row["clips"][str(request.seed)] = _clip(reference, frames, scene)
            keep()
            sys.stderr.write(f"{kind} {name} {request.seed}: {row['clips'][str(request.seed)]['psnr_db']} dB\n")


def _clip(reference: Frames, frames: Frames, scene: Scene) -> Json:
    own, without = (alarms_of(pixel_statistics(each)) for each in (frames, reference))
    shown, unreused = (read_scenes(_video(each))[0] for each in (frames, reference))
    wrong = [name for name in ("shape", "colour", "background") if getattr(shown, name) != getattr(unreused, name)]
    missed = [name for name in READ_ATTRIBUTES if getattr(shown, name) != getattr(scene, name)]
    told = {"alarms": list(own), "baseline_alarms": list(without), "wrong": wrong, "missed": missed}
    return {**alike_facts(reference, frames), **told}


def _video(frames_THWC: Frames) -> torch.Tensor:
    return torch.from_numpy(frames_THWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def asked_of(family: Family, clips: int, steps: int) -> Asked:
    """Returns clips of a family's own size, of prompts that training left out, and what each is to show."""
    size = family.defaults
    return [
        (
            ClipRequest(
                prompt=prompt, negative_prompt=None, seed=seed, num_frames=size.num_frames, height=size.height,
                width=size.width, fps=size.fps, num_steps=steps, guidance_scale=size.guidance_scale,
            ),
            scene,
        )
        for seed, (prompt, scene) in enumerate(held_out_prompts(clips, seed=1))
    ]  # fmt: skip


def decisions(family: Family, rows: Mapping[str, Json], samples: int) -> list[Json]:
    """Returns, for each plan, in what share of all draws of so many samples the guard steps it down."""
    told: list[Json] = []
    for row in rows.values():
        clips = list(row["clips"].values())
        draws = [list(draw) for draw in combinations(clips, samples)]
        stepped = sum(not are_good([_named(clip) for clip in draw], family.floor) for draw in draws)
        wrong = sum(bool(clip["wrong"]) for clip in clips)
        told.append({**row, "clips": clips, "stepped_down": stepped / max(1, len(draws)), "wrong_clips": wrong})
    return told


def _named(clip: Json) -> Json:
    return {"clip_id": "sample", "not_finite": None, **clip}


def _spread(clips: list[Json], name: str, form: str) -> str:
    # Frames that are the same have no PSNR and no VMAF.
    values = [clip[name] for clip in clips if clip[name] is not None]
    return f"{median(values):{form}} ({min(values):{form}})" if values else "same"


def table(told: list[Json]) -> str:
    """Returns the decisions as a table in Markdown, and how many plans of each kind were stepped down at every draw."""
    lines = [
        "median (worst) of clips; prompts: all of shape, colour, background and direction are as asked for\n",
        "| plan | calls computed | PSNR, dB | SSIM | VMAF | prompts | clips gone wrong | stepped down |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in told:
        clips = row["clips"]
        spreads = (
            _spread(clips, *each) for each in (("psnr_db", ".1f"), ("ssim", ".4f"), ("vmaf", ".0f"))
        )  # fmt: skip
        followed = sum(not clip["missed"] for clip in clips)
        lines.append(
            f"| {row['kind']}: `{row['plan']}` | {row['computed_share']:.0%} | {' | '.join(spreads)} | "
            f"{followed} of {len(clips)} | {row['wrong_clips']} of {len(clips)} | {row['stepped_down']:.0%} |"
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
    parser.add_argument("--family", default="demo", choices=("demo", "demo_wan"))
    parser.add_argument("--clips", type=int, default=3, help="prompts that training left out")
    parser.add_argument("--skip", type=int, default=0, help="of these prompts, those that another process measures")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--samples", type=int, default=1, help="clips that a job compares")
    parser.add_argument("--plans", help="names of plans, with commas (default: all 40)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measures", type=Path, help="a JSON file: what it holds is not measured again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = find_family(options.family)
    rows: Json = {}
    if options.measures and options.measures.exists():
        rows = json.loads(options.measures.read_text())

    def keep() -> None:
        if options.measures:
            options.measures.write_text(json.dumps(rows, indent=1))

    model = family.load(LoadRequest(weights=None, precision="float32", device=options.device))
    clips = RenderedClips(
        model=model, family=family, precision="float32", group=NodeGroup(device=torch.device(options.device))
    )
    asked = asked_of(family, options.clips, options.steps)[options.skip :]
    measure(clips, asked, plans_of(family, options.plans), rows, keep)
    sys.stdout.write(table(decisions(family, rows, options.samples)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
