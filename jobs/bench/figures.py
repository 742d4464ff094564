"""Measures a family's cost and memory figures on this machine: a few steps at two sizes, then without each kind of site.

The two sizes say what grows with tokens and what with tokens and those that each one sees. Steps that reuse all sites of one
kind say what that kind takes. Weights are random, or those of a folder; only with a folder, loading and decoding are timed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from jobs.bench.groups import GROUPS
from jobs.bench.library_subjects import make_subject
from jobs.bench.run import BenchSettings
from jobs.bench.subjects import FULL, Subject, precision_on, request_of
from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import ATTENTION_KINDS, KINDS, NO_BROADCAST, AttentionRule, BroadcastRules, MlpRule
from pab.broadcast.sites import Site
from pab.broadcast.state import BOTH
from pab.execution.choice import Execution, execution_of
from pab.execution.compiled import executing, run_as
from pab.families import FAMILIES
from pab.family import ClipRequest, CostFigures, Family, LoadRequest, MemoryFigures
from pab.kernels.float8 import FLOAT8
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised, LoopSettings, denoise, initial_noise

STEPS = 6
"""Of a measured clip: half of them reuse one kind of site."""
_BYTES = {"float32": 4, "bfloat16": 2}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A clip's size, what its tokens are and see, and the seconds of a full step at it."""

    request: ClipRequest
    tokens: int
    seen: float
    seconds: float


def measure_figures(
    name: str,
    settings: BenchSettings,
    *,
    weights: str | None,
    tell: Callable[[str], None],
    float8: Sequence[str] = (),
    eager: bool = False,
) -> tuple[CostFigures, Json]:
    """Measures one family; returns its figures, and what they were made from, for readers.

    `weights`: a folder of weights, or None for random ones. `tell` is called with each figure. `float8`: which of
    `pab.family.FLOAT8_PARTS` are of 8-bit floats. `eager`: blocks are not compiled on GPUs either. Raises ValueError for a
    family that has no random weights here, no second size, or no such 8-bit floats.
    """
    device, family = torch.device(settings.device), FAMILIES[name]
    execution = _execution(family, device, float8, eager=eager)
    subject, load_s = _subject(family, settings, weights)
    run_as(subject.model, execution, backend=settings.backend)
    gc.collect()
    loaded_bytes, eight = _allocated(device), _float8_parameters(subject)
    clips = _Clips(subject, NodeGroup(device=device))
    with executing(execution, precision=subject.precision), torch.inference_mode():
        small, large = (clips.size(request) for request in two_sizes(family, subject.requests[0]))
        tell(f"{name}: {small.seconds * 1e3:.1f} ms a step of {small.tokens:,} tokens")
        peak, full = _peak(device), clips.last
        tell(f"{name}: {large.seconds * 1e3:.1f} ms a step of {large.tokens:,} tokens")
        kinds = {kind: clips.kind_s(kind, large) for kind in _kinds(subject.sites)}
        for kind, seconds in kinds.items():
            tell(f"{name}: {seconds * 1e3:.1f} ms of it in {kind} sites")
        width = clips.kept_width
        decode_s, decode_bytes = clips.decode(full) if subject.decodes else (None, 0.0)
    linear_s, quadratic_s, fixed_step_s = grown(small, large)
    memory = _memory(subject, family, width, loaded_bytes, peak, large, decode_bytes=decode_bytes, eight=eight)
    pixels = large.request.num_frames * large.request.height * large.request.width
    missing = [
        word for word, known in (("loading", load_s), ("decoding", decode_s)) if known is None
    ]  # fmt: skip
    figures = CostFigures(
        measured=_measured_on(subject, settings, missing, execution),
        load_s=family.cost.load_s if load_s is None else round(load_s, 3),
        linear_s=_short(linear_s),
        quadratic_s=_short(quadratic_s),
        fixed_step_s=_short(fixed_step_s),
        kind_shares=family.cost.kind_shares if fixed_step_s else shares(kinds, linear_s, quadratic_s, large),
        decode_s_per_pixel=family.cost.decode_s_per_pixel if decode_s is None else _short(decode_s / pixels),
        memory=memory,
        device=_device_name(device),
        precision=subject.precision,
        float8=tuple(float8),
    )
    about: Json = {
        "torch": torch.__version__,
        "weights": weights or f"random, {settings.size} size",
        "step_ms": {f"{each.tokens} tokens": round(each.seconds * 1e3, 3) for each in (small, large)},
        "kind_ms": {kind: round(seconds * 1e3, 3) for kind, seconds in kinds.items()},
        "peak_bytes": peak,
    }
    return figures, about


