"""What a job is told, and the settings among it: each says here, once, all that flags, variables, files and help need.

Plain values only: it is pickled into jobs, so it holds no secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, get_type_hints

from pab.execution.choice import ATTENTION_CHOICES, KEEP_CHOICES, LINEARS_CHOICES, Execution, execution_of
from pab.family import MAX_BATCH, Family

MAX_ATTEMPTS = 2
"""A clip that has failed or killed its group so often is given up, unless the run says otherwise."""
PLAIN_CRF = 18
"""Digests name the quality of a video only where it is another one, so those from before there was a choice stay."""
AUTO = 0
"""As `batch`: the measured times decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a field of the settings tree says of itself beside its name, type and default: `Annotated[int, Setting(...)]`.

    The flag, the environment variable, the key of a --config file and the line in --help are made of it
    (`pipeline.run.options`). `help`: of a flag that sets a bool, what the flag does. `asked`: the default, where that is no
    value of the field ("auto"). `name`: if it is not the field's. `kind`: what is asked for, if it is not of the field's
    type; list is text that may be given again. `choices`: the allowed texts. `low`, `high`: bounds of a whole number.
    `read`: makes the field's value of an allowed text; its ValueError says what is needed. `group`: the heading in --help,
    if it is not the name of the tree's part. `commands`: those that take the flag, besides `submit`.
    """

    help: str
    asked: str | None = None
    name: str | None = None
    kind: type | None = None
    choices: tuple[str, ...] = ()
    low: int = 1
    high: int | None = None
    read: Callable[[str], object] | None = None
    metavar: str | None = None
    group: str | None = None
    commands: tuple[str, ...] = ()

    def check_number(self, number: int) -> None:
        """Raises ValueError, saying what is needed, for a number out of bounds."""
        if number < self.low or (self.high is not None and number > self.high):
            raise ValueError(self.needed_number)

    @property
    def needed_number(self) -> str:
        """What is needed where a number is asked for."""
        bounds = f"of {self.low} or more" if self.high is None else f"from {self.low} to {self.high}"
        return f"needs a whole number {bounds}"


def settings_in(part: type) -> dict[str, tuple[object, Setting]]:
    """Returns by field name the type and the setting of each field that is one. `part`: a dataclass of the tree."""
    hints = get_type_hints(part, include_extras=True)
    return {
        each.name: (hints[each.name].__origin__, said)
        for each in fields(part)
        for said in getattr(hints[each.name], "__metadata__", ())
        if isinstance(said, Setting)
    }


def read_batch(text: str) -> int:
    """Returns the number of clips that `auto` or a number means. Raises ValueError saying what is needed."""
    if text == "auto":
        return AUTO
    if not re.fullmatch(r"[1-9]\d?", text) or int(text) > MAX_BATCH:
        raise ValueError(f"needs auto or a number of clips from 1 to {MAX_BATCH}")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How the ranks of a job are used: `dp` clips at once, `cfg` guidance branches apart, `sp` ranks per pass."""

    dp: int = 1
    cfg: int = 1
    sp: int = 1

    @property
    def num_ranks(self) -> int:
        """Ranks in all: dp x cfg x sp."""
        return self.dp * self.cfg * self.sp

    def __str__(self) -> str:
        return f"dp={self.dp},cfg={self.cfg},sp={self.sp}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    """The settings that jobs follow. Those of machines and SLURM are `pipeline.run.settings.MachineSettings`.

    All but `device`, `compile_cache`, `baseline`, `batch` and `max_attempts` change a video, so they are part of clips'
    digests. `weights`: given for `model` without its name. `family_weights`: those given with a family's name. `batch`:
    clips that are rendered together, or `AUTO`.
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
            help="weights of --model, or of the family that is named: a folder, a file or a hub id (default: each "
            "family's own); may be repeated, a --config file has a table",
        ),
    ] = None
    broadcast: Annotated[
        str | None,
        Setting(
            metavar="PRESET_OR_FILE",
            commands=("validate",),
            help="broadcast of rows that name none: a preset of the family (`none` never reuses), or a JSON file of "
            "rules, whose name without .json rows may use too",
        ),
    ] = None
    precision: Annotated[
        str,
        Setting(
            choices=("float32", "bfloat16"),
            commands=("validate", "calibrate"),
            help="what the model computes in (default: float32 on CPUs, bfloat16 on GPUs)",
        ),
    ]
    device: Annotated[
        str,
        Setting(
            asked="auto",
            choices=("auto", "cpu", "cuda"),
            commands=("calibrate",),
            help="auto is cuda under SLURM and where this machine has an NVIDIA GPU, else cpu",
        ),
    ]
    compile: Annotated[
        bool,
        Setting(
            asked="auto",
            choices=("auto", "on", "off"),
            help="compile the model's blocks, a graph per step pattern; rounds otherwise than eager blocks do, so it"
            " is part of a clip's digest, as are the fused kernels that Open-Sora's blocks then use on GPUs in "
            "bfloat16. auto is on for GPUs, for the families whose blocks can be compiled",
        ),
    ] = False
    attention: Annotated[
        str,
        Setting(
            choices=ATTENTION_CHOICES,
            help="attention kernel: torch's own choice (default) or cuDNN first; auto is cuDNN where compiled blocks"
            " on a GPU have heads of 72 channels. Part of a clip's digest where it is cuDNN",
        ),
    ] = "auto"
    keep: Annotated[
        str,
        Setting(
            choices=KEEP_CHOICES,
            help="how outputs of sites wait to be reused: as they are, or as 8-bit integers with a scale per token, "
            "in half of bfloat16's memory; part of a clip's digest where it is int8. Foresight keeps whole "
            "blocks, and always full",
        ),
    ] = "full"
    linears: Annotated[
        str,
        Setting(
            choices=LINEARS_CHOICES,
            help="matrix products of the model's blocks: in its precision, or of 8-bit floats (families that have "
            "them: open_sora, latte, open_sora_plan_v110), faster on GPUs from compute capability 8.9 on; part "
            "of a clip's digest where it is float8",
        ),
    ] = "full"
    crf: Annotated[
        int,
        Setting(
            low=0,
            high=51,
            metavar="N",
            help="quality of the H.264 videos: 0 is lossless, few players show it; 6 more about halve a file, 51 is worst. "
            "Above 30 a video with much noise may be refused, as less than 25 dB like its frames. Part of a clip's "
            "digest where it is not 18",
        ),
    ] = PLAIN_CRF
    compile_cache: Annotated[
        str | None,
        Setting(
            metavar="DIR",
            help="where jobs keep compiled kernels for the next one (default: a folder of yours in each node's "
            "temporary folder)",
        ),
    ] = None
    baseline: Annotated[
        bool,
        Setting(
            help="do not render one clip per job a second time without broadcast; reports then hold no measured "
            "speedup",
        ),
    ] = True
    batch: Annotated[
        int,
        Setting(
            asked="auto",
            kind=str,
            read=read_batch,
            metavar="auto|N",
            help="how many clips of one size and plan are rendered together, where the family can (at most 8): N, or"
            " as many as the job measures to be faster, beginning with one. On the record, not in the digest: "
            "it rounds otherwise, no more than another kind of GPU does",
        ),
    ] = 1
    max_attempts: Annotated[
        int,
        Setting(
            metavar="N",
            help="how often a clip is tried, failures and ends of its job counted, before it is given up; after a "
            "failure on another node where there is one. A later submit of the run may say another number",
        ),
    ] = MAX_ATTEMPTS
    family_weights: Mapping[str, str] = field(default_factory=dict)

    def weights_of(self, model: str) -> str | None:
        """Returns the weights that the user gives a family; None for its own."""
        return self.family_weights.get(model, self.weights if model == self.model else None)

    def execution(self, family: Family) -> Execution:
        """Returns how these settings run a family."""
        return execution_of(
            family,
            compiled=self.compile,
            attention=self.attention,
            device=self.device,
            precision=self.precision,
            keep=self.keep,
            linears=self.linears,
        )

    @property
    def video_identity(self) -> str:
        """What a clip's digest holds of how its frames become a video; empty for the plain way."""
        return "" if self.crf == PLAIN_CRF else f" crf {self.crf}"

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise ValueError(f"batch={self.batch}, needs 1 or more, or 0 to let measured times decide")
        said = settings_in(RenderSettings)
        for name in ("crf", "max_attempts"):
            try:
                said[name][1].check_number(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}={getattr(self, name)}, {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What every job of a run is told: the settings that it follows, and what `submit` found out.

    `output`: the run's fsspec URL. `broadcast_rules`: name -> rules (as `pab.broadcast.rules.BroadcastRules.to_dict`) of
    user-made plans that rows or the command line name. `pinned_weights`: by family, what `submit` found its weights to
    mean, on the hub a certain commit; it is what jobs load, and None where nothing was looked up. `deadline_s`: seconds
    that the job may run; a clip that would not end before it is left for the next start; None for no limit. `hang_s`: how
    long one clip may take from its mark to its frames before it is taken to hang and the process ends itself.
    `upload_timeout_s`: how long the job waits for a bucket that is away. `compile_backend`: torch.compile's.
    """

    output: str
    run_id: str
    mesh: Mesh
    render: RenderSettings
    broadcast_rules: dict[str, dict[str, object]] | None = None
    pinned_weights: dict[str, str] | None = None
    deadline_s: float | None = None
    hang_s: float = 3600.0
    upload_timeout_s: float = 600.0
    compile_backend: str = "inductor"

    @property
    def weights(self) -> str | None:
        """What the user gives as the weights of `--model`; None for its own."""
        return self.render.weights_of(self.render.model)

    def weights_of(self, model: str) -> str | None:
        """Returns what is loaded as the weights of a family; None for its own."""
        return self.weights if self.pinned_weights is None else self.pinned_weights.get(model)

    def __post_init__(self) -> None:
        if self.hang_s <= 0:
            raise ValueError(f"hang_s={self.hang_s}, needs more than 0")
