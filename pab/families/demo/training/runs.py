"""A run of training that may be cut into several calls: its clock, its data, what it logs, checks and writes."""

import argparse
import logging
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch._dynamo
from torch import Tensor, nn

from pab.families.demo.autoencoder import Autoencoder
from pab.families.demo.training.check import CheckResult, check_attributes
from pab.families.demo.training.feed import Feed, FeedSettings, training_buckets
from pab.families.demo.training.steps import ModelTraining

_LOG = logging.getLogger(__name__)
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


class TrainingRun(ABC):
    """One model's run. A subclass makes the parts, then calls `_open`; `run` does the rest."""

    weights_name: ClassVar[str]
    """The file in --out that holds the averaged weights."""
    rounds_checkpoints: ClassVar[bool] = False
    """Whether a checkpoint holds its tensors in 16 bits, half as large."""
    stage: ModelTraining
    autoencoder: Autoencoder
    feed: Feed

    def __init__(self, options: argparse.Namespace) -> None:
        """Sets the clock from the command line."""
        self.options = options
        self.device = torch.device(options.device)
        self.checkpoint_path: Path = options.out / "checkpoint.pt"
        self.total_s = options.minutes * 60
        self.check_every_s = max(options.check_every_minutes * 60, 1.0)
        self.clock = Clock(earlier_s=0.0, stop_after_s=(options.stop_after_minutes or 1e9) * 60)
        self.buckets = training_buckets(small=options.small)
        self.queued: torch.cuda.Event | None = None
        self.written_s = self.checked_s = 0.0
        torch.manual_seed(options.seed)

    @abstractmethod
    def stateful(self) -> dict[str, Any]:
        """Returns what a checkpoint holds besides clock and counts: modules and optimisers by name."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Writes the averaged weights as they ship."""

    @abstractmethod
    def renderer(self, seeds: random.Random) -> Callable[[Sequence[str]], Tensor]:
        """Returns what renders prompts with the averaged weights, to clips [B, 3, T, H, W] in -1..1."""

    def first_stage(self) -> None:  # noqa: B027
        """Trains what comes before the transformer; nothing unless a subclass says so."""

    def last_checks(self) -> None:  # noqa: B027
        """Checks and logs more after the last check; nothing unless a subclass says so."""

    @property
    def first_stage_s(self) -> float:
        """Returns how much of the training time is the first stage's."""
        return 0.0

    @property
    def cuda(self) -> bool:
        """Tells whether training runs on a GPU."""
        return self.device.type == "cuda"

    def steps(self) -> list[int]:
        """Returns the steps of every stage."""
        return [self.stage.step]

    def set_steps(self, steps: list[int]) -> None:
        """Sets the steps of every stage, as a checkpoint has them."""
        (self.stage.step,) = steps

    def run(self) -> CheckResult | None:
        """Trains until the minutes are over. Returns the last check, or None if this call ended before that."""
        try:
            self.first_stage()
            self._train_transformer()
        except StopCallError:
            self.write_checkpoint()
            self.save(self.options.out / self.weights_name)
            _LOG.info("stopped after %.0f s of %.0f s: go on with --resume", self.clock.elapsed_s, self.total_s)
            return None
        self.write_checkpoint()
        self.save(self.options.out / self.weights_name)
        result = self.check()
        self.last_checks()
        return result

    def check(self, render: Callable[[Sequence[str]], Tensor] | None = None, note: str = "") -> CheckResult:
        """Renders held-out prompts, reads them back and logs the rates. `note` says in the log what is special."""
        started = time.monotonic()
        render = self.renderer(random.Random(self.stage.step)) if render is None else render
        result = check_attributes(render, num_prompts=self.options.check_prompts, batch_size=64)
        seconds = time.monotonic() - started
        _LOG.info("check at step %d%s: %s (%.1f s)", self.stage.step, note, result.summary(), seconds)
        return result

    def after_step(self) -> None:
        """Ends the call when its time is over, and writes a checkpoint now and then."""
        self.clock.stop_if_over()
        if self.clock.elapsed_s - self.written_s >= _CHECKPOINT_EVERY_S:
            self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Writes all that --resume needs; the file appears whole or not at all."""
        self.written_s = self.clock.elapsed_s
        state = {
            "elapsed_s": self.clock.elapsed_s,
            "checked_s": self.checked_s,
            "drawn_chunks": self.feed.drawn_chunks,
            "steps": self.steps(),
            **{name: self._held(module) for name, module in self.stateful().items()},
        }
        unfinished = self.checkpoint_path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint_path)

    def _held(self, module: Any) -> Any:
        state = module.state_dict()
        if not self.rounds_checkpoints:
            return state
        # Squares of gradients need the range of bfloat16; weights lose less in float16.
        return _rounded(state, torch.float16 if isinstance(module, nn.Module) else torch.bfloat16)

    def _open(self, max_words: int) -> None:
        # Starts the data and, with --resume, goes on from the checkpoint.
        settings = FeedSettings(
            seed=self.options.seed,
            buckets=self.buckets,
            batches_per_chunk=16 if self.cuda else 2,
            max_words=max_words,
        )
        self.feed = Feed(settings, self.device, num_workers=self.options.workers if self.cuda else 0)
        if not self.checkpoint_path.exists():
            return
        if not self.options.resume:
            raise FileExistsError(f"{self.checkpoint_path} exists: add --resume to go on, or choose another --out")
        state: dict[str, Any] = torch.load(self.checkpoint_path, map_location=self.device, weights_only=True)
        for name, module in self.stateful().items():
            module.load_state_dict(state[name])
        self.clock.earlier_s = self.written_s = state["elapsed_s"]
        self.checked_s = state["checked_s"]
        self.feed.drawn_chunks = state["drawn_chunks"]
        self.set_steps(state["steps"])
        torch.manual_seed(self.options.seed + self.stage.step)
        _LOG.info("resumed at %.0f s, steps %s", state["elapsed_s"], state["steps"])

    def _train_transformer(self) -> None:
        _LOG.info("transformer: from step %d", self.stage.step)
        since_s, since_step, num_clips = time.monotonic(), self.stage.step, 0
        while self.clock.elapsed_s < self.total_s:
            bucket, batches = self.feed.latents(self.autoencoder)
            for batch in batches:
                self.stage.train_batch(bucket, batch, self._progress())
                num_clips += len(batch.data)
            self._synchronise()
            if time.monotonic() - since_s > _LOG_EVERY_S:
                self._log_progress(self.stage.step - since_step, time.monotonic() - since_s, num_clips)
                since_s, since_step, num_clips = time.monotonic(), self.stage.step, 0
            self.after_step()
            if self.clock.elapsed_s - self.checked_s >= self.check_every_s:
                self.checked_s = self.clock.elapsed_s
                self.save(self.options.out / self.weights_name)
                self.check()

    def _progress(self) -> float:
        return (self.clock.elapsed_s - self.first_stage_s) / (self.total_s - self.first_stage_s)

    def _log_progress(self, steps: int, seconds: float, num_clips: int) -> None:
        loss = float(self.stage.loss_sum) / steps
        self.stage.loss_sum.zero_()
        _LOG.info(
            "step %d (%.0f s of %.0f s): loss %.4f, %.1f steps/s, %.0f clips/s, rate %.2g",
            self.stage.step,
            self.clock.elapsed_s,
            self.total_s,
            loss,
            steps / seconds,
            num_clips / seconds,
            self.stage.optimiser.param_groups[0]["lr"],
        )

    def _synchronise(self) -> None:
        # Waits for the chunk before the last: the clock stays honest, and the device always has a chunk to go on with.
        if self.cuda:
            earlier, self.queued = self.queued, torch.cuda.Event()
            self.queued.record()
            if earlier is not None:
                earlier.synchronize()


def _rounded(state: Any, dtype: torch.dtype) -> Any:
    if isinstance(state, dict):
        return {key: _rounded(value, dtype) for key, value in state.items()}
    if isinstance(state, torch.Tensor) and state.is_floating_point() and state.numel() > 1:
        return state.to(dtype)
    return state


def common_options(parser: argparse.ArgumentParser, weights_name: str) -> None:
    """Adds the options of every run of training."""
    parser.add_argument("--out", type=Path, required=True, help=f"folder for checkpoint.pt and {weights_name}")
    parser.add_argument("--minutes", type=float, required=True, help="training time of all calls together")
    parser.add_argument("--stop-after-minutes", type=float, help="end this call after so many minutes")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a tiny model on tiny clips, to try the script")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile blocks (CUDA)")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True, help="use CUDA graphs")
    parser.add_argument("--workers", type=int, default=4, help="processes that plan training data (CUDA)")
    parser.add_argument("--check-every-minutes", type=float, default=3.0)
    parser.add_argument("--check-prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)


def train_from_the_command_line(start: Callable[[argparse.Namespace], TrainingRun], options: argparse.Namespace) -> int:
    """Runs training on the device of the options, and prints the last check. Returns 0, also when the call ended early."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    if not options.device.startswith("cuda"):
        result = _train(start, options)
    else:
        torch.backends.cudnn.benchmark = True
        torch._dynamo.config.recompile_limit = 64  # one graph per kind of block and size
        # One stream for everything: what is captured, replayed and run eagerly stays in order.
        with torch.cuda.stream(torch.cuda.Stream()):
            result = _train(start, options)
    if result is not None:
        sys.stdout.write(result.table() + "\n")
    return 0


def _train(start: Callable[[argparse.Namespace], TrainingRun], options: argparse.Namespace) -> CheckResult | None:
    training = start(options)
    try:
        return training.run()
    finally:
        training.feed.close()