def _execution(family: Family, device: torch.device, float8: Sequence[str], *, eager: bool) -> Execution:
    execution = execution_of(
        family,
        compiled=device.type == "cuda" and not eager,
        attention="float8" if "attention" in float8 else "auto",
        device=device.type,
        precision=_precision(family, device),
        linears="float8" if "linears" in float8 else "full",
    )
    return replace(execution, records=False)


def _subject(family: Family, settings: BenchSettings, weights: str | None) -> tuple[Subject, float | None]:
    device = torch.device(settings.device)
    if weights is None:
        group = next((group.name for group in GROUPS if group.family == family.name), None)
        if group is None:
            known = ", ".join(dict.fromkeys(group.family for group in GROUPS))
            raise ValueError(f"{family.name} has no random weights here, {known} have; give a folder with --weights")
        return replace(make_subject(group, settings.size, device), decodes=False), None
    precision, start = _precision(family, device), time.perf_counter()
    model = family.load(LoadRequest(weights=weights, precision=precision, device=settings.device))
    load_s = time.perf_counter() - start
    small = {} if settings.size == FULL else _least(family)
    return (
        Subject(
            family=family,
            model=model,
            sites=family.sites,
            requests=(request_of(family, **small),),
            precision=precision,
            device=device,
            decodes=True,
        ),
        load_s,
    )


def _precision(family: Family, device: torch.device) -> str:
    usual = family.gpu_precision if device.type == "cuda" else precision_on(device)
    return usual if usual in family.precisions else family.precisions[0]


def _float8_parameters(subject: Subject) -> int:
    blocks = [block for stack in subject.model.block_stacks for block in stack]
    return sum(x.numel() for block in blocks for x in block.state_dict().values() if x.dtype == FLOAT8)


def _least(family: Family) -> dict[str, int]:
    """Returns a small clip of two sizes of frames, for tiny weights on a CPU."""
    limits = family.limits
    frames = limits.num_frames[min(3, len(limits.num_frames) - 1)]
    return {"num_frames": frames, "height": min(limits.height), "width": min(limits.width)}


def two_sizes(family: Family, request: ClipRequest) -> tuple[ClipRequest, ClipRequest]:
    """Returns a clip with about half of the tokens, and the clip itself, both of few steps. Raises ValueError if none is."""
    steps = next((count for count in family.limits.num_steps if count >= STEPS), STEPS)
    usual = replace(request, num_steps=steps)
    for name, allowed in (
        ("num_frames", family.limits.num_frames),
        ("height", family.limits.height),
        ("width", family.limits.width),
    ):
        now = getattr(request, name)
        for value in (max((each for each in allowed if each <= now / 2), default=None), min(allowed)):
            if value is not None and value < now:
                smaller: dict[str, Any] = {name: value}
                return replace(usual, **smaller), usual
    raise ValueError(
        f"{family.name}: no clip is smaller than {request.num_frames}x{request.height}x{request.width}, and figures need "
        "two sizes; measure a family of the same transformer"
    )


