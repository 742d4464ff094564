"""Sizes and constants of LTX-2. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from pab.family import ClipRequest, CostFigures, MemoryFigures
from pab.library.stretched_levels import moved_timesteps

FRAME_STRIDE, PIXEL_STRIDE = 8, 32
LATENT_CHANNELS = 128
SOUND_CHANNELS, SOUND_BINS = 8, 16
"""Of a latent of sound."""
SOUND_LATENTS_PER_S = 16000 / 160 / 4.0
"""16,000 samples a second, 160 to a column of the spectrogram, 4 columns to a latent."""
NUM_FRAMES, HEIGHT, WIDTH = 121, 512, 768
"""Of the default clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ltx2Model:
    """A published model: its name, how deep its transformer is, and how many tokens of a prompt it reads."""

    name: str
    num_layers: int
    max_text_tokens: int = 1024


LTX2_MODEL = Ltx2Model(name="ltx2", num_layers=48)


def video_latents(num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Returns how many latent frames, rows and columns a clip has."""
    return (num_frames - 1) // FRAME_STRIDE + 1, height // PIXEL_STRIDE, width // PIXEL_STRIDE


def ltx2_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts the video's tokens: 32x32 pixels each, of the first frame and of every eight that follow."""
    frames, rows, columns = video_latents(num_frames, height, width)
    return frames * rows * columns


def sound_latents(num_frames: int, fps: int) -> int:
    """Counts the latents of a clip's sound, which are its tokens: 25 in a second."""
    return round(num_frames / fps * SOUND_LATENTS_PER_S)


def ltx2_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns the timesteps: float32 values that depend on the clip's size, embedded in float32 in any precision."""
    return moved_timesteps(request.num_steps, ltx2_tokens(request.num_frames, request.height, request.width))


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches.
COST = CostFigures(
    measured=None,
    load_s=300.0,
    linear_s=1.3e-4,
    quadratic_s=3.97e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.25, "cross": 0.12, "mlp": 0.5},
    decode_s_per_pixel=1e-7,
    memory=MemoryFigures(measured=None, parameters=19.6e9, width=4096),
)
