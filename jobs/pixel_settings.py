"""The settings of rendering that decide a video's frames. A field states a setting once (`jobs.setting.Setting`).

Plain values only. They are pickled into jobs, so they must not hold secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from jobs.setting import Setting, number_reader
from manifests.rules import FLOW_SHIFTS
from pab.execution.choice import ATTENTION_CHOICES, DECODE_CHOICES, KEEP_CHOICES, LINEARS_CHOICES
from pab.family import AUTO_PRECISION
from pab.weights.lora import FORM, Lora

PLAIN_CRF = 18
"""Digests name the quality only if it is a different one, so digests from before it could be chosen stay the same."""
CHOSEN = "auto"
"""The value of `keep` that lets the planner decide by what fits into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSettings:
    """The settings of which all but `device` are part of clips' digests.

    `RenderSettings` adds what jobs do besides. It is a class below this one, and no value beside it, since pickles of
    queued jobs hold the values of both in one row.
    `weights`: those given without a family's name; they are for `model`. `loras`: by family, as the user says them.
    `precision`: of all families, or "auto", each one's own on a GPU.
    """

    model: Annotated[
        str,
        Setting(
            metavar="FAMILY",
            commands=("validate", "calibrate"),
            help="family of rows that name none",
        ),
    ] = "demo"
    weights: Annotated[
        str | None,
        Setting(
            kind=list,
            metavar="[FAMILY=]DIR_OR_HUB_ID",
            commands=("validate", "calibrate"),
            help="weights of --model, or of the named family: a folder, a file or a hub id (default: each family's own). "
            "May be repeated; in a --config file it is a table",
        ),
    ] = None
    loras: Annotated[
        Mapping[str, tuple[Lora, ...]],
        Setting(
            name="lora",
            kind=list,
            metavar=f"[FAMILY=]{FORM}",
            commands=("validate", "calibrate"),
            help="a LoRA for --model, or for the named family, added to the weights when they are loaded: a .safetensors "
            "file, or on the hub organisation/name/file.safetensors. A strength of 1 adds it as it is. Component: which "
            "transformer of Wan 2.2 A14B it is for, transformer (high noise) or transformer_2. May be repeated",
        ),
    ] = field(default_factory=dict)
    broadcast: Annotated[
        str | None,
        Setting(
            metavar="PRESET_OR_FILE",
            commands=("validate",),
            help="broadcast of rows that name none: a preset of the family (`none` never reuses), one of its forms that keep "
            "less (PRESET-nocross, PRESET-nocross-half, PRESET-nocross-quarter, or PRESET-half and PRESET-quarter without "
            "cross attention), or a JSON file of rules. Rows may also name the file, without .json",
        ),
    ] = None
    precision: Annotated[
        str,
        Setting(
            asked=AUTO_PRECISION,
            choices=(AUTO_PRECISION, "float32", "bfloat16"),
            commands=("validate", "calibrate"),
            help="number format in which the model computes. auto is float32 on CPUs, and on GPUs what each family says: "
            "bfloat16, but float32 for the demo. Part of a clip's digest; runs that began with another one go on with it",
        ),
    ]
    device: Annotated[
        str,
        Setting(
            asked="auto",
            choices=("auto", "cpu", "cuda"),
            commands=("calibrate",),
            help="auto is cuda under SLURM or if this machine has an NVIDIA GPU that torch is built for, else cpu",
        ),
    ]
    compile: Annotated[
        bool,
        Setting(
            asked="auto",
            choices=("auto", "on", "off"),
            help="compile the model's blocks, one graph per step pattern. Compiled blocks round differently from eager "
            "ones, so this is part of a clip's digest, and so are the fused kernels that blocks of all families "
            "but Open-Sora-Plan 1.2 and the demo then use on GPUs in bfloat16. auto is off on CPUs and for runs that began "
            "without; on GPUs a run that begins weighs for each family what its jobs would save against the seconds of "
            "compiling, and keeps to that",
        ),
    ] = False
    attention: Annotated[
        str,
        Setting(
            choices=ATTENTION_CHOICES,
            help="attention kernel: default leaves the choice to torch, cudnn tries cuDNN first, float8 takes 8-bit floats "
            "(Wan and HunyuanVideo, on Hopper GPUs with fa3-fwd). auto is cudnn if compiled blocks on a GPU have heads of 72 "
            "channels. cudnn and float8 are part of a clip's digest",
        ),
    ] = "auto"
    keep: Annotated[
        str,
        Setting(
            asked=CHOSEN,
            choices=(CHOSEN, *KEEP_CHOICES),
            help="how kept outputs of sites are stored: full (as they are), or int8 (8-bit integers with a scale per "
            "token, half of bfloat16's memory). auto is full, unless they do not fit into a rank's memory (--gpu-memory): "
            "then what fits is chosen when the run begins, int8 or, for rows that name no broadcast, one that keeps less; "
            "--dry-run shows what each costs. int8 is part of a clip's digest. Foresight keeps outputs of whole blocks, "
            "always in full",
        ),
    ] = "full"
    linears: Annotated[
        str,
        Setting(
            choices=LINEARS_CHOICES,
            help="matrix products of the model's blocks: full (in --precision), or float8 (8-bit floats; all families "
            "but demo and Open-Sora-Plan 1.2 have them), which is faster on GPUs of compute capability 8.9 or higher. float8 "
            "is part of a clip's digest",
        ),
    ] = "full"
    decode: Annotated[
        str,
        Setting(
            asked="auto",
            choices=("auto", *DECODE_CHOICES),
            help="how latents become frames: published (as the model's own program does), or fast (models of the diffusers "
            "library: in 16 bits, and in as few pieces as fit into memory; pixels differ by 1 of 255 on average, or less; "
            "open_sora: compiled where blocks are). fast is part of a clip's digest. auto is fast on GPUs in bfloat16, but "
            "for runs that began without",
        ),
    ] = "published"
    sampling: Annotated[
        str | None,
        Setting(
            metavar="NAME",
            commands=("validate", "calibrate"),
            help="how rows of --model are sampled that do not say it: a preset of the family, such as lightning4 (Wan, 4 "
            "steps without guidance, for distilled weights or LoRAs; docs/models.md lists all). Default: as published. "
            "Part of a clip's digest if given, like the next three",
        ),
    ] = None
    flow_shift: Annotated[
        float | None,
        Setting(
            kind=str,
            read=number_reader(*FLOW_SHIFTS),
            metavar="X",
            commands=("validate", "calibrate"),
            help="how far the noise levels of Wan and HunyuanVideo are shifted towards noise, for rows of --model that do "
            "not say it (default: as published, which for Wan 2.1 depends on the size)",
        ),
    ] = None
    guidance_scale_2: Annotated[
        float | None,
        Setting(
            kind=str,
            read=number_reader(1.0, 30.0),
            metavar="X",
            commands=("validate", "calibrate"),
            help="guidance scale of the second transformer of Wan 2.2 A14B, for rows of --model that do not say it (default: "
            "that of the first)",
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        Setting(
            metavar="TEXT|published",
            commands=("validate", "calibrate"),
            help="negative prompt for rows of --model that have none; published is the one of the family's own program "
            "(Wan, LTX-Video). Default: none",
        ),
    ] = None
    crf: Annotated[
        int,
        Setting(
            low=0,
            high=51,
            metavar="N",
            help="quality of the H.264 videos, from 0 (lossless, which few players show) to 51 (worst); adding 6 about "
            "halves a file. Above 30 a video with much noise may be refused, because its PSNR to the frames is below 25 dB. "
            "Any value but 18 is part of a clip's digest",
        ),
    ] = PLAIN_CRF
