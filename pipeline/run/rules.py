"""What rows of a run may say: the families' own limits, joined with the run's weights, precision and broadcasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from jobs.render_settings import AS_ASKED, RenderSettings
from manifests.loras import NO_LORA
from manifests.rules import ClipLoops, FamilyRules, RowLoras, SamplingRule
from manifests.sampling import check_defaults
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import ATTENTION_KINDS, Rules, read_rules
from pab.broadcast.step_rules import StepRules
from pab.conditioning.loops import Loops
from pab.conditioning.references import ReferenceRules
from pab.families import FAMILIES
from pab.family import Family, Sampling
from pab.text.token_count import Count, token_counter
from pab.weights.lora import Lora
from pipeline.exits import UsageError
from pipeline.run.weights import Loras, RunWeights, WeightsLookup, loras_identity

PUBLISHED = "published"
"""The negative prompt that stands for the family's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRules:
    """Families by name, the rules of their rows, and the user's own broadcast rules.

    `weights`: of the families that rows have named so far. `left_out`: families that rows cannot name, with the reason.
    """

    families: Mapping[str, Family]
    rows: Mapping[str, FamilyRules]
    weights: Mapping[str, RunWeights]
    own_broadcasts: Mapping[str, Rules]
    left_out: Mapping[str, str]

    def broadcast(self, model: str, name: str) -> Rules:
        """Returns the rules that a row's `model` and `broadcast` mean."""
        own = self.families[model].rules_named(name)
        return self.own_broadcasts[name] if own is None else own

    def pinned_weights(self) -> dict[str, str]:
        """Returns by family what jobs load, for JobSettings. A family that loads its own files is not there."""
        return {name: weights.pinned for name, weights in self.weights.items() if weights.pinned is not None}

    def pinned_loras(self) -> dict[str, tuple[Lora, ...]]:
        """Returns by family what jobs add to its weights, for JobSettings."""
        return {name: weights.loras for name, weights in self.weights.items() if weights.loras}

    def job_broadcasts(self) -> dict[str, dict[str, object]] | None:
        """Returns the user's own rules as plain values, for JobSettings."""
        return {name: rules.to_dict() for name, rules in self.own_broadcasts.items()} or None


def run_rules(
    render: RenderSettings,
    families: Mapping[str, Family] = FAMILIES,
    *,
    begun: Mapping[str, RunWeights] | None = None,
    defaults: Mapping[str, str] | None = None,
    ask_hub: bool = True,
) -> RunRules:
    """Makes the rules of a run.

    `begun`, `defaults`: by family, weights of the run that goes on, and the broadcast that rows got which name none.
    `ask_hub`: as of WeightsLookup.

    `--weights` without a family's name belong to `--model`: with them only it and the families that are named there may
    render. Otherwise a family that is not named there has its own, looked up when a row names it. Raises UsageError for an
    unknown model, weights, precision or broadcast.
    """
    families = {name: _as_begun(family, (defaults or {}).get(name)) for name, family in families.items()}
    family = _family(render.model, families)
    own, default = _broadcast(render, family)
    left_out = _left_out(render, families)
    lookup = WeightsLookup(render.weights_of, begun or {}, render.loras, ask_hub=ask_hub)
    try:
        if render.model in left_out:
            raise ValueError(left_out[render.model])
        lookup.find(family)
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {render.model}: {error}") from error
    known = {name: family for name, family in families.items() if name not in left_out}
    rows = {
        name: family_rules(
            family,
            identity=partial(_identity, lookup, family, render),
            loras=None if family.loras is None else partial(_row_loras, lookup, family, render),
            own_broadcasts=_usable(own, family),
            default_broadcast=_default(render, family, _usable(own, family), default),
            sampled=_sampled(render, family) if name == render.model else {},
            broadcast_asked=default is not None,
            count_tokens=partial(_count_tokens, lookup, family),
        )
        for name, family in known.items()
    }
    try:
        check_defaults(rows[render.model])
    except ValueError as error:
        raise UsageError(str(error)) from error
    return RunRules(families=known, rows=rows, weights=lookup.found, own_broadcasts=own, left_out=left_out)


