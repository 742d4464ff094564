"""Sizes and constants of the demo model, and where its weights are. No torch here."""

from __future__ import annotations

from pathlib import Path

from pab.conditioning.references import ReferenceRules
from pab.family import FIGURES_FILE, ClipDefaults, ClipLimits, ClipRequest, read_figures
from pab.sampling.rectified_flow import round_to, timesteps

DEPTH = 5

LATENT_STRIDE = (2, 4, 4)

WEIGHTS = Path(__file__).with_name("demo.safetensors")

DEMO_CLIP = ClipDefaults(num_frames=16, height=64, width=64, fps=8, num_steps=30, guidance_scale=4.0, broadcast="half")
DEMO_LIMITS = ClipLimits(
    num_frames=range(8, 33, 8),
    height=range(32, 129, 16),
    width=range(32, 129, 16),
    fps=range(1, 61),
    num_steps=range(1, 101),
    guidance_scale=(1.0, 20.0),
    max_tokens=4096,
    max_prompt_chars=500,
)
"""Of `demo_wan` too, which has its text encoder and its autoencoder."""

FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))


def demo_timesteps(request: ClipRequest, precision: str) -> tuple[float, ...]:
    """Returns uniform noise levels, as the model sees them."""
    return tuple(round_to(precision, level) for level in timesteps(request.num_steps))


def demo_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching."""
    return (num_frames // 2) * -(-height // 8) * -(-width // 8)


def weights_path(weights: str | None) -> Path:
    """Returns the safetensors file meant by `--weights`. Raises FileNotFoundError naming what is missing."""
    path = WEIGHTS if weights is None else Path(weights)
    if path.is_dir():
        path = path / "demo.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} does not exist; the demo family needs a demo.safetensors")
    return path


DEMO_REFERENCES = ReferenceRules(
    chunk_frames=LATENT_STRIDE[0],
    chunk_latents=1,
    latent_frames=lambda num_frames: -(-num_frames // LATENT_STRIDE[0]),
    align=None,
    condition_frame_length=2,  # two latent frames say which way a shape moves, one does not
)
