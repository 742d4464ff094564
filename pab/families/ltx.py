"""LTX-Video 0.9.0 and 0.9.1, text to video (arXiv 2501.00103), through the diffusers library.

No broadcast ranges are published for it: they are those of the nearest model of arXiv 2408.12588, one with 3-D full
attention (2 for self attention, 6 for cross attention). The window is what lies between the first and the last 15 % of
the steps of the default clip, as that paper found; what they do to LTX-Video's videos has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pab.checkpoint import checkpoint_digest, find_checkpoint, pin
from pab.family import ClipDefaults, ClipLimits, ClipRequest, CostFigures, Family, LoadRequest, MemoryFigures
from pab.ltx.levels import MIN_STEPS, NUM_TRAIN_TIMESTEPS, moved_timesteps
from pab.ltx.weights import LTX_WEIGHTS
from pab.rules import NO_BROADCAST, pyramid
from pab.sites import ltx_sites

if TYPE_CHECKING:
    from pab.model import VideoModel

MAX_TEXT_TOKENS = 128
WINDOW = (750, 990)


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxModel:
    """A published model: its name, and how deep its transformer is."""

    name: str
    num_layers: int


def ltx_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens: 32x32 pixels each, of the first frame and of every eight that follow."""
    return ((num_frames - 1) // 8 + 1) * (height // 32) * (width // 32)


def ltx_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns the timesteps: float32 values that depend on the clip's size, embedded in float32 in any precision."""
    return moved_timesteps(request.num_steps, ltx_tokens(request.num_frames, request.height, request.width))


def ltx_family(model: LtxModel) -> Family:
    """Returns the family of one model."""

    def load(request: LoadRequest) -> VideoModel:
        from pab.ltx.load import load_ltx

        return load_ltx(find_checkpoint(request.weights, LTX_WEIGHTS), request, model)

    return Family(
        name=model.name,
        summary="LTX-Video 2B (0.9.0, 0.9.1), text to video, 8n+1 frames up to 704x1280",
        defaults=ClipDefaults(
            num_frames=161,
            height=512,
            width=704,
            fps=25,
            num_steps=50,
            guidance_scale=3.0,
            broadcast="pab2-6",
        ),
        limits=ClipLimits(
            num_frames=range(9, 258, 8),
            height=range(32, 1281, 32),
            width=range(32, 1281, 32),
            fps=range(1, 61),
            num_steps=range(MIN_STEPS, NUM_TRAIN_TIMESTEPS + 1),
            guidance_scale=(1.0, 30.0),
            max_tokens=ltx_tokens(257, 704, 1280),
            max_prompt_chars=4000,
            images=True,
        ),
        sites=ltx_sites(model.num_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2-6": pyramid(2, None, 6, window=WINDOW),
            "pab3-6": pyramid(3, None, 6, window=WINDOW),
        },
        timesteps=ltx_timesteps,
        num_tokens=ltx_tokens,
        cost=_COST,
        load=load,
        weights_digest=lambda weights: checkpoint_digest(weights, LTX_WEIGHTS),
        pin=lambda weights: pin(weights, LTX_WEIGHTS),
    )


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches, 161 frames.
_COST = CostFigures(
    load_s=60.0,
    linear_s=1.7e-5,
    quadratic_s=1.9e-7,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.52, "cross": 0.09, "mlp": 0.36},
    decode_s_per_pixel=1e-7,
    memory=MemoryFigures(parameters=2.3e9, width=2048),
)

LTX_MODEL = LtxModel(name="ltx", num_layers=28)
LTX = ltx_family(LTX_MODEL)
