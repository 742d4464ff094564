"""Sizes and constants of the published Wan models, and how they differ. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pab.families.wan.levels import shifted_timesteps
from pab.family import FIGURES_FILE, ClipRequest, CostFigures, MemoryFigures, read_figures

MAX_TEXT_TOKENS = 512


LARGE_PIXELS = 480 * 832
"""Frames of more pixels take the larger shift of the noise levels, where a model has two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WanModel:
    """How the published models differ. `shifts`: of the noise levels, up to 480p and beyond.

    `boundary`: the timestep below which a second transformer takes over, None for a model that has one. `pixel_stride`:
    pixels of a latent's side. `timed_tokens`: whether the transformer takes a timestep for every token.
    """

    name: str
    summary: str
    hub_id: str
    num_layers: int
    shifts: tuple[float, float]
    height: int
    width: int
    num_steps: int
    guidance_scale: float
    cost: CostFigures
    boundary: float | None = None
    num_frames: int = 81
    fps: int = 16
    latent_channels: int = 16
    pixel_stride: int = 8
    timed_tokens: bool = False

    @property
    def token_side(self) -> int:
        """Pixels of a token's side."""
        return 2 * self.pixel_stride

    def num_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Counts latent tokens after patching: of the first frame and of every four that follow."""
        return ((num_frames - 1) // 4 + 1) * (height // self.token_side) * (width // self.token_side)

    def shift(self, height: int, width: int) -> float:
        """Returns the shift of a clip's noise levels."""
        return self.shifts[height * width > LARGE_PIXELS]

    def timesteps(self, request: ClipRequest, _precision: str) -> tuple[float, ...]:
        """Returns UniPC's timesteps: whole numbers, embedded in float32 whatever the model's precision."""
        return shifted_timesteps(request.num_steps, self.shift(request.height, request.width))

    def cache_reset_steps(self, request: ClipRequest, precision: str) -> tuple[int, ...]:
        """Returns the step at which the second transformer takes over, if there is one."""
        below = [timestep < (self.boundary or 0) for timestep in self.timesteps(request, precision)]
        return (below.index(True),) if True in below[1:] and not below[0] else ()


FIGURES = read_figures(Path(__file__).with_name(FIGURES_FILE))


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak, both guidance branches.
_COST_5B = CostFigures(
    measured=None,
    load_s=120.0,
    linear_s=5e-5,
    quadratic_s=1.24e-9,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.16, "cross": 0.17, "mlp": 0.59},
    decode_s_per_pixel=3e-7,
    memory=MemoryFigures(measured=None, parameters=5.0e9, width=3072, rows_per_pass=1),
)


WAN_MODEL = WanModel(
    name="wan",
    summary="Wan 2.1 1.3B, text to video, 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    num_layers=30,
    shifts=(3.0, 5.0),
    height=480,
    width=832,
    num_steps=50,
    guidance_scale=5.0,
    cost=FIGURES["wan"][0],
)


WAN_14B_MODEL = WanModel(
    name="wan_14b",
    summary="Wan 2.1 14B, text to video, 720x1280 or 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    num_layers=40,
    shifts=(3.0, 5.0),
    height=720,
    width=1280,
    num_steps=50,
    guidance_scale=5.0,
    cost=FIGURES["wan_14b"][0],
)


WAN22_A14B_MODEL = WanModel(
    name="wan22_a14b",
    summary="Wan 2.2 A14B, text to video with two experts, 720x1280 or 480x832, 4n+1 frames",
    hub_id="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    num_layers=40,
    shifts=(12.0, 12.0),
    height=720,
    width=1280,
    num_steps=40,
    guidance_scale=4.0,
    # Its experts are transformers of Wan 2.1's size; itself it was not measured.
    cost=replace(
        FIGURES["wan_14b"][0],
        measured=None,
        load_s=360.0,
        memory=MemoryFigures(measured=None, parameters=28.8e9, width=5120, rows_per_pass=1),
    ),
    boundary=875.0,
)


WAN22_5B_MODEL = WanModel(
    name="wan22_5b",
    summary="Wan 2.2 TI2V 5B, text to video, 704x1280 at 24 frames per second, 4n+1 frames",
    hub_id="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    num_layers=30,
    shifts=(5.0, 5.0),
    height=704,
    width=1280,
    num_steps=50,
    guidance_scale=5.0,
    cost=_COST_5B,
    num_frames=121,
    fps=24,
    latent_channels=48,
    pixel_stride=16,
    timed_tokens=True,
)
