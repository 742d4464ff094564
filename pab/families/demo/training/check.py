"""Checks a demo model: renders prompts of combinations that training left out and reads them back from the pixels.

Run as `python -m pab.families.demo.training.check`; the table, or with --json one JSON document, goes to standard output.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pab.families.demo.captions import write_caption
from pab.families.demo.config import WEIGHTS
from pab.families.demo.scene import Scene, draw_scenes
from pab.families.demo.training.generator import ClipSize
from pab.families.demo.training.read_back import READ_ATTRIBUTES, read_scenes
from pab.families.demo.training.sample import SampleSettings, render_prompts
from pab.families.demo.weights import load_demo

CHECKED_SIZE = ClipSize(num_frames=16, height=64, width=64)

RenderPrompts = Callable[[Sequence[str]], Tensor]
"""Renders prompts to clips [B, 3, T, H, W] in -1..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """One attribute that the pixels do not show as asked."""

    prompt: str
    attribute: str
    asked: str
    read: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """How many of the prompts' attributes the clips show."""

    num_prompts: int
    hits: Mapping[str, int]
    misses: tuple[Miss, ...]

    def rate(self, attribute: str) -> float:
        """Returns the part of prompts whose attribute was hit, 0..1."""
        return self.hits[attribute] / self.num_prompts

    def summary(self) -> str:
        """Returns the hit rates in one line."""
        return ", ".join(f"{name} {self.rate(name):.1%}" for name in READ_ATTRIBUTES)

    def table(self) -> str:
        """Returns the hit rates as a table, then what was missed."""
        lines = [f"{'attribute':<12}{'hits':>6}{'of':>6}{'rate':>9}"]
        lines += [f"{n:<12}{self.hits[n]:>6}{self.num_prompts:>6}{self.rate(n):>9.1%}" for n in READ_ATTRIBUTES]
        lines += [f"missed {m.attribute}: asked {m.asked}, read {m.read}: {m.prompt!r}" for m in self.misses]
        return "\n".join(lines)

    def document(self) -> dict[str, object]:
        """Returns the result as JSON values."""
        rates = {name: self.rate(name) for name in READ_ATTRIBUTES}
        misses = [{"prompt": m.prompt, "attribute": m.attribute, "asked": m.asked, "read": m.read} for m in self.misses]
        return {"num_prompts": self.num_prompts, "hits": dict(self.hits), "rates": rates, "misses": misses}


def held_out_prompts(num_prompts: int, seed: int) -> list[tuple[str, Scene]]:
    """Draws held-out scenes, each with a caption that states shape, colour, background and direction."""
    rng = random.Random(f"check/{seed}")
    scenes = draw_scenes(num_prompts, rng, held_out=True)
    return [(write_caption(scene, rng, complete=True).text, scene) for scene in scenes]


def check_attributes(
    render: RenderPrompts, *, num_prompts: int = 64, seed: int = 0, batch_size: int = 16
) -> CheckResult:
    """Renders held-out prompts with the given function and compares what the pixels show with what was asked."""
    asked = held_out_prompts(num_prompts, seed)
    misses: list[Miss] = []
    for first in range(0, num_prompts, batch_size):
        batch = asked[first : first + batch_size]
        read = read_scenes(render([prompt for prompt, _ in batch]))
        for (prompt, scene), seen in zip(batch, read, strict=True):
            pairs = [(name, getattr(scene, name), getattr(seen, name)) for name in READ_ATTRIBUTES]
            misses += [Miss(prompt=prompt, attribute=n, asked=a, read=r) for n, a, r in pairs if a != r]
    hits = {name: num_prompts - sum(miss.attribute == name for miss in misses) for name in READ_ATTRIBUTES}
    return CheckResult(num_prompts=num_prompts, hits=hits, misses=tuple(misses))


def check_from_the_command_line(
    prog: str,
    open_renderer: Callable[[argparse.Namespace, random.Random], RenderPrompts],
    weights: Path,
    arguments: Sequence[str] | None,
) -> int:
    """Checks a model from its command line. Returns 0 if every rate reaches --least, else 1.

    `open_renderer(options, seeds)` loads the model; seeds of its noise are drawn from `seeds`.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Renders prompts of combinations that training left out, and reads them back from the pixels.",
    )
    parser.add_argument("--weights", type=Path, default=weights)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--least", type=float, default=0.95, help="the hit rate that every attribute has to reach")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    render = open_renderer(options, random.Random(options.seed))
    result = check_attributes(render, num_prompts=options.prompts, seed=options.seed)
    sys.stdout.write((json.dumps(result.document()) if options.json else result.table()) + "\n")
    return 0 if all(result.rate(name) >= options.least for name in READ_ATTRIBUTES) else 1


def _open_renderer(options: argparse.Namespace, seeds: random.Random) -> RenderPrompts:
    parts = load_demo(options.weights, options.device, torch.float32)
    settings = SampleSettings(size=CHECKED_SIZE, num_steps=options.steps, guidance_scale=options.guidance)

    def render(prompts: Sequence[str]) -> Tensor:
        return render_prompts(parts, prompts, seed=seeds.getrandbits(40), settings=settings)

    return render


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check from the command line. Returns 0 if every rate reaches --least, else 1."""
    return check_from_the_command_line("python -m pab.families.demo.training.check", _open_renderer, WEIGHTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
