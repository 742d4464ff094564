"""Trains the demo model from nothing: autoencoder, then transformer and text encoder.

Run as `python -m pab.families.demo.training.train --out DIR --minutes N`; with --stop-after-minutes a call ends early,
and a later call with --resume goes on. Rates decay over the training time of all calls together.
"""

import argparse
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from pab.families.demo.training.check import CheckResult, check_attributes
from pab.families.demo.training.feed import Feed, FeedSettings, training_buckets
from pab.families.demo.training.sample import SampleSettings, render_prompts
from pab.families.demo.training.train_autoencoder import AutoencoderTraining, report_autoencoder
from pab.families.demo.training.train_transformer import TransformerTraining, initialise
from pab.families.demo.weights import DemoParts, build_parts, demo_config, load_demo, save_demo

_LOG = logging.getLogger("pab.families.demo.training.train")
_CHECKPOINT_EVERY_S = 60.0
_LOG_EVERY_S = 10.0


class StopCallError(Exception):
    """Says that the time of one call is over; the training goes on in another."""


@dataclass(slots=True)
class Clock:
    """Training time: what earlier calls took plus this one's, and when this call has to end."""

    earlier_s: float
    stop_after_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def call_s(self) -> float:
        """Returns the seconds of this call."""
        return time.monotonic() - self.started

    @property
    def elapsed_s(self) -> float:
        """Returns the seconds of all calls."""
        return self.earlier_s + self.call_s

    def stop_if_over(self) -> None:
        """Raises StopCallError once this call's time is over."""
        if self.call_s >= self.stop_after_s:
            raise StopCallError


