"""A picture of the same clips with and without broadcast, by the two trained demo models: the README's first screen shows it.

A block per model, a row per plan, a few frames of one clip from first to last. Beside each plan stand how many times fewer
operations it computed in that clip, and the PSNR of all of the clip's frames against the row without reuse.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from jobs.bench.peers.clips import Clips
from jobs.bench.peers.operations import OperationCounter
from jobs.quality.alike import Frames, psnr
from pab.broadcast.rules import Rules
from pab.families import FAMILIES
from pab.families.demo.training.check import held_out_prompts
from pab.family import ClipRequest, Family, LoadRequest

PLANS: Mapping[str, tuple[str, ...]] = {"demo": ("none", "half", "pab246"), "demo_wan": ("none", "half", "pab2-6")}
"""Without reuse, the default plan, a preset by rules."""
SHOWN = 4
SCALE = 2
"""A pixel of a frame is so many wide and high, so that what is seen is what was made."""
GAP, BLOCK_GAP, MARGIN, TEXT = 4, 28, 8, 16
WHOLE = "everything computed"
INK, PAPER = "#1f2328", "#ffffff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A clip under a plan. `words`: what stands above its frames; `frames`: those that are shown, [T, H, W, 3]."""

    words: str
    frames: Frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A model's clip: its title, and a row per plan."""

    title: str
    rows: tuple[Row, ...]


def render_block(family: Family, request: ClipRequest, plans: Sequence[str]) -> Block:
    """Renders a clip under each plan, the first one without reuse, in float32 on the CPU: anywhere the same picture."""
    device = torch.device("cpu")
    model = family.load(LoadRequest(weights=None, precision="float32", device=str(device)))
    clips = Clips(family=family, model=model, precision="float32", device=device)
    rows: list[Row] = []
    with torch.inference_mode():
        whole, whole_operations = _rendered(clips, family.presets[plans[0]], request)
        for name in plans:
            frames, operations = _rendered(clips, family.presets[name], request) if rows else (whole, whole_operations)
            shown = f"{name}, the default" if name == family.defaults.broadcast else name
            words = row_words(shown, whole_operations / operations, psnr(whole, frames)) if rows else WHOLE
            chosen = torch.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).round().int().tolist()
            rows.append(Row(words=words, frames=frames[chosen]))
    return Block(title=f"{family.name}: {request.prompt}", rows=tuple(rows))


def row_words(plan: str, factor: float, psnr_db: float) -> str:
    """Returns what stands above a plan's frames."""
    alike = f"{psnr_db:.1f} dB" if math.isfinite(psnr_db) else "the same frames"
    return f"{plan}: {factor:.2f}x fewer operations, {alike}"


def _rendered(clips: Clips, rules: Rules, request: ClipRequest) -> tuple[Frames, int]:
    with OperationCounter() as counter:
        latents = clips.ours(rules)([request])
    return clips.decoded(latents, [request])[0], counter.operations


def sheet(blocks: Sequence[Block]) -> Image.Image:
    """Returns the blocks side by side, each with its title and its rows."""
    font = ImageFont.load_default(TEXT)
    line = TEXT + 8
    frames = blocks[0].rows[0].frames
    height, width = (SCALE * size for size in frames.shape[1:3])
    block_width = len(frames) * (width + GAP) - GAP
    row_height = line + height + GAP
    size = (
        2 * MARGIN + len(blocks) * (block_width + BLOCK_GAP) - BLOCK_GAP,
        2 * MARGIN + line + max(len(block.rows) for block in blocks) * row_height - GAP,
    )
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for column, block in enumerate(blocks):
        left = MARGIN + column * (block_width + BLOCK_GAP)
        draw.text((left, MARGIN), block.title, fill=INK, font=font)
        for number, row in enumerate(block.rows):
            top = MARGIN + line + number * row_height
            draw.text((left, top), row.words, fill=INK, font=font)
            for place, frame in enumerate(row.frames):
                shown = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
                picture.paste(shown, (left + place * (width + GAP), top + line))
    return picture


def main(arguments: list[str] | None = None) -> int:
    """Renders the clips and writes the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames_picture", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--steps", type=int, help="default: each model's own")
    parser.add_argument("--size", metavar="FRAMESxHxW", help="default: each model's own")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # The first ones that training left out and in which something moves.
    prompts = [prompt for prompt, scene in held_out_prompts(64, seed=0) if scene.direction != "still"]
    blocks: list[Block] = []
    for number, (name, plans) in enumerate(PLANS.items()):
        usual = FAMILIES[name].defaults
        num_frames, height, width = (
            map(int, options.size.split("x")) if options.size else (usual.num_frames, usual.height, usual.width)
        )
        request = ClipRequest(
            prompt=prompts[number], negative_prompt=None, seed=number, num_frames=num_frames, height=height, width=width,
            fps=usual.fps, num_steps=options.steps or usual.num_steps, guidance_scale=usual.guidance_scale,
        )  # fmt: skip
        blocks.append(render_block(FAMILIES[name], request, plans))
        for row in blocks[-1].rows:
            sys.stdout.write(f"{blocks[-1].title}: {row.words}\n")
    # A palette, or the noise of what models draw makes the file three times as large.
    sheet(blocks).quantize(256, dither=Image.Dither.NONE).save(options.out, "PNG", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