def family_rules(
    family: Family,
    *,
    identity: Callable[[], str],
    loras: Callable[[tuple[str, ...]], RowLoras] | None = None,
    own_broadcasts: Mapping[str, Rules],
    default_broadcast: str | None,
    sampled: Mapping[str, str | float] | None = None,
    broadcast_asked: bool = False,
    count_tokens: Callable[[], Count | None] | None = None,
) -> FamilyRules:
    """Returns one family's limits and defaults as plain ranges. `sampled`: how its rows are sampled that do not say it.

    `broadcast_asked`: whether the user chose the default broadcast; else what a preset of sampling needs comes first.
    `count_tokens`: returns what counts the tokens of prompts, if anything does.
    """
    limits = family.limits
    return FamilyRules(
        name=family.name,
        num_frames=limits.num_frames,
        height=limits.height,
        width=limits.width,
        fps=limits.fps,
        num_steps=limits.num_steps,
        guidance_scale=limits.guidance_scale,
        max_tokens=limits.max_tokens,
        max_prompt_chars=limits.max_prompt_chars,
        images=limits.images,
        broadcasts={
            name: rules.digest for name, rules in {**family.presets, **family.all_smaller(), **own_broadcasts}.items()
        },
        identity=identity,
        loras=loras,
        num_tokens=family.num_tokens,
        clean_prompt=family.clean_prompt,
        text_tokens=family.text_tokens,
        count_words=family.count_words,
        count_tokens=count_tokens,
        unknown_words=family.unknown_words,
        negative_unread=family.embedded_guidance,
        check_mask=None if family.references is None else partial(_check_mask, family.references),
        clip_loops=_loops_of(family.references),
        needs_image=family.references is not None and family.references.required,
        defaults=asdict(family.defaults)
        | ({"broadcast": default_broadcast} if default_broadcast else {})
        | dict(sampled or {}),
        broadcast_asked=broadcast_asked,
        samplings={name: _sampling_rule(sampling) for name, sampling in family.samplings.items()},
        flow_shift=family.flow_shift,
        second_guidance=family.second_guidance,
    )


def _sampling_rule(sampling: Sampling) -> SamplingRule:
    return SamplingRule(
        num_steps=sampling.num_steps,
        guidance_scale=sampling.guidance_scale,
        broadcast=None if sampling.num_steps is None else "none",
    )


def _sampled(render: RenderSettings, family: Family) -> dict[str, str | float]:
    negative = render.negative_prompt
    if negative == PUBLISHED:
        if family.published_negative is None:
            raise UsageError(
                f"--negative-prompt {PUBLISHED}: {family.name} publishes none; give its text, or leave it out"
            )
        negative = family.published_negative
    said = {
        "sampling": render.sampling,
        "flow_shift": render.flow_shift,
        "guidance_scale_2": render.guidance_scale_2,
        "negative_prompt": negative,
    }
    return {name: value for name, value in said.items() if value is not None}


def _loops_of(rules: ReferenceRules | None) -> Callable[..., ClipLoops] | None:
    return None if rules is None or rules.first_image else partial(_clip_loops, rules)


def _check_mask(
    rules: ReferenceRules, strategy: str, reference_frames: Sequence[int], num_frames: int, loops: int
) -> None:
    rules.masks(strategy, reference_frames, num_frames, Loops(count=loops))


def _clip_loops(
    rules: ReferenceRules, prompt: str, num_frames: int, count: int | None, length: int | None, edit: float | None
) -> ClipLoops:
    loops = rules.loops(prompt, num_frames, count=count, length=length, edit=edit)
    several = loops.count > 1
    return (
        loops.count,
        loops.condition_frame_length if several else None,
        loops.condition_frame_edit if several else None,
    )


def _default(render: RenderSettings, family: Family, own: Mapping[str, Rules], asked: str | None) -> str | None:
    # What was asked for, else what was chosen because it fits, else None: the family's own.
    if asked is not None and (asked in own or family.rules_named(asked) is not None):
        return asked
    chosen = render.kept.get(family.name, AS_ASKED).broadcast if asked is None else None
    return chosen if chosen is not None and family.rules_named(chosen) is not None else None


def _as_begun(family: Family, broadcast: str | None) -> Family:
    # Another version may have another default; rows that name none mean that of their run.
    if broadcast is None or broadcast == family.defaults.broadcast or broadcast not in family.presets:
        return family
    return replace(family, defaults=replace(family.defaults, broadcast=broadcast))


def _usable(own: Mapping[str, Rules], family: Family) -> dict[str, Rules]:
    return {name: rules for name, rules in own.items() if _fits(rules, family)}


def _fits(rules: Rules, family: Family) -> bool:
    if isinstance(rules, StepRules):
        return rules.misfit(family.name, family.sites) is None
    return family.keeps_blocks or not isinstance(rules, ForesightRules)