class DemoTraining:
    """The whole run: its stages, its clock, its checkpoint."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Sets up from the command line and, with --resume, from the checkpoint."""
        self.options = options
        self.device = torch.device(options.device)
        self.checkpoint_path: Path = options.out / "checkpoint.pt"
        self.total_s = options.minutes * 60
        self.autoencoder_s = min(0.15 * self.total_s, 180.0)
        self.check_every_s = max(options.check_every_minutes * 60, 1.0)
        self.clock = Clock(earlier_s=0.0, stop_after_s=(options.stop_after_minutes or 1e9) * 60)
        cuda = self.device.type == "cuda"
        torch.manual_seed(options.seed)
        parts = self._starting_parts()
        for module in (parts.transformer, parts.autoencoder, parts.text_encoder):
            module.to(self.device)
        self.stage1 = AutoencoderTraining.create(parts.autoencoder, fused=cuda)
        if options.start_from or options.autoencoder_from:
            self.autoencoder_s, self.stage1.step = 0.0, 1
        self.stage2 = TransformerTraining.create(
            parts, compiled=options.compile and cuda, graphs=options.graphs and cuda
        )
        self.buckets = training_buckets(small=options.small)
        settings = FeedSettings(
            seed=options.seed,
            buckets=self.buckets,
            batches_per_chunk=16 if cuda else 2,
            max_words=parts.text_encoder.config.max_words,
        )
        self.feed = Feed(settings, self.device, num_workers=options.workers if cuda else 0)
        self.queued: torch.cuda.Event | None = None
        self.written_s = self.checked_s = 0.0
        self._resume()

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

    def run(self) -> CheckResult | None:
        """Trains until the minutes are over. Returns the last check, or None if this call ended before that."""
        try:
            self._run_autoencoder()
            self._run_transformer()
        except StopCallError:
            self.write_checkpoint()
            save_demo(self.stage2.averaged, self.options.out / "demo.safetensors")
            _LOG.info("stopped after %.0f s of %.0f s: go on with --resume", self.clock.elapsed_s, self.total_s)
            return None
        self.write_checkpoint()
        save_demo(self.stage2.averaged, self.options.out / "demo.safetensors")
        result = self._check()
        for shift in (2.0, 3.0):
            _LOG.info("check with timesteps shifted by %g: %s", shift, self._check(shift=shift).summary())
        return result

    def _run_autoencoder(self) -> None:
        if self.clock.elapsed_s >= self.autoencoder_s and self.stage1.step:
            self._share_autoencoder()
            return
        self.stage1.run(self._clips(), lambda: self.clock.elapsed_s / self.autoencoder_s, self._after_step)
        self._share_autoencoder()
        self.write_checkpoint()
        for bucket in self.buckets[:2]:
            report = report_autoencoder(self.stage1.autoencoder, bucket.size, num_clips=self.options.check_prompts)
            _LOG.info("autoencoder %s: %s", bucket.name, {name: round(value, 4) for name, value in report.items()})

    def _share_autoencoder(self) -> None:
        self.stage1.autoencoder.requires_grad_(requires_grad=False)
        self.stage2.averaged.autoencoder.load_state_dict(self.stage1.autoencoder.state_dict())

    def _clips(self) -> Iterator[Tensor]:
        while True:
            for batch in self.feed.batches()[1]:
                yield batch.data

    def _run_transformer(self) -> None:
        _LOG.info("transformer: from step %d", self.stage2.step)
        since_s, since_step, num_clips = time.monotonic(), self.stage2.step, 0
        while self.clock.elapsed_s < self.total_s:
            bucket, batches = self.feed.latents(self.stage1.autoencoder)
            for batch in batches:
                self.stage2.train_batch(bucket, batch, self._progress())
                num_clips += len(batch.data)
            self._synchronise()
            if time.monotonic() - since_s > _LOG_EVERY_S:
                steps, seconds = self.stage2.step - since_step, time.monotonic() - since_s
                self._log_progress(steps, seconds, num_clips)
                since_s, since_step, num_clips = time.monotonic(), self.stage2.step, 0
            self._after_step()
            if self.clock.elapsed_s - self.checked_s >= self.check_every_s:
                self.checked_s = self.clock.elapsed_s
                self._check()

    def _progress(self) -> float:
        return (self.clock.elapsed_s - self.autoencoder_s) / (self.total_s - self.autoencoder_s)

    def _log_progress(self, steps: int, seconds: float, num_clips: int) -> None:
        loss = float(self.stage2.loss_sum) / steps
        self.stage2.loss_sum.zero_()
        _LOG.info(
            "step %d (%.0f s of %.0f s): loss %.4f, %.1f steps/s, %.0f clips/s, rate %.2g",
            self.stage2.step,
            self.clock.elapsed_s,
            self.total_s,
            loss,
            steps / seconds,
            num_clips / seconds,
            self.stage2.optimiser.param_groups[0]["lr"],
        )

    def _synchronise(self) -> None:
        # Waits for the chunk before the last: the clock stays honest, and the device always has a chunk to go on with.
        if self.device.type == "cuda":
            earlier, self.queued = self.queued, torch.cuda.Event()
            self.queued.record()
            if earlier is not None:
                earlier.synchronize()

    def _after_step(self) -> None:
        self.clock.stop_if_over()
        if self.clock.elapsed_s - self.written_s >= _CHECKPOINT_EVERY_S:
            self.write_checkpoint()

    def _check(self, shift: float = 1.0) -> CheckResult:
        settings = SampleSettings(size=self.buckets[0].size, shift=shift)
        seeds = random.Random(self.stage2.step)

        def render(prompts: Sequence[str]) -> Tensor:
            return render_prompts(self.stage2.averaged, prompts, seed=seeds.getrandbits(40), settings=settings)

        started = time.monotonic()
        result = check_attributes(render, num_prompts=self.options.check_prompts, batch_size=64)
        _LOG.info(
            "check at step %d, shift %g: %s (%.1f s)",
            self.stage2.step,
            shift,
            result.summary(),
            time.monotonic() - started,
        )
        return result

    def write_checkpoint(self) -> None:
        """Writes all that --resume needs; the file appears whole or not at all."""
        self.written_s = self.clock.elapsed_s
        state = {
            "elapsed_s": self.clock.elapsed_s,
            "checked_s": self.checked_s,
            "drawn_chunks": self.feed.drawn_chunks,
            "steps": [self.stage1.step, self.stage2.step],
            **{name: module.state_dict() for name, module in self._stateful().items()},
        }
        unfinished = self.checkpoint_path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint_path)

    def _resume(self) -> None:
        if not self.checkpoint_path.exists():
            return
        if not self.options.resume:
            raise FileExistsError(f"{self.checkpoint_path} exists: add --resume to go on, or choose another --out")
        state: dict[str, Any] = torch.load(self.checkpoint_path, map_location=self.device, weights_only=True)
        for name, module in self._stateful().items():
            module.load_state_dict(state[name])
        self.clock.earlier_s = self.written_s = state["elapsed_s"]
        self.checked_s = state["checked_s"]
        self.feed.drawn_chunks = state["drawn_chunks"]
        self.stage1.step, self.stage2.step = state["steps"]
        torch.manual_seed(self.options.seed + self.stage2.step)
        _LOG.info("resumed at %.0f s, steps %s", state["elapsed_s"], state["steps"])

    def _stateful(self) -> dict[str, Any]:
        return {
            "autoencoder": self.stage1.autoencoder,
            "autoencoder_optimiser": self.stage1.optimiser,
            "transformer": self.stage2.parts.transformer,
            "text_encoder": self.stage2.parts.text_encoder,
            "direction_probe": self.stage2.model.direction_probe,
            "averaged_transformer": self.stage2.averaged.transformer,
            "averaged_text_encoder": self.stage2.averaged.text_encoder,
            "transformer_optimiser": self.stage2.optimiser,
        }


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m pab.families.demo.training.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt and demo.safetensors")
    parser.add_argument("--minutes", type=float, required=True, help="training time of all calls together")
    parser.add_argument("--stop-after-minutes", type=float, help="end this call after so many minutes")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    parser.add_argument(
        "--start-from", type=Path, help="a demo.safetensors to go on from; its autoencoder stays as it is"
    )
    parser.add_argument(
        "--autoencoder-from", type=Path, help="a demo.safetensors whose autoencoder is taken as it is; the rest is new"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a tiny model on tiny clips, to try the script")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile blocks (CUDA)")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True, help="use CUDA graphs")
    parser.add_argument("--workers", type=int, default=4, help="processes that plan training data (CUDA)")
    parser.add_argument("--check-every-minutes", type=float, default=3.0)
    parser.add_argument("--check-prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains from the command line. Returns 0, also when the call ended before the training did."""
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    if not options.device.startswith("cuda"):
        result = _train(options)
    else:
        torch.backends.cudnn.benchmark = True
        torch._dynamo.config.recompile_limit = 64  # two kinds of block, one graph per size each
        # One stream for everything: what is captured, replayed and run eagerly stays in order.
        with torch.cuda.stream(torch.cuda.Stream()):
            result = _train(options)
    if result is not None:
        sys.stdout.write(result.table() + "\n")
    return 0


def _train(options: argparse.Namespace) -> CheckResult | None:
    training = DemoTraining(options)
    try:
        return training.run()
    finally:
        training.feed.close()


if __name__ == "__main__":
    sys.exit(main())
