"""Broadcast decisions of the reference, call by call, for the families that are known."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import ATTENTION_KINDS, AttentionRule, BroadcastRules, MlpRule
from pab.broadcast.sites import Site
from pab.families.cogvideox.levels import trailing_timesteps
from pab.families.latte.sites import latte_sites
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora.sizes import image_size
from pab.families.open_sora_plan.sites import open_sora_plan_sites
from pab.sampling.rectified_flow import round_to, size_shift, timesteps
from pab.sampling.samplers import ddim_timesteps, euler_ancestral_timesteps, pndm_timesteps
from tests.golden.cases import Case, only, same, same_levels
from tests.golden.exceptions import reason
from tests.golden.reference_counters import STACKS, Decided, Reference

CONFIG = frozenset(
    {f"{kind}_{what}" for kind in ATTENTION_KINDS for what in ("broadcast", "threshold", "range")}
    | {"mlp_broadcast", "mlp_spatial_broadcast_config", "mlp_temporal_broadcast_config"}
)
TRACE = frozenset({
    "pab_config", "steps_given_to_manager", "n_transformer_calls", "timesteps", "timesteps_int", "depth", "first_generation",
    "second_generation", "mlp_cache_entries_left", "second_generation_counters_after",
})  # fmt: skip
OPEN_SORA_TRACE = frozenset({"resolution", "aspect_ratio", "height", "width", "num_frames", "dtype"})
SAME_AGAIN = "same decisions as the first"


def rules_from_reference(config: dict | None) -> BroadcastRules:
    """Reads a configuration in the reference's form. If it has no kind of attention, the reference broadcasts nothing."""
    only(config or {}, CONFIG, "pab_config")
    if config is None or not any(config.get(f"{kind}_broadcast") for kind in ATTENTION_KINDS):
        return BroadcastRules()
    attention = {
        kind: AttentionRule(
            range_steps=config[f"{kind}_range"], low=config[f"{kind}_threshold"][0], high=config[f"{kind}_threshold"][1]
        )
        for kind in ATTENTION_KINDS
        if config.get(f"{kind}_broadcast")
    }
    mlp = [
        MlpRule(stack=stack, blocks=tuple(entry["block"]), skip_count=entry["skip_count"], timestep=int(key))
        for stack in STACKS
        for key, entry in (config.get(f"mlp_{stack}_broadcast_config") or {}).items()
        if config.get("mlp_broadcast")
    ]
    return BroadcastRules(mlp=tuple(mlp), **attention)


def check_decisions(plan: BroadcastPlan, decisions: dict) -> None:
    """Checks that every site of the plan decides as the reference does."""
    for i, site in enumerate(plan.sites):
        if site.kind in ATTENTION_KINDS:
            assert plan.decisions(i) == decisions[site.kind], site.name
        elif f"mlp_{site.stack}" in decisions and site.stack in STACKS:
            assert plan.decisions(i) == mlp_decisions(decisions[f"mlp_{site.stack}"], site.block), site.name


def mlp_decisions(stated: dict | list, block: int) -> str:
    if isinstance(stated, dict):
        return stated[str(block)]
    return next(group["decisions"] for group in stated if block in group["blocks"])


def full_attention_sites(depth: int) -> tuple[Site, ...]:
    """Returns sites with one self attention per block, over space and time at once, as in CogVideoX."""
    return tuple(Site(name=f"blocks.{i}.attn1", kind="spatial", stack="spatial", block=i) for i in range(depth))


def three_attentions_sites(depth: int) -> tuple[Site, ...]:
    """Returns sites with spatial, temporal and cross attention in every block, as in Vchitect 2.0."""
    return tuple(
        Site(name=f"blocks.{i}.{kind}", kind=kind, stack="spatial", block=i)
        for i in range(depth)
        for kind in ATTENTION_KINDS
    )


