"""The small trained model that ships with the project: an STDiT3 that draws coloured shapes in motion.

It is a small configuration of the very class that Open-Sora 1.2 uses, so everything runs whole on a laptop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST, MlpRule, pyramid
from pab.broadcast.step_rules import StepGroup, StepRules
from pab.families.demo.config import (
    DEMO_CLIP,
    DEMO_LIMITS,
    DEMO_REFERENCES,
    DEPTH,
    FIGURES,
    LATENT_STRIDE,
    demo_timesteps,
    demo_tokens,
    weights_path,
)
from pab.families.demo.words import MAX_WORDS, count_words_of_loops, unknown_words
from pab.families.open_sora.sites import stdit3_sites
from pab.family import (
    MAX_BATCH,
    CostFigures,
    Family,
    LoadRequest,
    MemoryFigures,
    QualityFloor,
)
from pab.weights.digest import weights_digest

if TYPE_CHECKING:
    from pab.model import VideoModel


def load_demo_model(request: LoadRequest) -> VideoModel:
    """Loads the shipped weights, or those in the file or folder that `request.weights` names."""
    from pab.families.demo.load import load_video_model

    return load_video_model(weights_path(request.weights), request)


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

_HALF = StepRules(
    family="demo",
    num_steps=30,
    passes=(0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 23, 26, 28, 29),
    groups=(),
    residual=(
        (5, (1.3616, -0.3932)),
        (7, ()),
        (9, ()),
        (11, ()),
        (12, ()),
        (14, (1.3635, -0.3619)),
        (15, (1.7429, -0.7412)),
        (17, (1.3737, -0.3752)),
        (18, (1.7752, -0.7768)),
        (21, (1.3123, -0.3117)),
        (22, (1.6416, -0.6358)),
        (24, (1.3646, -0.3616)),
        (25, (1.7947, -0.7825)),
        (27, (1.3539, -0.3467)),
    ),
)
"""What `calibrate` found for half of the calls (docs/calibrate.md): a residual stands in at 14 steps, a prediction at 1."""

DEMO = Family(
    name="demo",
    summary="coloured shapes in motion, 64x64, a small model that ships with the project",
    defaults=DEMO_CLIP,
    limits=DEMO_LIMITS,
    sites=stdit3_sites(DEPTH),
    presets={
        "none": NO_BROADCAST,
        "pab246": pyramid(2, 4, 6, window=_WINDOW, mlp=_MLP),
        "pab357": pyramid(3, 5, 7, window=_WINDOW, mlp=_MLP),
        "pab579": pyramid(5, 7, 9, window=_WINDOW, mlp=_MLP),
        "calibrated": _CALIBRATED,
        "half": _HALF,
        **FORESIGHT_PRESETS,
    },
    floor=QualityFloor(
        psnr_db=26.0, vmaf=50.0, source="docs/quality.md: its presets have 29 dB or more, plans that spoil clips less"
    ),
    keeps_blocks=True,
    timesteps=demo_timesteps,
    num_tokens=demo_tokens,
    cost=CostFigures(
        measured=None,
        load_s=2.0,
        # Of a few cores. What a step takes at least is the host's, on a GPU too.
        device="cpu",
        precision="float32",
        linear_s=4e-4,
        quadratic_s=0.0,
        fixed_step_s=0.02,
        kind_shares={"spatial": 0.2, "temporal": 0.2, "cross": 0.2, "mlp": 0.4},
        decode_s_per_pixel=5e-6,
        memory=MemoryFigures(measured=None, parameters=7.8e6, width=192),
    ),
    figures=FIGURES.get("demo", ()),
    latent_frames=lambda num_frames: num_frames // LATENT_STRIDE[0],
    load=load_demo_model,
    references=DEMO_REFERENCES,
    weights_digest=lambda weights: weights_digest(weights_path(weights)),
    on_hub=False,
    libraries=(),
    text_tokens=MAX_WORDS,
    count_words=count_words_of_loops,
    unknown_words=unknown_words,
    precisions=("float32", "bfloat16"),
    # In bfloat16 it draws what no prompt asked for, such as a second circle.
    gpu_precision="float32",
    compiles=True,
    rows_in_turn=True,
    max_batch=MAX_BATCH,
)
