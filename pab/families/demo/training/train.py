"""Trains the demo model from nothing: autoencoder, then transformer and text encoder.

Run as `python -m pab.families.demo.training.train --out DIR --minutes N`; with --stop-after-minutes a call ends early,
and a later call with --resume goes on. Rates decay over the training time of all calls together.
"""

import argparse
import copy
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pab.families.demo.training.runs import TrainingRun, common_options, train_from_the_command_line
from pab.families.demo.training.sample import SampleSettings, render_prompts
from pab.families.demo.training.steps import ModelTraining
from pab.families.demo.training.train_autoencoder import AutoencoderTraining, report_autoencoder
from pab.families.demo.training.train_transformer import VelocityModel, initialise
from pab.families.demo.weights import DemoParts, build_parts, demo_config, load_demo, save_demo

_LOG = logging.getLogger("pab.families.demo.training.train")


class DemoTraining(TrainingRun):
    """The demo's run: autoencoder first, then transformer and text encoder together."""

    weights_name = "demo.safetensors"

    def __init__(self, options: argparse.Namespace) -> None:
        """Sets up from the command line and, with --resume, from the checkpoint."""
        super().__init__(options)
        self.autoencoder_s = min(0.15 * self.total_s, 180.0)
        self.parts = self._starting_parts()
        for module in (self.parts.transformer, self.parts.autoencoder, self.parts.text_encoder):
            module.to(self.device)
        self.averaged = copy.deepcopy(self.parts)
        self.autoencoder = self.parts.autoencoder
        self.stage1 = AutoencoderTraining.create(self.autoencoder, fused=self.cuda)
        if options.start_from or options.autoencoder_from:
            self.autoencoder_s, self.stage1.step = 0.0, 1
        self.model = VelocityModel(self.parts, compiled=options.compile and self.cuda)
        self.stage = ModelTraining.create(
            self.model,
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            [(getattr(self.averaged, name), getattr(self.parts, name)) for name in ("transformer", "text_encoder")],
            graphs=options.graphs and self.cuda,
        )
        self._open(self.parts.text_encoder.config.max_words)

    def _starting_parts(self) -> DemoParts:
        if self.options.start_from is None:
            parts = build_parts(demo_config(small=self.options.small))
            initialise(parts)
            if self.options.autoencoder_from:
                trained = load_demo(self.options.autoencoder_from).autoencoder
                parts.autoencoder.load_state_dict(trained.state_dict())
            return parts
        parts = load_demo(self.options.start_from)
        for module in (parts.transformer, parts.autoencoder, parts.text_encoder):
            module.train().requires_grad_(requires_grad=True)
        parts.transformer.rope.freqs.requires_grad = False
        return parts

    @property
    def first_stage_s(self) -> float:
        """Returns the seconds of the autoencoder's training."""
        return self.autoencoder_s

    def first_stage(self) -> None:
        """Trains the autoencoder, unless that is done."""
        if self.clock.elapsed_s >= self.autoencoder_s and self.stage1.step:
            self._share_autoencoder()
            return
        self.stage1.run(self._clips(), lambda: self.clock.elapsed_s / self.autoencoder_s, self.after_step)
        self._share_autoencoder()
        self.write_checkpoint()
        for bucket in self.buckets[:2]:
            report = report_autoencoder(self.autoencoder, bucket.size, num_clips=self.options.check_prompts)
            _LOG.info("autoencoder %s: %s", bucket.name, {name: round(value, 4) for name, value in report.items()})

    def _share_autoencoder(self) -> None:
        self.autoencoder.requires_grad_(requires_grad=False)
        self.averaged.autoencoder.load_state_dict(self.autoencoder.state_dict())

    def _clips(self) -> Iterator[Tensor]:
        while True:
            for batch in self.feed.batches()[1]:
                yield batch.data

    def last_checks(self) -> None:
        """Checks with shifted noise levels too."""
        for shift in (2.0, 3.0):
            render = self.renderer(random.Random(self.stage.step), shift=shift)
            self.check(render, f" with timesteps shifted by {shift:g}")

    def renderer(self, seeds: random.Random, *, shift: float = 1.0) -> Callable[[Sequence[str]], Tensor]:
        """Returns what renders prompts with the averaged parts."""
        settings = SampleSettings(size=self.buckets[0].size, shift=shift)

        def render(prompts: Sequence[str]) -> Tensor:
            return render_prompts(self.averaged, prompts, seed=seeds.getrandbits(40), settings=settings)

        return render

    def save(self, path: Path) -> None:
        """Writes the averaged parts."""
        save_demo(self.averaged, path)

    def steps(self) -> list[int]:
        """Returns the steps of both stages."""
        return [self.stage1.step, self.stage.step]

    def set_steps(self, steps: list[int]) -> None:
        """Sets the steps of both stages."""
        self.stage1.step, self.stage.step = steps

    def stateful(self) -> dict[str, Any]:
        """Returns parts, averages and optimisers."""
        return {
            "autoencoder": self.autoencoder,
            "autoencoder_optimiser": self.stage1.optimiser,
            "transformer": self.parts.transformer,
            "text_encoder": self.parts.text_encoder,
            "direction_probe": self.model.direction_probe,
            "averaged_transformer": self.averaged.transformer,
            "averaged_text_encoder": self.averaged.text_encoder,
            "transformer_optimiser": self.stage.optimiser,
        }


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m pab.families.demo.training.train", description=__doc__)
    common_options(parser, DemoTraining.weights_name)
    parser.add_argument(
        "--start-from", type=Path, help="a demo.safetensors to go on from; its autoencoder stays as it is"
    )
    parser.add_argument(
        "--autoencoder-from", type=Path, help="a demo.safetensors whose autoencoder is taken as it is; the rest is new"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains from the command line. Returns 0, also when the call ended before the training did."""
    return train_from_the_command_line(DemoTraining, parse_options(arguments))


if __name__ == "__main__":
    sys.exit(main())
