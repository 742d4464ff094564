"""The small trained model that ships with the project: an STDiT3 that draws coloured shapes in motion.

It is a small configuration of the very class that Open-Sora 1.2 uses, so everything runs whole on a laptop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pab.family import MAX_BATCH, ClipDefaults, ClipLimits, ClipRequest, CostFigures, Family, LoadRequest, MemoryFigures
from pab.foresight import FORESIGHT_PRESETS
from pab.plan import Site
from pab.rectified_flow import round_to, timesteps
from pab.references import ReferenceRules
from pab.rules import NO_BROADCAST, MlpRule, pyramid
from pab.sites import stdit3_sites
from pab.step_rules import StepGroup, StepRules
from pab.weights import weights_digest

if TYPE_CHECKING:
    from pab.model import VideoModel

DEPTH = 5
LATENT_STRIDE = (2, 4, 4)
PATCH = (1, 2, 2)
WEIGHTS = Path(__file__).parent.parent / "demo" / "demo.safetensors"


def demo_sites(depth: int = DEPTH) -> tuple[Site, ...]:
    """Returns the sites of the demo transformer in running order."""
    return stdit3_sites(depth)


def demo_timesteps(request: ClipRequest, precision: str) -> tuple[float, ...]:
    """Returns uniform noise levels, as the model sees them."""
    return tuple(round_to(precision, level) for level in timesteps(request.num_steps))


def demo_tokens(num_frames: int, height: int, width: int) -> int:
    """Counts latent tokens after patching."""
    return (num_frames // 2) * -(-height // 8) * -(-width // 8)


def load_demo_model(request: LoadRequest) -> VideoModel:
    """Loads the shipped weights, or those in the file or folder that `request.weights` names."""
    from pab.demo.load import load_video_model

    return load_video_model(weights_path(request.weights), request)


def weights_path(weights: str | None) -> Path:
    """Returns the safetensors file meant by `--weights`. Raises FileNotFoundError naming what is missing."""
    path = WEIGHTS if weights is None else Path(weights)
    if path.is_dir():
        path = path / "demo.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} does not exist; the demo family needs a demo.safetensors")
    return path


_MLP = tuple(
    MlpRule(stack=stack, blocks=(0, 1), skip_count=2, position=position)
    for stack in ("spatial", "temporal")
    for position in (13 / 30, 17 / 30, 21 / 30)
)
_WINDOW = (450, 930)

_CALIBRATED = StepRules(
    family="demo",
    num_steps=30,
    passes=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 17, 18, 20, 22, 24, 26, 27, 28, 29),
    groups=(
        StepGroup(
            kind="cross",
            stack="spatial",
            compute=(0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 17, 20, 22, 24, 26, 28, 29),
        ),
        StepGroup(
            kind="cross",
            stack="temporal",
            compute=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 17, 18, 20, 22, 24, 26, 28, 29),
        ),
    ),
)
"""What `calibrate` found for at most the work of PAB246 (docs/calibrate.md has the command and what it does)."""

DEMO_REFERENCES = ReferenceRules(
    chunk_frames=LATENT_STRIDE[0],
    chunk_latents=1,
    latent_frames=lambda num_frames: -(-num_frames // LATENT_STRIDE[0]),
    align=None,
    condition_frame_length=2,  # two latent frames say which way a shape moves, one does not
)

DEMO = Family(
    name="demo",
    summary="coloured shapes in motion, 64x64, a small model that ships with the project",
    defaults=ClipDefaults(
        num_frames=16, height=64, width=64, fps=8, num_steps=30, guidance_scale=4.0, broadcast="pab246"
    ),
    limits=ClipLimits(
        num_frames=range(8, 33, 8),
        height=range(32, 129, 16),
        width=range(32, 129, 16),
        fps=range(1, 61),
        num_steps=range(1, 101),
        guidance_scale=(1.0, 20.0),
        max_tokens=4096,
        max_prompt_chars=500,
    ),
    sites=demo_sites(),
    presets={
        "none": NO_BROADCAST,
        "pab246": pyramid(2, 4, 6, window=_WINDOW, mlp=_MLP),
        "pab357": pyramid(3, 5, 7, window=_WINDOW, mlp=_MLP),
        "pab579": pyramid(5, 7, 9, window=_WINDOW, mlp=_MLP),
        "calibrated": _CALIBRATED,
        **FORESIGHT_PRESETS,
    },
    keeps_blocks=True,
    timesteps=demo_timesteps,
    num_tokens=demo_tokens,
    cost=CostFigures(
        load_s=2.0,
        linear_s=4e-4,
        quadratic_s=0.0,
        fixed_step_s=0.02,
        kind_shares={"spatial": 0.2, "temporal": 0.2, "cross": 0.2, "mlp": 0.4},
        decode_s_per_pixel=5e-6,
        memory=MemoryFigures(parameters=7.8e6, width=192),
    ),
    load=load_demo_model,
    references=DEMO_REFERENCES,
    weights_digest=lambda weights: weights_digest(weights_path(weights)),
    precisions=("float32", "bfloat16"),
    compiles=True,
    max_batch=MAX_BATCH,
)