def grown(small: Size, large: Size) -> tuple[float, float, float]:
    """Returns seconds per token, per token and token seen, and of a step whatever its size; none of them is negative.

    A step that grows less than its tokens do waits for the host: what does not grow is the third. At least a hundredth
    grows, so that a clip of any size is planned.
    """
    a, b = small.tokens, small.tokens * small.seen
    c, d = large.tokens, large.tokens * large.seen
    if large.seconds * a < small.seconds * c:
        linear_s = max(0.01 * large.seconds / c, (large.seconds - small.seconds) / (c - a))
        return linear_s, 0.0, large.seconds - linear_s * c
    quadratic_s = (large.seconds * a - small.seconds * c) / (d * a - b * c) if d * a != b * c else 0.0
    quadratic_s = min(max(0.0, quadratic_s), 0.95 * large.seconds / d)
    return (large.seconds - quadratic_s * d) / c, quadratic_s, 0.0


def shares(kinds: dict[str, float], linear_s: float, quadratic_s: float, large: Size) -> dict[str, float]:
    """Returns by kind its share of what grows with tokens alone; together they are at most 1."""
    whole = linear_s * large.tokens
    attention_s = quadratic_s * large.tokens * large.seen
    linear = {kind: max(0.0, seconds - attention_s * (kind == "spatial")) / whole for kind, seconds in kinds.items()}
    over = max(1.0, sum(linear.values()))
    # Rounded down, so that rounding cannot bring the sum above 1.
    return {kind: int(1000 * share / over) / 1000 for kind, share in linear.items()}


class _Clips:
    """Denoises clips of a subject; on a GPU twice each, and the second one, without warm-up, counts."""

    def __init__(self, subject: Subject, group: NodeGroup) -> None:
        self.subject = subject
        self.group = group
        self.last: tuple[ClipRequest, Denoised] | None = None
        self.kept_width = 0

    def size(self, request: ClipRequest) -> Size:
        """Returns a size with the median seconds of a full step."""
        family = self.subject.family
        place = request.num_frames, request.height, request.width
        done = self._denoise(request, NO_BROADCAST)
        self.last = request, done
        return Size(
            request=request,
            tokens=family.num_tokens(*place),
            seen=family.seen_tokens(*place),
            seconds=median(done.step_seconds[1:]),
        )

    def kind_s(self, kind: str, size: Size) -> float:
        """Returns the seconds of a step's sites of one kind: every other step reuses them."""
        plan = self._plan(size.request, NO_BROADCAST)
        rules = reusing(kind, self.subject.sites, plan.num_steps)
        try:
            done, kept_as = self._denoise(size.request, rules), _BYTES[self.subject.precision]
        except torch.OutOfMemoryError:
            done, kept_as = None, 0
        if done is None:  # outside of `except`, so that the traceback no longer holds what was kept
            gc.collect()
            torch.cuda.empty_cache()
            done = self._denoise(size.request, rules, keep="int8")
        # Of one clip, so that a machine that slows down meanwhile slows both down.
        full = [seconds for step, seconds in enumerate(done.step_seconds) if step and step in done.plan.full_steps]
        less = [seconds for step, seconds in enumerate(done.step_seconds) if step not in done.plan.full_steps]
        branches = self._branches(size.request)
        rows = 2 if len(branches) > 1 or branches == (BOTH,) else 1
        held = done.plan.kept_at_once * rows * size.tokens * kept_as
        if held and done.kept_bytes_peak:
            self.kept_width = max(self.kept_width, round(done.kept_bytes_peak / held))
        return max(0.0, median(full) - median(less)) if full and less else 0.0

    def decode(self, last: tuple[ClipRequest, Denoised] | None) -> tuple[float, float]:
        """Returns seconds of decoding, the second time, and the bytes that it took on a GPU for a frame's pixel."""
        assert last is not None, "a clip is denoised first"
        request, done = last
        device, seconds = self.subject.device, 0.0
        for _ in range(2):
            before = _allocated(device)
            start = time.perf_counter()
            self.subject.model.decode(done.latents, request, self.group).fetch()
            seconds = time.perf_counter() - start
        return seconds, max(0.0, _peak(device) - before) / (request.height * request.width)

    def _branches(self, request: ClipRequest) -> tuple[str, ...]:
        return self.subject.model.encode_prompts([request])[0].guided_passes

    def _plan(self, request: ClipRequest, rules: BroadcastRules) -> BroadcastPlan:
        subject = self.subject
        return make_plan(rules, subject.family.timesteps(request, subject.precision), subject.sites)

    def _denoise(self, request: ClipRequest, rules: BroadcastRules, keep: str = "full") -> Denoised:
        model, plan = self.subject.model, self._plan(request, rules)
        prompt = model.encode_prompts([request])[0]
        on_gpu = self.subject.device.type == "cuda"
        for _ in range(2 if on_gpu else 1):
            if on_gpu:
                gc.collect()
                torch.cuda.reset_peak_memory_stats()
            done = denoise(
                model,
                request,
                prompt=prompt,
                noise=initial_noise(request, model.latent_shape(request)),
                plan=plan,
                group=self.group,
                loop=LoopSettings(cache_dtype=keep),
            )
        return done


