"""Trains demo_wan's transformer, over the demo's trained text encoder and autoencoder, which stay as they are.

Run as `python -m pab.families.demo_wan.training.train --out DIR --minutes N`; with --stop-after-minutes a call ends early,
and a later call with --resume goes on. Rates decay over the training time of all calls together.
"""

import argparse
import copy
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pab.families.demo.training.runs import TrainingRun, common_options, train_from_the_command_line
from pab.families.demo.training.steps import ModelTraining
from pab.families.demo.weights import load_demo
from pab.families.demo_wan.training.sample import SampledParts, SampleSettings, render_prompts
from pab.families.demo_wan.training.velocity import WanVelocity, initialise
from pab.families.demo_wan.transformer import build_transformer, load_transformer, save_transformer, transformer_config


class WanTraining(TrainingRun):
    """demo_wan's run: the transformer alone."""

    weights_name = "demo_wan.safetensors"
    rounds_checkpoints = True

    def __init__(self, options: argparse.Namespace) -> None:
        """Sets up from the command line and, with --resume, from the checkpoint."""
        super().__init__(options)
        demo = load_demo(device=self.device)
        self.text_encoder, self.autoencoder = demo.text_encoder, demo.autoencoder
        self.transformer = self._starting_transformer().to(self.device)
        self.averaged = copy.deepcopy(self.transformer).eval().requires_grad_(requires_grad=False)
        self.stage = ModelTraining.create(
            WanVelocity(self.transformer, self.text_encoder, compiled=options.compile and self.cuda),
            list(self.transformer.parameters()),
            [(self.averaged, self.transformer)],
            graphs=options.graphs and self.cuda,
        )
        self._open(self.text_encoder.config.max_words)

    def _starting_transformer(self) -> Any:
        if self.options.start_from is not None:
            return load_transformer(self.options.start_from).train().requires_grad_(requires_grad=True)
        transformer = build_transformer(transformer_config(small=self.options.small))
        initialise(transformer)
        return transformer

    def renderer(self, seeds: random.Random) -> Callable[[Sequence[str]], Tensor]:
        """Returns what renders prompts with the averaged transformer."""
        parts = SampledParts(transformer=self.averaged, text_encoder=self.text_encoder, autoencoder=self.autoencoder)
        settings = SampleSettings(size=self.buckets[0].size)

        def render(prompts: Sequence[str]) -> Tensor:
            return render_prompts(parts, prompts, seed=seeds.getrandbits(40), settings=settings)

        return render

    def save(self, path: Path) -> None:
        """Writes the averaged transformer."""
        save_transformer(self.averaged, path)

    def stateful(self) -> dict[str, Any]:
        """Returns transformer, average and optimiser."""
        return {
            "transformer": self.transformer,
            "averaged_transformer": self.averaged,
            "transformer_optimiser": self.stage.optimiser,
        }


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m pab.families.demo_wan.training.train", description=__doc__)
    common_options(parser, WanTraining.weights_name)
    parser.add_argument("--start-from", type=Path, help="a demo_wan.safetensors to go on from")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains from the command line. Returns 0, also when the call ended before the training did."""
    return train_from_the_command_line(WanTraining, parse_options(arguments))


if __name__ == "__main__":
    sys.exit(main())
