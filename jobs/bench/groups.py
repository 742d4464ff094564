"""The groups of the benchmark's rows: a model, its clip, and which rows there are without being named. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

JOB = "job"
"""The group whose rows are whole jobs: text, denoising, decoding, encoding, records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows of one model and clip. `clip`: at full size.

    `minutes`: what all of them take at full size on a data centre GPU, about. `tiny`: the rows that are enough to see on a
    CPU, with tiny models, that all of it works.
    """

    name: str
    family: str
    model: str
    clip: str
    minutes: float
    rows: tuple[str, ...]
    tiny: tuple[str, ...]


GROUPS = (
    Group(
        name="open_sora",
        family="open_sora",
        model="Open-Sora 1.2",
        clip="480x848, 51 frames, 30 steps, guidance 7",
        minutes=7,
        rows=(
            "eager none",
            "compiled none",
            "compiled pab246",
            "compiled pab579",
            "compiled pab246 int8",
            "compiled pab357",
            "compiled none float8",
            "compiled pab246 float8",
            "compiled none cfg2",
            "compiled none sp2",
            "compiled none sp2 inturn",
            "compiled pab246 cfg2",
            "compiled pab246 sp2",
            "compiled pab246 sp2 inturn",
            "compiled pab246 float8 cfg2",
            "eager pab246",
            "compiled nokernels none",
            "eager cudnn none",
        ),
        tiny=(
            "eager none",
            "compiled none",
            "compiled pab246",
            "compiled pab246 int8",
            "eager pab246",
            "eager pab246 cfg2",
        ),
    ),
    Group(
        name="latte",
        family="latte",
        model="Latte-1",
        clip="512x512, 16 frames, 50 steps, guidance 7.5",
        minutes=8,
        rows=(
            "eager none",
            "diffusers: eager none",
            "diffusers: eager pab236",
            "compiled none",
            "compiled pab236",
            "compiled pab347",
            "compiled pab469",
            "diffusers: compiled none",
            "diffusers: compiled pab236",
            "cache-dit: eager",
            "compiled none nokernels",
            "eager pab236",
            "diffusers: eager pab236 host",
            "diffusers: compiled none whole",
        ),
        tiny=("eager none", "eager pab236", "diffusers: eager none", "diffusers: eager pab236", "cache-dit: eager"),
    ),
    Group(
        name="open_sora_plan",
        family="open_sora_plan_v110",
        model="Open-Sora-Plan 1.1.0",
        clip="512x512, 65 frames, 150 steps, guidance 7.5",
        minutes=6,
        rows=(
            "eager pab246",
            "compiled none",
            "compiled pab246",
            "compiled pab246 float8",
            "eager none",
            "compiled pab579",
        ),
        tiny=("eager none", "eager pab246"),
    ),
    Group(
        name="wan",
        family="wan",
        model="Wan 2.1 1.3B",
        clip="480x832, 81 frames, 10 steps of two passes, guidance 5",
        minutes=5,
        rows=(
            "eager none",
            "diffusers: eager none",
            "diffusers: compiled none",
            "cache-dit: compiled",
            "cache-dit: compiled half",
            "compiled none",
            "compiled pab2-6",
            "compiled pab2-6 int8",
            "compiled none nokernels",
            "compiled pab2-6 nokernels",
            "compiled none nokernels cudnn",
            "compiled none float8",
            "compiled none float8 attention8",
            "compiled pab2-6 float8 attention8",
            "compiled none lightning4",
            "compiled none cfg2",
            "compiled none sp2",
        ),
        tiny=(
            "eager none",
            "diffusers: eager none",
            "diffusers: compiled none",
            "compiled none",
            "compiled pab2-6",
            "compiled none lightning4",
        ),
    ),
    Group(
        name="wan_14b",
        family="wan_14b",
        model="Wan 2.1 14B",
        clip="480x832, 81 frames, 10 steps of two passes, guidance 5",
        minutes=9,
        rows=(
            "compiled pab2-6 int8",
            "compiled none",
            "compiled pab2-6 int8 float8 attention8",
            "compiled none float8 attention8",
            "compiled none float8",
            "compiled none lightning4",
            "compiled none lightning4 float8 attention8",
            "diffusers: compiled none",
            "cache-dit: compiled half",
            "cache-dit: compiled",
            "diffusers: eager none",
        ),
        tiny=(),
    ),
    Group(
        name="hunyuan_video",
        family="hunyuan_video",
        model="HunyuanVideo 13B",
        clip="544x960, 129 frames, 4 steps, guidance as an input",
        minutes=9,
        rows=(
            "compiled none",
            "diffusers: compiled none",
            "compiled pab2 int8",
            "compiled none float8 attention8",
            "diffusers: eager none",
        ),
        tiny=("compiled none",),
    ),
    Group(
        name="cogvideox",
        family="cogvideox_5b",
        model="CogVideoX 5B",
        clip="480x720, 49 frames, 10 steps, guidance 6",
        minutes=4,
        rows=(
            "compiled none",
            "diffusers: compiled none",
            "compiled pab2",
            "compiled none float8",
            "diffusers: eager none",
        ),
        tiny=("compiled none",),
    ),
    Group(
        name="ltx",
        family="ltx",
        model="LTX-Video 2B",
        clip="512x704, 161 frames, 10 steps, guidance 3",
        minutes=2,
        rows=(
            "compiled none",
            "diffusers: compiled none",
            "compiled pab2-6",
            "compiled none float8",
            "diffusers: eager none",
        ),
        tiny=("compiled none", "diffusers: compiled none"),
    ),
    Group(
        name=JOB,
        family="open_sora",
        model="A whole job of Open-Sora 1.2: 20 clips with decoding, encoding and records",
        clip="480x848, 51 frames, 30 steps, guidance 7",
        minutes=4,
        rows=("compiled pab246", "compiled pab246 float8", "compiled pab246 dp2", "compiled pab246 cfg2"),
        tiny=("eager pab246",),
    ),
    Group(
        name="open_sora_small",
        family="open_sora",
        model="Open-Sora 1.2, small clips",
        clip="144x256, 17 frames, 30 steps, guidance 7",
        minutes=2,
        rows=("eager none", "compiled none", "compiled pab246", "compiled none norecording", "eager pab246"),
        tiny=(),
    ),
    Group(
        name="demo",
        family="demo",
        model="The trained demo model, whose videos tell the quality",
        clip="64x64, 16 frames, 30 steps, guidance 4",
        minutes=1,
        rows=("eager none", "eager pab246", "eager pab357", "eager pab579", "eager foresight"),
        tiny=("eager none", "eager pab246"),
    ),
)
"""In order of importance, rows within a group too. Rows of one execution stand together: they share a compiled model."""
