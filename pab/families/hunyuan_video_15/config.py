"""Sizes and constants of HunyuanVideo 1.5, and how its two sizes differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from pab.families.hunyuan_video_15.weights import WEIGHTS_480P, WEIGHTS_720P
from pab.family import ClipRequest, CostFigures, MemoryFigures
from pab.library.even_levels import moved_timesteps
from pab.weights.checkpoint import Published

MAX_FRAMES = 241
"""Ten seconds, the longest that was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan15Model:
    """How the published models differ. `shift`: how far the noise levels are moved towards noise.

    `max_text_tokens`, `max_glyph_tokens`: how much of a prompt, and of the text that it shows, the encoders read.
    """

    name: str
    summary: str
    weights: Published
    num_layers: int
    shift: float
    height: int
    width: int
    window: tuple[int, int]
    cost: CostFigures
    max_text_tokens: int = 1000
    max_glyph_tokens: int = 256

    def timesteps(self, request: ClipRequest, _precision: str) -> tuple[float, ...]:
        """Returns the timesteps: float32 values, which the transformer rounds to its precision."""
        return moved_timesteps(request.num_steps, self.shift)


def hunyuan_video_15_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens: 16x16 pixels each, of the first frame and of every four that follow."""
    return ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches.
_COST_480P = CostFigures(
    measured=None,
    load_s=200.0,
    linear_s=2.8e-5,
    quadratic_s=2.23e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.33, "mlp": 0.66},
    decode_s_per_pixel=7e-7,
    memory=MemoryFigures(measured=None, parameters=8.3e9, width=2048, rows_per_pass=1),
)

MODEL_480P = Hunyuan15Model(
    name="hunyuan_video_15_480p",
    summary="HunyuanVideo 1.5 8B, text to video, 4n+1 frames of 480p, best at 121 of 480x848",
    weights=WEIGHTS_480P,
    num_layers=54,
    shift=5.0,
    height=480,
    width=848,
    window=(500, 968),
    cost=_COST_480P,
)
MODEL_720P = Hunyuan15Model(
    name="hunyuan_video_15_720p",
    summary="HunyuanVideo 1.5 8B, text to video, 4n+1 frames of 720p, best at 121 of 720x1280",
    weights=WEIGHTS_720P,
    num_layers=54,
    shift=9.0,
    height=720,
    width=1280,
    window=(640, 982),
    cost=_COST_480P,
)
