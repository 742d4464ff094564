"""Stage 1 of training: the autoencoder, on clean clips, with noise on the latents so that near misses decode well."""

import logging
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pab.families.demo.autoencoder import Autoencoder
from pab.families.demo.scene import draw_scenes
from pab.families.demo.training.generator import ClipSize, draw_clips
from pab.families.demo.training.read_back import READ_ATTRIBUTES, read_scenes

_LOG = logging.getLogger(__name__)
_PEAK_RATE = 1.5e-3
_LATENT_NOISE = 0.15
_STATISTICS_MOMENTUM = 0.01
_WARM_UP_STEPS = 200


@dataclass(slots=True)
class AutoencoderTraining:
    """The autoencoder with its optimiser: everything that a checkpoint of stage 1 holds."""

    autoencoder: Autoencoder
    optimiser: torch.optim.AdamW
    step: int = 0

    @classmethod
    def create(cls, autoencoder: Autoencoder, *, fused: bool) -> "AutoencoderTraining":
        """Starts training from the autoencoder as it is."""
        optimiser = torch.optim.AdamW(autoencoder.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=fused)
        return cls(autoencoder=autoencoder, optimiser=optimiser)

    def train_batch(self, clips: Tensor, progress: float) -> Tensor:
        """Takes one step at `progress` 0..1 of the stage. Returns the mean absolute error of the pixels."""
        for group in self.optimiser.param_groups:
            group["lr"] = _rate(self.step, progress)
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=clips.device.type == "cuda"):
            raw = self.autoencoder.encode_raw(clips).float()
            latents = _normalise(self.autoencoder, raw)
            strength = torch.rand(len(latents), 1, 1, 1, 1, device=latents.device) * _LATENT_NOISE
            decoded = self.autoencoder.decode_raw(latents + strength * torch.randn_like(latents)).float()
        error = (decoded - clips).abs()
        (error.mean() + 2 * error.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.autoencoder.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return error.detach().mean()

    def run(self, batches: Iterator[Tensor], progress: Callable[[], float], checkpoint: Callable[[], None]) -> None:
        """Trains until progress reaches 1; calls `checkpoint` after every step (it decides whether to write)."""
        errors: list[Tensor] = []
        while (done := progress()) < 1:
            errors.append(self.train_batch(next(batches), done))
            if len(errors) == 500 or (self.step <= 20 and self.step % 10 == 0):
                mean = float(torch.stack(errors).mean())
                _LOG.info("autoencoder step %d (%.0f%%): mean error %.5f", self.step, 100 * done, mean)
                errors.clear()
            checkpoint()


def _rate(step: int, progress: float) -> float:
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return _PEAK_RATE * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def _normalise(autoencoder: Autoencoder, raw: Tensor) -> Tensor:
    # The batch's own statistics while training; their running mean is what inference uses.
    std, mean = torch.std_mean(raw, dim=(0, 2, 3, 4))
    with torch.no_grad():
        autoencoder.latents_mean.lerp_(mean, _STATISTICS_MOMENTUM)
        autoencoder.latents_std.lerp_(std, _STATISTICS_MOMENTUM)
    return (raw - mean[:, None, None, None]) / (std[:, None, None, None] + 1e-5)


@torch.no_grad()
def report_autoencoder(autoencoder: Autoencoder, size: ClipSize, *, num_clips: int = 64) -> dict[str, float]:
    """Returns the peak signal-to-noise ratio and how often each attribute is read right after a round trip."""
    scenes = draw_scenes(num_clips, random.Random("round trip"))
    clips = draw_clips(scenes, size, seed=0, device=autoencoder.latents_mean.device)
    decoded = autoencoder.decode(autoencoder.encode(clips))
    read = read_scenes(decoded)
    right = {
        name: sum(getattr(scene, name) == getattr(seen, name) for scene, seen in zip(scenes, read, strict=True))
        for name in READ_ATTRIBUTES
    }
    error = float(((decoded - clips) / 2).square().mean())
    rates = {name: count / num_clips for name, count in right.items()}
    return {"psnr_db": -10 * math.log10(max(error, 1e-10)), **rates}
