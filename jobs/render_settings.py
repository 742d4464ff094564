"""The settings that jobs follow: those that decide frames, and what jobs do besides. A field states a setting once.

Plain values only. They are pickled into jobs, so they must not hold secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from jobs.min_quality import AUTO as FLOOR_OF_FAMILY
from jobs.min_quality import read_min_quality
from jobs.pixel_settings import CHOSEN, PLAIN_CRF, PixelSettings
from jobs.provenance.manifest import PROMPT_CHOICES
from jobs.setting import Setting, settings_in
from pab.execution.choice import Execution, execution_of
from pab.family import FLOAT8_PARTS, MAX_BATCH, Family

MAX_ATTEMPTS = 2
"""A clip that has failed or killed its group this many times is given up, unless the run sets another number."""
TOGETHER, IN_TURN = "together", "in-turn"
"""The values of `guidance_rows`."""
RECORD_AUTO, RECORD_ON, RECORD_OFF = "auto", "on", "off"
"""The values of `record_loops`."""
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
class RenderSettings(PixelSettings):
    """The settings that jobs follow. Those of machines and SLURM are in `pipeline.run.settings.MachineSettings`.

    What decides a video's frames is in `PixelSettings`, and so part of clips' digests; so are `family_weights`, the weights
    given with a family's name, and what was chosen when the run began (`kept`, `weighed`). The others here change no frame.
    `c2pa_key`: a path; these settings must hold no secret. `batch`: how many clips are rendered in one batch, or `AUTO`.
    `reference_roots`: absolute paths; the manifest's own folder is one of them if it is local.
    """

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
            "open_sora_plan and demo; other families always run as published). In turn was slower on GPUs: the host has "
            "twice as much to queue. Reports tell how long ranks waited for exchanges. Not part of a clip's digest: it "
            "changes rounding no more than another mesh does",
        ),
    ] = TOGETHER
    record_loops: Annotated[
        str,
        Setting(
            choices=(RECORD_AUTO, RECORD_ON, RECORD_OFF),
            help="whether denoising loops are recorded as CUDA graphs, so that the host queues a whole step at once: the "
            "second clip of a kind is recorded, later ones are replayed (open_sora, its blocks compiled, in bfloat16 on "
            "GPUs). auto: clips of at most 32768 latent tokens of both rows of guidance on each GPU, where recording was "
            "measured to gain: small ones, and those that GPUs share. on: clips of every size; a recording holds the "
            "memory of a loop (on a CPU it saves nothing). off: none. "
            "Not part of a clip's digest: auto and off give the same pixels; on rounds larger clips otherwise, no more than "
            "another mesh does, and the record says so (same_length)",
        ),
    ] = RECORD_AUTO
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
