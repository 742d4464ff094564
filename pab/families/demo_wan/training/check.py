"""Checks a demo_wan: renders prompts of combinations that training left out and reads them back from the pixels.

Run as `python -m pab.families.demo_wan.training.check`; the table, or with --json one JSON document, goes to standard output.
"""

import argparse
import random
import sys
from collections.abc import Sequence

from torch import Tensor

from pab.families.demo.training.check import CHECKED_SIZE, RenderPrompts, check_from_the_command_line
from pab.families.demo.weights import load_demo
from pab.families.demo_wan.training.sample import SampledParts, SampleSettings, render_prompts
from pab.families.demo_wan.transformer import load_transformer
from pab.families.demo_wan.weights import WEIGHTS


def _open_renderer(options: argparse.Namespace, seeds: random.Random) -> RenderPrompts:
    demo = load_demo(device=options.device)
    parts = SampledParts(
        transformer=load_transformer(options.weights, options.device),
        text_encoder=demo.text_encoder,
        autoencoder=demo.autoencoder,
    )
    settings = SampleSettings(size=CHECKED_SIZE, num_steps=options.steps, guidance_scale=options.guidance)

    def render(prompts: Sequence[str]) -> Tensor:
        return render_prompts(parts, prompts, seed=seeds.getrandbits(40), settings=settings)

    return render


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check from the command line. Returns 0 if every rate reaches --least, else 1."""
    prog = "python -m pab.families.demo_wan.training.check"
    return check_from_the_command_line(prog, _open_renderer, WEIGHTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