def open_sora_levels(trace: Mapping[str, Any]) -> tuple[float, ...]:
    size = (trace["height"], trace["width"])
    if "resolution" in trace:
        same(image_size(trace["resolution"], trace["aspect_ratio"]), size, "size of the resolution")
    shift = size_shift(height=size[0], width=size[1], num_frames=trace["num_frames"], precision=trace["dtype"])
    return timesteps(trace["steps_given_to_manager"], shift=shift)


Levels = Callable[[int], tuple[float, ...]]
FAMILIES: Mapping[str, tuple[Callable[[int], tuple[Site, ...]], tuple[Levels, ...]]] = {
    r"open_sora \(STDiT3": (stdit3_sites, ()),
    r"latte \(Latte-1\), DDIM": (latte_sites, (ddim_timesteps,)),
    r"open_sora_plan v1\.1\.0.*PNDM": (latte_sites, (pndm_timesteps,)),
    r"open_sora_plan v1\.2\.0.*EulerAncestral": (open_sora_plan_sites, (euler_ancestral_timesteps,)),
    "cogvideox.*DDIM": (full_attention_sites, (trailing_timesteps, ddim_timesteps)),
    "vchitect": (three_attentions_sites, ()),
}
"""Model as named by a file of traces -> the model's sites, and the noise levels that its sampler may use.

Open-Sora's levels follow from the size that each trace states. Vchitect is not one of our families, so its levels are taken
from the trace.
"""
FAMILIES_PATTERN = "|".join(f"^ ?{pattern}" for pattern in FAMILIES)


def check(case: Case) -> None:

    model = case.facts["model"]
    (family,) = [pattern for pattern in FAMILIES if re.match(pattern, model)]
    sites, levels = FAMILIES[family]
    open_sora = family.startswith("open_sora ")
    for name, trace in case.facts["cases"].items():
        where = f"{case.name}: {name}"
        only(trace, TRACE | (OPEN_SORA_TRACE if open_sora else set()), where)
        steps, stated = trace["steps_given_to_manager"], trace["timesteps"]
        if open_sora:
            same_levels(open_sora_levels(trace), stated, where)
            same([int(round_to(trace["dtype"], level)) for level in stated], trace["timesteps_int"], where)
        else:
            same([int(level) for level in stated], trace["timesteps_int"], where)
            if levels:
                check_one_of(levels, steps, stated, where)
        check_trace(trace, sites(trace["depth"]), where)


def check_one_of(levels: Sequence[Levels], steps: int, stated: Sequence[float], where: str) -> None:
    """Checks that the stated levels are spaced in one of the known ways."""
    problems = []
    for walk in levels:
        try:
            same_levels(walk(steps), stated, f"{where}: {walk.__name__}")
            return
        except AssertionError as problem:
            problems.append(str(problem))
    raise AssertionError("; ".join(problems))


def check_trace(trace: Mapping[str, Any], sites: tuple[Site, ...], where: str) -> None:
    """Checks a trace against the reference's counters, and our plan against both, except for what `exceptions` names."""
    whole, counted, config = trace["timesteps_int"], trace["steps_given_to_manager"], trace["pab_config"]
    passes, rest = divmod(trace["n_transformer_calls"], len(whole))
    same(0, rest, f"{where}: calls that are left over")
    calls = [level for level in whole for _ in range(passes)]
    reference = reference_for(config, counted, sites, trace["depth"])
    first, second = reference.decide(calls), reference.decide(calls)
    check_stated(first, trace["first_generation"], calls, f"{where}, first generation")
    if isinstance(trace["second_generation"], str):
        same(trace["second_generation"], SAME_AGAIN, where)
        same((second.attention, second.mlp), (first.attention, first.mlp), f"{where}, second generation")
    else:
        assert reason("counters that are not reset")
        check_stated(second, trace["second_generation"], calls, f"{where}, second generation")
    same(second.counters, trace["second_generation_counters_after"], f"{where}: counters after the second generation")
    check_left(first, second, trace["mlp_cache_entries_left"], where)
    if passes > 1:
        assert reason("counters that two passes share")
        return
    check_ours(make_plan(rules_from_reference(config), whole, sites), config, trace["depth"], where)