def _family(name: str, families: Mapping[str, Family]) -> Family:
    if name not in families:
        raise UsageError(f"--model {name!r} is not known, allowed: {', '.join(families)}")
    return families[name]


def _identity(lookup: WeightsLookup, family: Family, render: RenderSettings, loras: Loras | None = None) -> str:
    # `loras`: those of a row, which takes them instead of the run's.
    weights = lookup.find(family)
    added = loras_identity(weights.loras if loras is None else loras)
    return (
        f"weights {weights.digest}{added} precision {render.precision_of(family)}"
        f"{render.execution(family).identity}{render.video_identity}"
    )


def _count_tokens(lookup: WeightsLookup, family: Family) -> Count | None:
    return token_counter(lookup.find(family).pinned)


def _row_loras(lookup: WeightsLookup, family: Family, render: RenderSettings, texts: tuple[str, ...]) -> RowLoras:
    loras = lookup.find_row_loras(family, texts) if texts else ()
    return RowLoras(
        text=";".join(lora.text for lora in loras) or NO_LORA,
        digests=" ".join(lora.digest for lora in loras),
        identity=_identity(lookup, family, render, loras),
    )


def _left_out(render: RenderSettings, families: Mapping[str, Family]) -> dict[str, str]:
    left_out = {
        name: f"precision {render.precision_of(family)!r}, {name} runs in {', '.join(family.precisions)}"
        for name, family in families.items()
        if render.precision_of(family) not in family.precisions
    }
    left_out |= {
        name: f"--linears {render.linears}: {name} has no 8-bit matrix products, only full"
        for name, family in families.items()
        if render.linears == "float8" and not family.float8
    }
    left_out |= {
        name: f"--attention {render.attention}: {name} has no attention of 8-bit floats"
        for name, family in families.items()
        if render.attention == "float8" and not family.float8_attention
    }
    others = [name for name in families if render.weights and render.weights_of(name) is None]
    return left_out | {
        name: f"--weights belong to --model {render.model}; add --weights {name}=DIR_OR_HUB_ID" for name in others
    }


def _broadcast(render: RenderSettings, family: Family) -> tuple[dict[str, Rules], str | None]:
    # Returns the user's own rules by name, and the name that rows get by default.
    asked = render.broadcast
    if asked is None or family.rules_named(asked) is not None:
        return {}, asked
    path = Path(asked)
    if path.suffix != ".json":
        raise UsageError(
            f"--broadcast {asked!r} is no preset of {family.name} ({', '.join(family.presets)}), no smaller form of one "
            f"({', '.join(family.all_smaller())}) and no .json file"
        )
    name = path.stem
    if not name.isprintable():
        raise UsageError(
            f"--broadcast {asked!r}: the file's name is the plan's, and has a control character; rename the file"
        )
    if family.rules_named(name) is not None:
        raise UsageError(f"--broadcast {asked}: {name!r} is a preset of {family.name}; rename the file")
    rules = read_broadcast(path)
    if isinstance(rules, ForesightRules):
        if not family.keeps_blocks:
            raise UsageError(
                f"--broadcast {asked}: foresight keeps outputs of whole blocks, {family.name} those of single modules or "
                f"of two transformers in turn; use one of its presets ({', '.join(family.presets)}) or rules by kind of site"
            )
        return {name: rules}, name
    if isinstance(rules, StepRules):
        if problem := rules.misfit(family.name, family.sites):
            raise UsageError(f"--broadcast {asked}: {problem}")
        return {name: rules}, name
    stacks = {site.stack for site in family.sites}
    for mlp in rules.mlp:
        if mlp.stack not in stacks:
            raise UsageError(
                f"--broadcast {asked}: mlp stack={mlp.stack!r}, {family.name} has {', '.join(sorted(stacks))}"
            )
    depth = 1 + max(site.block for site in family.sites)
    for kind in ATTENTION_KINDS:
        rule = rules.attention(kind)
        if rule is not None and rule.blocks is not None and max(rule.blocks) >= depth:
            raise UsageError(
                f"--broadcast {asked}: {kind} block {max(rule.blocks)}, {family.name} has 0 to {depth - 1}"
            )
    return {name: rules}, name


def read_broadcast(path: Path) -> Rules:
    """Reads a JSON file of broadcast rules. Raises UsageError naming what is wrong in it."""
    try:
        return read_rules(path)
    except ValueError as error:
        raise UsageError(f"--broadcast {path}: {error}") from error
