"""What a video model family is: one frozen value with its sizes, presets, costs and loader.

Nothing here imports torch, so a manifest of ten million rows is validated and a run is planned without loading it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import BroadcastRules, Rules
from pab.broadcast.sites import Site
from pab.broadcast.smaller import smaller_rules
from pab.conditioning.references import ReferenceRules

MODEL_LIBRARIES = ("diffusers", "transformers")
"""What most families import."""
MAX_BATCH = 8
"""The largest batch, for models that take several clips at once: beyond it only memory grows."""

AUTO_PRECISION = "auto"
"""The precision of a run on GPUs in which each family has its own (`Family.gpu_precision`)."""

if TYPE_CHECKING:
    from pab.model import VideoModel
    from pab.parallel.mesh import Axis
    from pab.weights.lora import Lora, LoraRules


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRequest:
    """All that decides the pixels of one clip besides the weights. Sizes in pixels, `fps` in frames per second."""

    prompt: str
    negative_prompt: str | None
    seed: int
    num_frames: int
    height: int
    width: int
    fps: int
    num_steps: int
    guidance_scale: float
    sampling: str | None = None
    """A name of `Family.samplings`; None: as the family is published."""
    flow_shift: float | None = None
    """The shift of the noise levels; None: the family's own."""
    guidance_scale_2: float | None = None
    """The guidance scale of the second transformer; None: that of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """A way to sample a family besides the published one. What it fixes, a clip cannot choose; None fixes nothing.

    With a fixed number of steps the noise levels are fixed as well, and nothing is reused.
    """

    summary: str
    num_steps: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDefaults:
    """What a manifest row gets for the columns that it leaves out."""

    num_frames: int
    height: int
    width: int
    fps: int
    num_steps: int
    guidance_scale: float
    broadcast: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLimits:
    """What a family can render: allowed values as `range` (a value must be a member, e.g. 4n+1 frames)."""

    num_frames: range
    height: range
    width: range
    fps: range
    num_steps: range
    guidance_scale: tuple[float, float]
    max_tokens: int
    """Latent tokens (after patching) of one clip; bounds height, width and frames together."""
    max_prompt_chars: int
    images: bool = False
    """Whether one frame, a single image, is allowed besides `num_frames`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """Where a model's weights are, and where it will run.

    `weights`: a local folder, a hub id, or None for the family's own default. `precision`: "float32" or "bfloat16".
    `device`: a torch device string such as "cpu" or "cuda:1". `clip_axis`: the ranks that render each clip together
    and so are given the same prompts; they share out encoding them. None: this rank works alone. `loras`: what is added to
    the weights, of a family that takes LoRAs.
    """

    weights: str | None
    precision: str
    device: str
    clip_axis: Axis | None = None
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFloor:
    """The least that a clip under reuse may be like itself without reuse, for the guard of jobs. None: no such bound.

    `source`: where the numbers are from. Without numbers, clips are judged by alarms alone.
    """

    psnr_db: float | None = None
    ssim: float | None = None
    vmaf: float | None = None
    source: str = ""


