"""What ways of broadcasting compute, and how far they move the videos of the demo model from those without any reuse.

Every clip is rendered once per broadcast with the same seed; the report that it prints compares with `none`. Seconds are of
denoising, and only their ratio means something: clips take turns, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean, median

import numpy as np
import numpy.typing as npt

from jobs.quality import psnr, ssim
from pab.demo.check import held_out_prompts
from pab.denoise import Denoised, denoise, initial_noise, plan_for
from pab.families.demo import DEMO
from pab.family import ClipRequest, LoadRequest
from pab.model import VideoModel
from pab.parallel import NodeGroup
from pab.plan import KINDS


def render(model: VideoModel, request: ClipRequest, broadcast: str) -> tuple[npt.NDArray[np.uint8], Denoised]:
    """Returns the frames [T, H, W, 3] of a clip, and what denoising it took."""
    done = denoise(
        model,
        request,
        prompt=model.encode_prompts([request])[0],
        noise=initial_noise(request, model.latent_shape(request)),
        plan=plan_for(DEMO, request, DEMO.presets[broadcast], "float32"),
        group=NodeGroup(),
    )
    return model.decode(done.latents, request, NodeGroup())[0].numpy(), done


def computed_share(done: Denoised) -> float:
    """Returns the share of site calls that were computed."""
    return sum(map(done.plan.computed, KINDS)) / sum(map(done.plan.total, KINDS))


def compare(model: VideoModel, requests: list[ClipRequest], broadcasts: list[str]) -> list[dict[str, object]]:
    """Returns a row per broadcast."""
    shares: dict[str, list[float]] = {name: [] for name in broadcasts}
    seconds: dict[str, list[float]] = {name: [] for name in broadcasts}
    noises_db: dict[str, list[float]] = {name: [] for name in broadcasts}
    alike: dict[str, list[float]] = {name: [] for name in broadcasts}
    render(model, requests[0], "none")  # what comes first takes longer
    for request in requests:
        reference, _ = render(model, request, "none")
        for name in broadcasts:
            frames, done = render(model, request, name)
            shares[name].append(computed_share(done))
            seconds[name].append(sum(done.step_seconds))
            noises_db[name].append(psnr(reference, frames))
            alike[name].append(ssim(reference, frames))
    return [
        {
            "broadcast": name,
            "computed_share": [
                round(value, 4) for value in (fmean(shares[name]), min(shares[name]), max(shares[name]))
            ],
            "relative_time": round(
                median(own / base for own, base in zip(seconds[name], seconds["none"], strict=True)), 3
            ),
            "psnr_db": [None if math.isinf(value) else round(value, 2) for value in _spread(noises_db[name])],
            "ssim": [round(value, 5) for value in _spread(alike[name])],
        }
        for name in broadcasts
    ]


def _spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def table(rows: list[dict[str, object]]) -> str:
    """Returns the rows as a table in Markdown."""
    lines = [
        "| broadcast | calls computed | time | PSNR, dB: median (least to most) | SSIM: median (least to most) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        share, noise, like = row["computed_share"], row["psnr_db"], row["ssim"]
        assert isinstance(share, list)
        assert isinstance(noise, list)
        assert isinstance(like, list)
        told = "the same frames" if noise[1] is None else f"{noise[0]} ({noise[1]} to {noise[2]})"
        spread = f"{share[0]:.1%}" + (f" ({share[1]:.1%} to {share[2]:.1%})" if share[1] < share[2] else "")
        lines.append(
            f"| `{row['broadcast']}` | {spread} | {row['relative_time']:.2f} | {told} | "
            f"{like[0]:.4f} ({like[1]:.4f} to {like[2]:.4f}) |"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs the comparison from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse_quality", description=__doc__)
    parser.add_argument("--clips", type=int, default=8, help="prompts that training left out")
    parser.add_argument("--steps", type=int, default=DEMO.defaults.num_steps)
    parser.add_argument("--broadcasts", default="none,pab246,pab357,foresight,foresight-n2r3")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    model = DEMO.load(LoadRequest(weights=None, precision="float32", device="cpu"))
    size = DEMO.defaults
    requests = [
        ClipRequest(
            prompt=prompt, negative_prompt=None, seed=seed, num_frames=size.num_frames, height=size.height,
            width=size.width, fps=size.fps, num_steps=options.steps, guidance_scale=size.guidance_scale,
        )
        for seed, (prompt, _) in enumerate(held_out_prompts(options.clips, seed=0))
    ]  # fmt: skip
    rows = compare(model, requests, options.broadcasts.split(","))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(table(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