def reference_for(config: dict | None, counted: int, sites: Sequence[Site], depth: int) -> Reference:
    stacks = tuple(dict.fromkeys(site.stack for site in sites if site.kind == "mlp"))
    return Reference(config=config, counted=counted, depth=depth, stacks=stacks)


def check_ours(plan: BroadcastPlan, config: dict | None, depth: int, where: str) -> None:
    """Checks that our plan decides, and reuses the same calls, as the reference would if its counters did not wrap."""
    calls = [int(level) for level in plan.timesteps]
    endless = reference_for(config, len(calls), plan.sites, depth).decide(calls)
    assert reason("counters that wrap")
    assert reason("stored and not reused")
    assert not endless.looks_back, where
    expected = plan_of(endless, plan).sources
    for call, (ours, theirs) in enumerate(zip(plan.sources, expected, strict=True)):
        for site, a, b in zip(plan.sites, ours, theirs, strict=True):
            assert a == b, f"{where}: {site.name} at call {call} uses the output of call {a}, the reference of {b}"


def plan_of(decided: Decided, plan: BroadcastPlan) -> BroadcastPlan:
    """Returns the plan that decides as the reference did. It cannot reuse outputs of an earlier clip."""
    keys = [(site.stack, site.block) if site.kind == "mlp" else site.kind for site in plan.sites]
    rows = tuple(tuple(decided.sources[key][call] for key in keys) for call in range(plan.num_steps))
    return replace(plan, sources=rows)


def check_stated(decided: Decided, stated: Mapping[str, Any], calls: Sequence[int], where: str) -> None:
    """Checks every letter, count, counter and source that is stated."""
    mlp_names = {f"mlp_{stack}" for stack in STACKS}
    only(stated, {*ATTENTION_KINDS, *mlp_names, "n_compute", "counters_after"}, where)
    for kind in set(ATTENTION_KINDS) & set(stated):
        same(decided.attention[kind], stated[kind], f"{where}: {kind}")
    for stack in STACKS:
        for block, letters, sources in mlp_stated(stated.get(f"mlp_{stack}", ())):
            same(decided.mlp[stack, block], letters, f"{where}: mlp of {stack} block {block}")
            if sources is not None:
                used = decided.sources[stack, block]
                ours = [calls[used[i]] if letter == "B" else None for i, letter in enumerate(letters)]
                same(ours, sources, f"{where}: sources of mlp of {stack} block {block}")
    for kind, count in stated.get("n_compute", {}).items():
        same(decided.computed(kind), count, f"{where}: computed {kind}")
    same(decided.counters, stated.get("counters_after", decided.counters), f"{where}: counters afterwards")


def mlp_stated(stated: Mapping[str, str] | Sequence[Mapping[str, Any]]) -> list[tuple[int, str, list | None]]:
    """Returns (block, letters, timesteps of the sources) of each block."""
    if isinstance(stated, Mapping):
        return [(int(block), letters, None) for block, letters in stated.items()]
    for group in stated:
        only(group, {"blocks", "decisions", "source_timestep"}, "mlp group")
    return [(block, group["decisions"], group["source_timestep"]) for group in stated for block in group["blocks"]]


def check_left(first: Decided, second: Decided, stated: Mapping[str, Sequence[Any]], where: str) -> None:
    """Checks what stays in the reference's store after the first generation, or after both."""
    only(stated, {f"mlp_{stack}" for stack in STACKS}, f"{where}: mlp_cache_entries_left")
    for name, entries in stated.items():
        stack = name.removeprefix("mlp_")
        found = sorted(_entry(entry) for entry in entries)
        allowed = [sorted(decided.left[stack]) for decided in (first, second)]
        assert found in allowed, f"{where}: left in the store of {stack} are {found}, expected {allowed[0]}"


def _entry(entry: Any) -> tuple[int, ...]:
    """Reads a stored output's name, timestep and block, as a list or as text."""
    if isinstance(entry, str):
        return tuple(int(number) for number in re.findall(r"\d+", entry))
    return tuple(int(number) for number in entry)
