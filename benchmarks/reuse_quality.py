"""What ways of broadcasting compute, and how far they move the videos of the demo model from those without any reuse.

Every clip is rendered once per broadcast with the same seed, and once without. Times are this process' own CPU seconds of
denoising on one thread, given as ratios to those without broadcast. Other work on the machine moves such ratios by a tenth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.quality.alike import psnr, ssim
from pab.broadcast.rules import Rules, rules_from_dict
from pab.families.demo.family import DEMO
from pab.families.demo.training.check import held_out_prompts
from pab.family import ClipRequest, LoadRequest
from pab.model import VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised, denoise, initial_noise, plan_for

Frames = npt.NDArray[np.uint8]


def rules_of(broadcast: str) -> Rules:
    """Returns a preset, or the rules or plan in a JSON file."""
    if broadcast in DEMO.presets:
        return DEMO.presets[broadcast]
    return rules_from_dict(json.loads(Path(broadcast).read_text()))


def render(model: VideoModel, request: ClipRequest, broadcast: str) -> tuple[Frames, Denoised, float]:
    """Returns the frames [T, H, W, 3] of a clip, what denoising it did, and the CPU seconds it took."""
    start = time.process_time()
    done = denoise(
        model,
        request,
        prompt=model.encode_prompts([request])[0],
        noise=initial_noise(request, model.latent_shape(request)),
        plan=plan_for(DEMO, request, rules_of(broadcast), "float32"),
        group=NodeGroup(),
    )
    cpu_s = time.process_time() - start
    return model.decode(done.latents, request, NodeGroup()).fetch()[0].numpy(), done, cpu_s


MEASURES = ("computed_share", "relative_time", "psnr_db", "ssim")


def compare(model: VideoModel, requests: list[ClipRequest], broadcasts: list[str]) -> list[dict[str, Any]]:
    """Returns a row per broadcast."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in broadcasts}
    render(model, requests[0], "none")  # what comes first takes longer
    for request in requests:
        reference, _, base_s = render(model, request, "none")
        for name in broadcasts:
            frames, done, cpu_s = render(model, request, name)
            found[name].append(
                (done.plan.computed_share, cpu_s / base_s, psnr(reference, frames), ssim(reference, frames))
            )
    return [
        {"broadcast": name, **dict(zip(MEASURES, map(_spread, zip(*rows, strict=True)), strict=True))}
        for name, rows in found.items()
    ]


def _spread(values: tuple[float, ...]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table in Markdown: medians over clips, least to most in brackets."""
    formats = ("{:.1%}", "{:.2f}", "{:.1f}", "{:.4f}")
    lines = [
        "| broadcast | calls computed | time | PSNR, dB | SSIM |",
        "|---|---|---|---|---|",
        "| `none` | 100.0% | 1 | - | - |",
    ]
    for row in rows:
        cells = [
            f"{form.format(middle)} ({form.format(least)} to {form.format(most)})"
            if least < most
            else form.format(most)
            for form, (middle, least, most) in zip(formats, (row[name] for name in MEASURES), strict=True)
        ]
        lines.append(f"| `{row['broadcast']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the comparison from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse_quality", description=__doc__)
    parser.add_argument("--clips", type=int, default=8, help="prompts that training left out")
    parser.add_argument("--steps", type=int, default=DEMO.defaults.num_steps)
    parser.add_argument("--broadcasts", default="pab246,pab357,foresight,foresight-n2r3", help="presets and plan files")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
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