def reusing(kind: str, sites: Sequence[Site], num_steps: int) -> BroadcastRules:
    """Returns rules under which all sites of one kind reuse at every other step, and no others do."""
    if kind in ATTENTION_KINDS:
        rule = AttentionRule(range_steps=2, low=-(10**9), high=10**9)
        return replace(NO_BROADCAST, **{kind: rule})  # type: ignore[arg-type]  # a kind of attention is a field
    return BroadcastRules(mlp=tuple(_mlp_rules(sites, num_steps)))


def _mlp_rules(sites: Sequence[Site], num_steps: int) -> Iterator[MlpRule]:
    for stack in dict.fromkeys(site.stack for site in sites if site.kind == "mlp"):
        blocks = tuple(site.block for site in sites if (site.kind, site.stack) == ("mlp", stack))
        for step in range(0, num_steps - 1, 2):
            yield MlpRule(stack=stack, blocks=blocks, skip_count=1, position=step / num_steps)


def _kinds(sites: Sequence[Site]) -> list[str]:
    present = {site.kind for site in sites}
    return [kind for kind in KINDS if kind in present]


def _memory(
    subject: Subject,
    family: Family,
    width: int,
    loaded_bytes: float,
    peak: float,
    large: Size,
    *,
    decode_bytes: float,
    eight: int,
) -> MemoryFigures | None:
    known = family.cost.memory
    if subject.device.type != "cuda":
        # A CPU's peak says nothing of a GPU's.
        return None if known is None else replace(known, measured=None, width=width or known.width)
    size, prompt = _BYTES[subject.precision], subject.model.encode_prompts([large.request])[0]
    rows = 2 if prompt.guided_passes == (BOTH,) else 1
    width = width or (known.width if known else 1)
    return MemoryFigures(
        measured=f"one {_device_name(subject.device)}, {subject.precision}: {peak / 1e9:.1f} GB without broadcast"
        + ("" if subject.decodes else ", without decoder"),
        parameters=round((loaded_bytes + eight * (size - 1)) / size),
        width=width,
        widths_per_token=round(max(0.0, peak - loaded_bytes) / (rows * large.tokens * width * size), 2),
        decode_bytes_per_pixel=round(decode_bytes, 1) or (known.decode_bytes_per_pixel if known else 0.0),
        rows_per_pass=rows,
        float8_parameters=eight or (known.float8_parameters if known else 0.0),
    )


def _measured_on(subject: Subject, settings: BenchSettings, missing: Sequence[str], execution: Execution) -> str:
    how = "fused kernels" if execution.kernels else "compiled" if execution.compiled else "eager"
    eight = [
        word for word, kind in (("products", execution.linears), ("attention", execution.attention)) if kind == "float8"
    ]
    how = f"8-bit {' and '.join(eight)}, {how}" if eight else how
    tiny = "" if settings.size == FULL else ", tiny models"
    rest = f" ({' and '.join(missing)} estimated)" if missing else ""
    return f"one {_device_name(subject.device)}, {subject.precision}, {how}{tiny}{rest}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _allocated(device: torch.device) -> float:
    return float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0.0


def _peak(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def _short(value: float) -> float:
    return float(f"{value:.4g}")
