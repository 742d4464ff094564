"""A small trained model of today's architecture: the library's own Wan transformer, which draws coloured shapes in motion.

3-D full attention, a pass for each guidance branch, flow matching with UniPC. Its text encoder and autoencoder are the
demo's. So what plans do to such models is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.broadcast.step_rules import StepRules
from pab.families.demo.config import DEMO_CLIP, DEMO_LIMITS
from pab.families.demo.words import MAX_WORDS, count_words, unknown_words
from pab.families.demo_wan.config import FLOW_SHIFT, demo_wan_timesteps, demo_wan_tokens
from pab.families.demo_wan.sites import demo_wan_sites
from pab.families.demo_wan.weights import demo_wan_digest, weights_path
from pab.family import CostFigures, Family, LoadRequest, MemoryFigures, QualityFloor

if TYPE_CHECKING:
    from pathlib import Path

    from pab.model import VideoModel


def load_model(request: LoadRequest) -> VideoModel:
    """Loads the shipped weights, or those in the file or folder that `request.weights` names."""
    from pab.families.demo_wan.load import load_demo_wan

    return load_demo_wan(weights_path(request.weights), request)


def write_tiny(folder: Path, seed: int) -> None:
    """Writes a narrow transformer with random weights."""
    from pab.families.demo_wan.tiny import write_small_demo_wan

    write_small_demo_wan(folder, seed)


_HALF = StepRules(
    family="demo_wan",
    num_steps=30,
    passes=(0, 1, 2, 3, 4, 5, 7, 10, 13, 17, 20, 24, 26, 28, 29),
    groups=(),
    residual=(
        (6, (0.8202, -0.016)),
        (8, ()),
        (9, (1.0,)),
        (11, ()),
        (12, ()),
        (14, ()),
        (15, ()),
        (18, ()),
        (19, ()),
        (21, ()),
        (22, ()),
        (25, ()),
        (27, (1.6269, -0.6278)),
    ),
)
"""What `calibrate` found for half of the calls (docs/calibrate.md): a residual stands in at 13 steps, predictions at 2."""

DEMO_WAN = Family(
    name="demo_wan",
    summary="coloured shapes in motion, 64x64, by a small Wan that ships with the project",
    defaults=DEMO_CLIP,
    limits=DEMO_LIMITS,
    sites=demo_wan_sites(),
    presets={
        "none": NO_BROADCAST,
        "pab2-6": pyramid(2, None, 6, window=(100, 850)),
        "pab3-6": pyramid(3, None, 6, window=(100, 850)),
        "half": _HALF,
        **FORESIGHT_PRESETS,
    },
    floor=QualityFloor(
        psnr_db=28.0,
        vmaf=50.0,
        source="docs/quality.md: its presets have 35 dB or more, plans that spoil clips 23 or less in one of them",
    ),
    timesteps=demo_wan_timesteps,
    num_tokens=demo_wan_tokens,
    cost=CostFigures(
        measured=None,
        load_s=5.0,
        # Of one core, by its operations.
        device="cpu",
        precision="float32",
        linear_s=6e-4,
        quadratic_s=6e-7,
        fixed_step_s=0.02,
        kind_shares={"spatial": 0.3, "cross": 0.22, "mlp": 0.42},
        decode_s_per_pixel=5e-6,
        memory=MemoryFigures(measured=None, parameters=9.0e6, width=256, rows_per_pass=1),
    ),
    load=load_model,
    weights_digest=demo_wan_digest,
    on_hub=False,
    libraries=("diffusers",),
    text_tokens=MAX_WORDS,
    count_words=count_words,
    unknown_words=unknown_words,
    precisions=("float32", "bfloat16"),
    gpu_precision="float32",
    compiles=True,
    keeps_blocks=True,
    flow_shift=lambda _height, _width: FLOW_SHIFT,
    write_tiny=write_tiny,
)