NO_FLOOR = QualityFloor()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One video model family.

    `timesteps(request, precision)` gives the noise levels of every model call as the model sees them, after the cast
    to its precision; the broadcast plan is computed from them. `num_tokens(num_frames, height, width)` counts latent
    tokens.
    """

    name: str
    summary: str
    defaults: ClipDefaults
    limits: ClipLimits
    sites: tuple[Site, ...]
    presets: Mapping[str, Rules]
    timesteps: Callable[[ClipRequest, str], tuple[float, ...]]
    num_tokens: Callable[[int, int, int], int]
    cost: CostFigures
    """What planning takes if nothing was measured on the run's kind of device, and `calibrate` always."""
    load: Callable[[LoadRequest], VideoModel]
    weights_digest: Callable[[str | None], str]
    """Names the weights in a clip's digest: a hub revision, or a hash over the files of a local folder."""
    pin: Callable[[str | None], str | None] = lambda weights: weights
    """Returns weights that mean the same tomorrow: hub ids with their commits for a family that the hub publishes."""
    on_hub: bool = True
    """Whether the hub has its weights; else it brings its own."""
    libraries: tuple[str, ...] = MODEL_LIBRARIES
    """What loading it and reading its prompts import, besides what every installation has: of the extra `models`."""
    figures: tuple[CostFigures, ...] = ()
    """All that was measured (`FIGURES_FILE`), one entry for each kind of device, precision and parts of 8-bit floats."""
    latent_frames: Callable[[int], int] | None = None
    """Latent frames of a clip's frames, for a family whose spatial attention sees one latent frame at a time. None: it sees
    all tokens (3-D attention)."""
    precisions: tuple[str, ...] = ("bfloat16", "float32")
    gpu_precision: str = "bfloat16"
    """The precision on GPUs unless the user asks for one (`precision_for`). On CPUs it is float32."""
    keeps_blocks: bool = False
    """Whether the model can keep and return outputs of whole blocks, which Foresight needs."""
    compiles: bool = False
    """Whether the transformer's blocks trace into whole graphs (`VideoModel.block_stacks`), so that jobs may compile them.
    All families' do; a new one may begin without."""
    prefers_cudnn: bool = False
    """Whether its heads are of 72 channels, for which cuDNN's attention is faster than torch's first choice."""
    fused_kernels: bool = False
    """Whether its transformer has fused GPU operations (`pab.kernels`); its model is then a `pab.model.UsesKernels`."""
    float8: bool = False
    """Whether its blocks can multiply by 8-bit floats; its model is then a `pab.model.UsesFloat8`."""
    float8_attention: bool = False
    """Whether its self attention can take 8-bit floats; its model is then a `pab.model.UsesFloat8Attention`."""
    fast_decode: bool = False
    """Whether its decoder can run faster and round differently; its model is then a `pab.model.DecodesFast`."""
    decoder_compile_s: float = 0.0
    """Seconds of the first call of a fast decoder that is compiled where blocks are, of each size; 0 for all others."""
    records_loops: bool = False
    """Whether loops can be recorded; its model is then a `pab.model.Recordable`."""
    rows_in_turn: bool = False
    """Whether a pass keeps nothing in its model, so that those of both rows of guidance may be under way at once."""
    clean_prompt: Callable[[str], str] | None = None
    """What is left of a prompt after the family's cleaning, where that may drop words; it needs no torch."""
    text_tokens: int | None = None
    """How many tokens of a prompt its text encoder reads; what is longer is cut. None where they are not counted."""
    count_words: Callable[[str], int] | None = None
    """Returns how many tokens a prompt has, for a text encoder of whole words; None for those that have a tokenizer."""
    unknown_words: Callable[[str], Sequence[str]] | None = None
    """The words of a prompt that its text encoder cannot tell apart; None for encoders that spell every word."""
    references: ReferenceRules | None = None
    """How clips take reference images and videos; None for a family that takes none. With it, `load` returns a model that
    `pab.model.TakesReferences` describes, or `pab.model.TakesImage` if the rules say `first_image`."""
    embedded_guidance: bool = False
    """Whether the transformer takes `guidance_scale` as an input, in one pass a step: axis `cfg` then has no use."""
    max_batch: int = 1
    """The most clips that its model renders in one pass (`pab.model.RendersBatches`)."""
    loras: LoraRules | None = None
    """What LoRAs may change of its transformers (`LoadRequest.loras`); None for a family that takes none."""
    samplings: Mapping[str, Sampling] = field(default_factory=dict)
    """By name, ways to sample besides the published one, such as that of distilled weights."""
    flow_shift: Callable[[int, int], float] | None = None
    """Returns the published shift of the noise levels, from height and width; None for a family whose levels take none."""
    second_guidance: bool = False
    """Whether a second transformer takes over, which may have a guidance scale of its own."""
    published_negative: str | None = None
    """The negative prompt that the published program has; clips are rendered with it only if the user says so."""
    write_tiny: Callable[[Path, int], None] | None = None
    """Writes a small model with random weights, drawn by a seed, in the published layout; None for a family without."""
    floor: QualityFloor = NO_FLOOR
    """What clips under reuse must reach by default. Its own published presets pass; none where nobody has measured."""
    cache_reset_steps: Callable[[ClipRequest, str], tuple[int, ...]] = lambda _request, _precision: ()
    """Steps at which nothing kept before is reused, because another transformer takes over. Called like `timesteps`."""

    def precision_for(self, asked: str) -> str:
        """Returns the precision of its clips. `asked`: the run's, where `AUTO_PRECISION` leaves it to the family."""
        return self.gpu_precision if asked == AUTO_PRECISION else asked

    def smaller(self, broadcast: str) -> dict[str, BroadcastRules]:
        """Returns by name the rules that keep less than a preset's, the most first (`pab.broadcast.smaller`)."""
        return smaller_rules(broadcast, self.presets[broadcast], self.sites)

    def rules_named(self, broadcast: str) -> Rules | None:
        """Returns the rules of a preset, or of a smaller form of one; None for any other name."""
        if broadcast in self.presets:
            return self.presets[broadcast]
        return self.all_smaller().get(broadcast)

    def all_smaller(self) -> dict[str, BroadcastRules]:
        """Returns by name the smaller forms of all presets."""
        return {name: rules for preset in self.presets for name, rules in self.smaller(preset).items()}

    def seen_tokens(self, num_frames: int, height: int, width: int) -> float:
        """Returns how many tokens each token sees in spatial attention."""
        tokens = self.num_tokens(num_frames, height, width)
        return tokens if self.latent_frames is None else tokens / max(1, self.latent_frames(num_frames))

    def plan(self, request: ClipRequest, rules: Rules, precision: str) -> BroadcastPlan:
        """Returns the plan of one clip: the same on every rank, in `--dry-run` and in what a run is estimated to cost.

        Rules are made for clips of the family's own number of steps. Under Foresight's rules every site computes in this
        plan; the loop then decides what is reused. Raises ValueError for rules that do not fit.
        """
        full = replace(request, num_steps=self.defaults.num_steps)
        fixed = request.sampling is not None and self.samplings[request.sampling].num_steps is not None
        return make_plan(
            rules,
            self.timesteps(request, precision),
            self.sites,
            cache_reset_steps=self.cache_reset_steps(request, precision),
            full_length=self.timesteps(full, precision) if request.num_steps < full.num_steps and not fixed else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CostFigures:
    """Seconds of one rank on one kind of device, for planning only; reports give what was measured.

    A full step over n tokens, each of which sees m in spatial attention (`Family.seen_tokens`), takes `fixed_step_s`, which
    is the host's, and `linear_s * n + quadratic_s * n * m`. `kind_shares` says how the linear part splits over kinds of site;
    the quadratic part is spatial attention's. So planning knows what a reused site saves at any size. `device`: as its driver
    names it, or "cpu". `measured` says on what a step was timed ("one H200, fused kernels"); None: nothing was timed, the
    figures are estimated from operation counts for that device. `float8`: which of `FLOAT8_PARTS` were of 8-bit floats.
    """

    measured: str | None
    load_s: float
    linear_s: float
    quadratic_s: float
    fixed_step_s: float
    kind_shares: Mapping[str, float]
    decode_s_per_pixel: float
    memory: MemoryFigures | None = None
    """None: not known, and so no bound on meshes."""
    device: str = "NVIDIA H200"
    precision: str = "bfloat16"
    float8: tuple[str, ...] = ()
    fast_decode_s_per_pixel: float | None = None
    """As `decode_s_per_pixel`, of runs that decode fast; None: not measured, and planned as published."""

    def decoding(self, *, fast: bool) -> CostFigures:
        """Returns the figures of a run that decodes fast, or as published: `decode_s_per_pixel` is then what it takes."""
        if not fast or self.fast_decode_s_per_pixel is None:
            return self
        memory = self.memory
        if memory is not None:
            memory = replace(memory, decode_bytes_per_pixel=memory.fast_decode_bytes_per_pixel)
        return replace(self, decode_s_per_pixel=self.fast_decode_s_per_pixel, memory=memory)

    def kind_s(self, tokens: int, seen: float) -> dict[str, float]:
        """Returns by kind the seconds of all its sites in a full step of both guidance branches."""
        found = {kind: share * self.linear_s * tokens for kind, share in self.kind_shares.items()}
        return found | {"spatial": found.get("spatial", 0.0) + self.quadratic_s * tokens * seen}

    def step_s(self, tokens: int, seen: float) -> float:
        """Returns the seconds of the passes of a full step, without `fixed_step_s`."""
        return self.linear_s * tokens + self.quadratic_s * tokens * seen


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFigures:
    """What a rank holds, for planning only. What is kept between steps is computed from the plan.

    `measured` says with what GPU's peak the sum was compared; None: with none, it is estimated. `parameters`: of the
    transformers and the decoder. `width`: channels of a token, and so of a kept output. `widths_per_token`: what one pass
    holds for each token of each row, in tokens' widths. `rows_per_pass`: 2 where one pass has the rows of both guidance
    branches. `decode_bytes_per_pixel`: memory for each pixel of a frame, in bfloat16, while frames are decoded; 0 where it
    is not known. `float8_parameters`: of `parameters`, those that take one byte where products are of 8-bit floats; 0 where
    it is not known.
    """

    measured: str | None
    parameters: float
    width: int
    widths_per_token: float = 9.0
    decode_bytes_per_pixel: float = 0.0
    rows_per_pass: int = 2
    float8_parameters: float = 0.0
    fast_decode_bytes_per_pixel: float = 0.0
    """As `decode_bytes_per_pixel`, while frames are decoded fast; where less is left, they are decoded in slices or tiles."""


FLOAT8_PARTS = ("linears", "attention")
"""What a run may compute in 8-bit floats: the blocks' matrix products (`--linears`), self attention (`--attention`)."""

FIGURES_FORMAT = 1
FIGURES_FILE = "figures.json"
"""In a family's folder: what was measured of it, by kind of device."""
_NEEDS = "write it with: python -m pipeline bench --figures FAMILY"


def read_figures(path: Path) -> dict[str, tuple[CostFigures, ...]]:
    """Reads measured figures by family, in the order of the file; an entry's "about" is for readers.

    Raises OSError, or ValueError naming what is wrong.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; {_NEEDS}") from error
    if not isinstance(document, dict) or document.get("format") != FIGURES_FORMAT:
        raise ValueError(f"{path}: needs an object with format={FIGURES_FORMAT}; {_NEEDS}")
    found: dict[str, tuple[CostFigures, ...]] = {}
    for number, entry in enumerate(document.get("figures", ())):
        try:
            values = dict(entry)
            name, memory = values.pop("family"), values.pop("memory")
            values.pop("about", None)  # for readers
            values["float8"] = tuple(values.get("float8", ()))
            known = None if memory is None else MemoryFigures(**memory)
            figures = CostFigures(**values, memory=known)
            _check_figures(figures)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: figures {number}: {error}; {_NEEDS}") from error
        found[name] = (*found.get(name, ()), figures)
    return found


def figures_document(figures: Mapping[str, Sequence[CostFigures]]) -> dict[str, Any]:
    """Returns figures by family as JSON values; `read_figures` reads them back."""
    entries = [{"family": name, **asdict(each)} for name, held in figures.items() for each in held]
    return {"format": FIGURES_FORMAT, "figures": entries}


def _check_figures(figures: CostFigures) -> None:
    numbers = {
        name: value
        for name, value in (asdict(figures) | (asdict(figures.memory) if figures.memory else {})).items()
        if name not in ("measured", "device", "precision", "memory", "kind_shares", "float8")
        and not (name == "fast_decode_s_per_pixel" and value is None)
    }
    for name, value in (numbers | {f"share of {kind}": share for kind, share in figures.kind_shares.items()}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}, needs a number of 0 or more")
    if unknown := [part for part in figures.float8 if part not in FLOAT8_PARTS]:
        raise ValueError(
            f"float8={list(figures.float8)}: {unknown[0]!r} is not known, allowed: {', '.join(FLOAT8_PARTS)}"
        )
    if figures.memory is not None and figures.memory.float8_parameters > figures.memory.parameters:
        raise ValueError(
            f"float8_parameters={figures.memory.float8_parameters}, may be parameters={figures.memory.parameters} at most"
        )
    if figures.linear_s <= 0:
        raise ValueError(f"linear_s={figures.linear_s}, needs more than 0")
    if sum(figures.kind_shares.values()) > 1 + 1e-6:
        raise ValueError(f"kind_shares={dict(figures.kind_shares)}, may add up to 1 at most")
