"""HunyuanVideo (arXiv 2412.03603) and SkyReels V1, which was made from it, text to video, through the diffusers library.

No broadcast ranges are published for them: they are those of the nearest model of arXiv 2408.12588, CogVideoX, whose
attention is joint as well. The window is what lies between the first and the last 15 % of the steps, as that paper found;
what they do to these models' videos has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pab.family import ClipDefaults, ClipLimits, ClipRequest, CostFigures, Family, LoadRequest, MemoryFigures
from pab.hunyuan_video.levels import NUM_TRAIN_TIMESTEPS, moved_timesteps
from pab.hunyuan_video.weights import HUNYUAN_VIDEO_WEIGHTS, SKYREELS_WEIGHTS, HunyuanWeights
from pab.rules import NO_BROADCAST, pyramid
from pab.sites import hunyuan_video_sites

if TYPE_CHECKING:
    from pab.model import VideoModel

WINDOW = (550, 975)
MAX_FRAMES, MAX_SHORT_SIDE, MAX_LONG_SIDE = 129, 720, 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanModel:
    """What tells the published models apart.

    `told_guidance`: the guidance scale that the transformer is told at every clip, in two branches that the clip's own
    scale drives apart. None: it is told the clip's own, in one pass, being distilled for that.
    """

    name: str
    summary: str
    weights: HunyuanWeights
    num_layers: int
    num_single_layers: int
    told_guidance: float | None
    num_frames: int
    height: int
    width: int
    cost: CostFigures


def hunyuan_video_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching: 16x16 pixels each, of the first frame and of every four that follow."""
    return ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def hunyuan_video_timesteps(request: ClipRequest, _precision: str) -> tuple[float, ...]:
    """Returns the timesteps: float32 values, embedded in float32 whatever the model's precision."""
    return moved_timesteps(request.num_steps)


def hunyuan_video_family(model: HunyuanModel) -> Family:
    """Returns the family of one published model."""

    def load(request: LoadRequest) -> VideoModel:
        from pab.hunyuan_video.load import load_hunyuan_video

        transformer, root = model.weights.find(request.weights)
        return load_hunyuan_video(transformer, root, request, model)

    return Family(
        name=model.name,
        summary=model.summary,
        defaults=ClipDefaults(
            num_frames=model.num_frames,
            height=model.height,
            width=model.width,
            fps=24,
            num_steps=50,
            guidance_scale=6.0,
            broadcast="pab2",
        ),
        limits=ClipLimits(
            num_frames=range(5, MAX_FRAMES + 1, 4),
            height=range(16, MAX_LONG_SIDE + 1, 16),
            width=range(16, MAX_LONG_SIDE + 1, 16),
            fps=range(1, 61),
            num_steps=range(1, NUM_TRAIN_TIMESTEPS + 1),
            guidance_scale=(1.0, 30.0),
            max_tokens=hunyuan_video_tokens(MAX_FRAMES, MAX_SHORT_SIDE, MAX_LONG_SIDE),
            max_prompt_chars=4000,
            images=True,
        ),
        sites=hunyuan_video_sites(model.num_layers, model.num_single_layers),
        presets={
            "none": NO_BROADCAST,
            "pab2": pyramid(2, None, None, window=WINDOW),
            "pab3": pyramid(3, None, None, window=WINDOW),
        },
        timesteps=hunyuan_video_timesteps,
        num_tokens=hunyuan_video_tokens,
        cost=model.cost,
        load=load,
        weights_digest=model.weights.digest,
        pin=model.weights.pin,
        embedded_guidance=model.told_guidance is None,
    )


# Not measured: estimates from operations at 40 % of an H200's bfloat16 peak. One pass a step at 129 frames, and two at 97.
_COST_ONE_PASS = CostFigures(
    load_s=240.0,
    linear_s=3.4e-5,
    quadratic_s=2.4e-7,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.88, "mlp": 0.03},
    decode_s_per_pixel=7e-7,
    memory=MemoryFigures(parameters=13.1e9, width=3072),
)
_COST_TWO_PASSES = CostFigures(
    load_s=240.0,
    linear_s=6.9e-5,
    quadratic_s=3.6e-7,
    fixed_step_s=0.0,
    kind_shares={"spatial": 0.80, "mlp": 0.05},
    decode_s_per_pixel=7e-7,
    memory=MemoryFigures(parameters=13.1e9, width=3072),
)

HUNYUAN_VIDEO_MODEL = HunyuanModel(
    name="hunyuan_video",
    summary="HunyuanVideo 13B, text to video, guidance distilled, 4n+1 frames up to 129 of 720x1280",
    weights=HUNYUAN_VIDEO_WEIGHTS,
    num_layers=20,
    num_single_layers=40,
    told_guidance=None,
    num_frames=129,
    height=720,
    width=1280,
    cost=_COST_ONE_PASS,
)
SKYREELS_V1_MODEL = HunyuanModel(
    name="skyreels_v1",
    summary="SkyReels V1, a HunyuanVideo with guidance in two branches, text to video, best at 97 frames of 544x960",
    weights=SKYREELS_WEIGHTS,
    num_layers=20,
    num_single_layers=40,
    told_guidance=1.0,
    num_frames=97,
    height=544,
    width=960,
    cost=_COST_TWO_PASSES,
)
HUNYUAN_VIDEO, SKYREELS_V1 = (hunyuan_video_family(model) for model in (HUNYUAN_VIDEO_MODEL, SKYREELS_V1_MODEL))
