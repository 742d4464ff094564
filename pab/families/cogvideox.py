"""CogVideoX 2B and 5B, text to 49 frames of 480x720 (arXiv 2408.06072; presets of arXiv 2408.12588), through diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pab.checkpoint import checkpoint_digest, find_checkpoint, pin
from pab.cogvideox.levels import trailing_timesteps
from pab.cogvideox.weights import cogvideox_weights
from pab.family import ClipDefaults, ClipLimits, ClipRequest, CostFigures, Family, LoadRequest, MemoryFigures
from pab.rules import NO_BROADCAST, pyramid
from pab.sites import cogvideox_sites

if TYPE_CHECKING:
    from pab.model import VideoModel

MAX_TEXT_TOKENS = 226
NUM_FRAMES, HEIGHT, WIDTH = 49, 480, 720


@dataclass(frozen=True, slots=True, kw_only=True)
class CogVideoXModel:
    """What tells the published models apart. `rotary`: positions turn queries and keys, else they are added once.

    `snr_shift`: how far the noise levels are shifted towards noise.
    """

    name: str
    summary: str
    hub_id: str
    num_layers: int
    rotary: bool
    snr_shift: float
    cost: CostFigures


def cogvideox_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns DDIM's timesteps: whole numbers, embedded in float32 whatever the model's precision."""
    return trailing_timesteps(request.num_steps)


def cogvideox_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching: 16x16 pixels each, of the first frame and of every four that follow."""
    return ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def cogvideox_family(model: CogVideoXModel) -> Family:
    """Returns the family of one published model."""
    published = cogvideox_weights(model.hub_id)

    def load(request: LoadRequest) -> VideoModel:
        from pab.cogvideox.load import load_cogvideox

        return load_cogvideox(find_checkpoint(request.weights, published), request, model)

    return Family(
        name=model.name,
        summary=model.summary,
        defaults=ClipDefaults(
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            fps=8,
            num_steps=50,
            guidance_scale=6.0,
            broadcast="pab2",
        ),
        limits=ClipLimits(
            # The VAE decodes an odd number of latent frames.
            num_frames=range(9, NUM_FRAMES + 1, 8),
            height=range(16, 769, 16),
            width=range(16, 769, 16),
            fps=range(1, 61),
            num_steps=range(1, 1001),
            guidance_scale=(1.0, 30.0),
            max_tokens=cogvideox_tokens(NUM_FRAMES, HEIGHT, WIDTH),
            max_prompt_chars=4000,
        ),
        sites=cogvideox_sites(model.num_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2": pyramid(2, None, None, window=(100, 850)),
            "pab3": pyramid(3, None, None, window=(100, 850)),
        },
        timesteps=cogvideox_timesteps,
        num_tokens=cogvideox_tokens,
        cost=model.cost,
        load=load,
        weights_digest=lambda weights: checkpoint_digest(weights, published),
        pin=lambda weights: pin(weights, published),
    )


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches, 49 frames.
_COST_2B = CostFigures(
    load_s=60.0,
    linear_s=1.7e-5,
    quadratic_s=5.7e-8,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.66, "mlp": 0.30},
    decode_s_per_pixel=5e-7,
    memory=MemoryFigures(parameters=1.9e9, width=1920),
)
_COST_5B = CostFigures(
    load_s=90.0,
    linear_s=5e-5,
    quadratic_s=1.28e-7,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.60, "mlp": 0.35},
    decode_s_per_pixel=5e-7,
    memory=MemoryFigures(parameters=5.8e9, width=3072),
)

COGVIDEOX_2B_MODEL = CogVideoXModel(
    name="cogvideox_2b",
    summary="CogVideoX 2B, text to video, up to 49 frames of 480x720",
    hub_id="THUDM/CogVideoX-2b",
    num_layers=30,
    rotary=False,
    snr_shift=3.0,
    cost=_COST_2B,
)
COGVIDEOX_5B_MODEL = CogVideoXModel(
    name="cogvideox_5b",
    summary="CogVideoX 5B, text to video, up to 49 frames of 480x720",
    hub_id="THUDM/CogVideoX-5b",
    num_layers=42,
    rotary=True,
    snr_shift=1.0,
    cost=_COST_5B,
)
COGVIDEOX_2B, COGVIDEOX_5B = (cogvideox_family(model) for model in (COGVIDEOX_2B_MODEL, COGVIDEOX_5B_MODEL))
