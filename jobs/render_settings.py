"""The settings of rendering. A field states a setting once (`jobs.setting.Setting`).

Plain values only. They are pickled into jobs, so they must not hold secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from jobs.min_quality import AUTO as FLOOR_OF_FAMILY
from jobs.min_quality import read_min_quality
from jobs.provenance.manifest import PROMPT_CHOICES
from jobs.setting import Setting, number_reader, settings_in
from manifests.rules import FLOW_SHIFTS
from pab.execution.choice import (
    ATTENTION_CHOICES,
    DECODE_CHOICES,
    KEEP_CHOICES,
    LINEARS_CHOICES,
    Execution,
    execution_of,
)
from pab.family import AUTO_PRECISION, FLOAT8_PARTS, MAX_BATCH, Family
from pab.weights.lora import FORM, Lora

MAX_ATTEMPTS = 2
"""A clip that has failed or killed its group this many times is given up, unless the run sets another number."""
PLAIN_CRF = 18
"""Digests name the quality only if it is a different one, so digests from before it could be chosen stay the same."""
CHOSEN = "auto"
"""The value of `keep` that lets the planner decide by what fits into memory."""
TOGETHER, IN_TURN = "together", "in-turn"
"""The values of `guidance_rows`."""
AUTO = 0
"""The value of `batch` that lets measured times decide."""


def read_batch(text: str) -> int:
    """Reads `auto` (returned as `AUTO`) or a number of clips. Raises ValueError, which says what is needed."""
    if text == "auto":
        return AUTO
    if not re.fullmatch(r"[1-9]\d?", text) or int(text) > MAX_BATCH:
        raise ValueError(f"needs auto or a number of clips from 1 to {MAX_BATCH}")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepChoice:
    """What the planner chose for a family, so that kept outputs fit into a rank's memory.

    `keep`: how they are stored. `broadcast`: what rows that name none get; None for what they would get anyway.
    """

    keep: str = "full"
    broadcast: str | None = None


AS_ASKED = KeepChoice()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileChoice:
    """Whether `--compile auto` compiles a family's blocks, weighed when the run began, and `why` in words."""

    compiled: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    """The settings that jobs follow. Those of machines and SLURM are in `pipeline.run.settings.MachineSettings`.

    All except `device`, `compile_cache`, `baseline`, `min_quality`, `quality_samples`, `plain_videos`, `batch`,
    `guidance_rows`, `max_attempts`, the two about references and those of C2PA change a video's frames, so they are part of
    clips' digests.
    `weights`: those given without a family's name; they are for `model`. `family_weights`: given with a family's name.
    `loras`: by family, as the user says them. `c2pa_key`: a path; these settings must hold no secret. `batch`: how many clips
    are rendered in one batch, or `AUTO`. `reference_roots`: absolute paths; the manifest's own folder is one of them if it is
    local. `precision`: of all families, or "auto", each one's own on a GPU.
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
            help="auto is cuda under SLURM or if this machine has an NVIDIA GPU, else cpu",
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
    compile_cache: Annotated[
        str | None,
        Setting(
            metavar="DIR",
            help="where jobs keep compiled kernels for later jobs (default: a folder of yours in each node's "
            "temporary folder)",
        ),
    ] = None
    baseline: Annotated[
        bool,
        Setting(
            help="do not render samples of each job a second time without broadcast; reports then have no measured "
            "speedup or quality, and nothing guards the quality",
        ),
    ] = True
    min_quality: Annotated[
        str,
        Setting(
            read=read_min_quality,
            metavar="psnr=DB|ssim=X|vmaf=X|auto|alarms|off",
            help="the least that a job's samples under reuse must be like themselves without it (several numbers with a "
            "comma), and no alarm that they have not without it. If one falls below, the job renders its clips with a milder "
            "plan, at last none; records and reports say which. auto is the family's own floor, where it was measured, and "
            "the alarms; alarms is these alone; off only measures. Not part of a clip's digest",
        ),
    ] = FLOOR_OF_FAMILY
    quality_samples: Annotated[
        int,
        Setting(
            high=16,
            metavar="N",
            help="how many clips of each plan a job renders first, with and without reuse, before it renders the others",
        ),
    ] = 2
    plain_videos: Annotated[
        bool,
        Setting(
            help="do not also write each video as videos/CLIP_ID.mp4, which takes its space twice on an object store. "
            "Records and index.parquet name the file in renders/",
        ),
    ] = True
    c2pa: Annotated[
        bool,
        Setting(
            help="sign every video with a C2PA manifest that says that a model made it, which one, and of what "
            "(docs/provenance.md; pip install 'pab-pipeline[c2pa]'). Without --c2pa-cert a certificate for tries is made, "
            "which readers call untrusted. Not part of a clip's digest",
        ),
    ] = False
    c2pa_cert: Annotated[
        str | None,
        Setting(
            metavar="FILE",
            help="with --c2pa: the certificate to sign with, as PEM, its own first, then its chain; jobs must see the file",
        ),
    ] = None
    c2pa_key: Annotated[
        str | None,
        Setting(
            metavar="FILE",
            help="with --c2pa-cert: its private key, as PEM without a password, readable by you alone. Jobs read the file; "
            "the key itself goes nowhere",
        ),
    ] = None
    c2pa_prompt: Annotated[
        str,
        Setting(
            choices=PROMPT_CHOICES,
            help="with --c2pa: whether the manifest holds the SHA-256 of the prompt or the prompt itself, which "
            "everybody who has the video can read",
        ),
    ] = "hash"
    batch: Annotated[
        int,
        Setting(
            asked="auto",
            kind=str,
            read=read_batch,
            metavar="auto|N",
            help="how many clips of one size and plan are rendered in one batch, at most 8, if the family has batches. auto "
            "begins with one and takes more as long as the job measures that this is faster. The record names the batch, but "
            "the digest does not: a batch changes rounding no more than another kind of GPU does",
        ),
    ] = 1
    guidance_rows: Annotated[
        str,
        Setting(
            choices=(TOGETHER, IN_TURN),
            help="how ranks that share a pass (mesh axis sp) run the two rows of guidance where each has both: together in "
            "one pass, or in turn, a pass for each, of which one computes while the other one exchanges (open_sora, latte, "
            "open_sora_plan and demo; other families always run as published). Reports tell how long ranks waited for "
            "exchanges. Not part of a clip's digest: it changes rounding no more than another mesh does",
        ),
    ] = TOGETHER
    max_attempts: Annotated[
        int,
        Setting(
            metavar="N",
            help="how often a clip is tried before it is given up; failures count, and so do jobs that died during the "
            "clip. After a failure it is tried on another node if there is one. A later submit may give another number",
        ),
    ] = MAX_ATTEMPTS
    reference_roots: Annotated[
        tuple[str, ...],
        Setting(
            name="reference_root",
            kind=list,
            metavar="DIR",
            commands=("validate", "calibrate"),
            help="a folder whose files the manifest may name as references, besides the manifest's own folder. May be "
            "repeated; links must not lead out of these folders",
        ),
    ] = field(default_factory=tuple)
    allow_private_references: Annotated[
        bool,
        Setting(
            commands=("validate", "calibrate"),
            help="let references over http and https lead to private, loopback and link-local addresses, such as a web "
            "server of your site. Whoever writes the manifest can then make this machine and the nodes ask any such server",
        ),
    ] = False
    family_weights: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, KeepChoice] = field(default_factory=dict)
    """By family, what was chosen when the run began; a family that is not there is rendered as asked for."""

    weighed: Mapping[str, CompileChoice] = field(default_factory=dict)
    """By family, what `--compile auto` came to when the run began; a family that is not there follows `compile`."""

    def compiles(self, model: str) -> bool:
        """Returns whether a family's blocks are compiled, if they can be."""
        choice = self.weighed.get(model)
        return self.compile and (choice is None or choice.compiled)

    def weights_of(self, model: str) -> str | None:
        """Returns the weights that the user chose for a family; None for the family's own."""
        return self.family_weights.get(model, self.weights if model == self.model else None)

    def keep_of(self, model: str) -> str:
        """Returns how kept outputs of a family are stored."""
        return self.kept.get(model, AS_ASKED).keep if self.keep == CHOSEN else self.keep

    def precision_of(self, family: Family) -> str:
        """Returns the number format in which a family computes."""
        return family.precision_for(self.precision)

    @property
    def float8(self) -> tuple[str, ...]:
        """Which of `pab.family.FLOAT8_PARTS` are of 8-bit floats."""
        return tuple(part for part in FLOAT8_PARTS if getattr(self, part) == "float8")

    def execution(self, family: Family) -> Execution:
        """Returns how these settings run a family."""
        return execution_of(
            family,
            compiled=self.compiles(family.name),
            attention=self.attention,
            device=self.device,
            precision=self.precision_of(family),
            keep=self.keep_of(family.name),
            linears=self.linears,
            decode=self.decode,
        )

    @property
    def video_identity(self) -> str:
        """The part of a clip's digest that says how frames become a video; empty for the default quality."""
        return "" if self.crf == PLAIN_CRF else f" crf {self.crf}"

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise ValueError(f"batch={self.batch}, needs 1 or more, or 0 to let measured times decide")
        said = settings_in(RenderSettings)
        read_min_quality(self.min_quality)
        for name in ("crf", "max_attempts", "quality_samples"):
            try:
                said[name][1].check_number(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}={getattr(self, name)}, {error}") from error
