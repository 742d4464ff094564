"""Broadcast decisions of the reference, call by call, for the families that are known."""

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import ATTENTION_KINDS, AttentionRule, BroadcastRules, MlpRule
from pab.broadcast.sites import Site
from pab.families.latte.sites import latte_sites
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora_plan.sites import open_sora_plan_sites
from pab.sampling.samplers import ddim_timesteps, euler_ancestral_timesteps, pndm_timesteps
from tests.golden.cases import Case


def rules_from_reference(config: dict | None) -> BroadcastRules:
    """Reads a configuration in the reference's words."""
    if config is None:
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
        for stack in ("spatial", "temporal")
        for key, entry in (config.get(f"mlp_{stack}_broadcast_config") or {}).items()
        if config.get("mlp_broadcast")
    ]
    return BroadcastRules(mlp=tuple(mlp), **attention)


def check_decisions(plan: BroadcastPlan, decisions: dict, stacks: tuple[str, ...] = ("spatial", "temporal")) -> None:
    """Every site of the plan decides as the reference does."""
    for i, site in enumerate(plan.sites):
        if site.kind in ATTENTION_KINDS:
            assert plan.decisions(i) == decisions[site.kind], site.name
        elif f"mlp_{site.stack}" in decisions and site.stack in stacks:
            assert plan.decisions(i) == mlp_decisions(decisions[f"mlp_{site.stack}"], site.block), site.name


def mlp_decisions(stated: dict | list, block: int) -> str:
    if isinstance(stated, dict):
        return stated[str(block)]
    return next(group["decisions"] for group in stated if block in group["blocks"])


def check(case: Case) -> None:
    sites, levels = SITES[case.path.stem], TIMESTEPS.get(case.path.stem)
    for trace in case.facts["cases"].values():
        if levels is not None:
            assert list(levels(trace["steps_given_to_manager"])) == trace["timesteps"]
            assert [int(level) for level in trace["timesteps"]] == trace["timesteps_int"]
        check_trace(trace, sites(trace["depth"]))


def full_attention_sites(depth: int) -> tuple[Site, ...]:
    """One self attention a block, over space and time at once, as CogVideoX has."""
    return tuple(Site(name=f"blocks.{i}.attn1", kind="spatial", stack="spatial", block=i) for i in range(depth))


def three_attentions_sites(depth: int) -> tuple[Site, ...]:
    """Spatial, temporal and cross attention in every block, as Vchitect 2.0 has."""
    return tuple(
        Site(name=f"blocks.{i}.{kind}", kind=kind, stack="spatial", block=i)
        for i in range(depth)
        for kind in ATTENTION_KINDS
    )


SITES = {
    "open_sora": stdit3_sites,
    "latte": latte_sites,
    "open_sora_plan_v110": latte_sites,
    "open_sora_plan_v120": open_sora_plan_sites,
    "cogvideox": full_attention_sites,
    "vchitect": three_attentions_sites,
}
TIMESTEPS = {
    "latte": ddim_timesteps,
    "open_sora_plan_v110": pndm_timesteps,
    "open_sora_plan_v120": euler_ancestral_timesteps,
}


def check_trace(trace: dict, sites: tuple[Site, ...]) -> None:
    """The plan decides as the reference's first generation; a second plan, of which the reference knows another, is equal."""
    rules = rules_from_reference(trace["pab_config"])
    plan = make_plan(rules, trace["timesteps_int"], sites)
    stated = trace["first_generation"]
    check_decisions(plan, stated)
    for stack in ("spatial", "temporal"):
        for group in stated.get(f"mlp_{stack}", ()):
            check_mlp_sources(plan, group, stack)
    for kind, count in stated["n_compute"].items():
        assert plan.computed(kind) == count * sum(site.kind == kind for site in plan.sites)
    assert make_plan(rules, trace["timesteps_int"], sites).sources == plan.sources


def check_with_wrapping_counters(case: Case) -> None:
    """A reference that calls the transformer oftener than its counters run: where they start again, so does the plan.

    Two passes a step with one set of counters and one cache: of the calls, told in their order, every `counted` ones decide
    like a plan of their own, and nothing is reused across the border.
    """
    for trace in case.facts["cases"].values():
        counted, stated = trace["steps_given_to_manager"], trace["first_generation"]
        levels = [level for level in trace["timesteps_int"] for _ in range(2)]
        assert len(levels) == trace["n_transformer_calls"]
        rules, sites = rules_from_reference(trace["pab_config"]), SITES[case.path.stem](trace["depth"])
        for start in range(0, len(levels), counted):
            calls = slice(start, start + counted)
            plan = make_plan(rules, levels[calls], sites)
            check_decisions(plan, {kind: stated[kind][calls] for kind in ATTENTION_KINDS})
        for kind, count in stated["n_compute"].items():
            assert stated[kind].count("C") == count
        assert trace["second_generation"] == "same decisions as the first"


def check_mlp_sources(plan: BroadcastPlan, group: dict, stack: str) -> None:
    """A reused MLP output comes from the step the reference takes it from."""
    for block in group["blocks"]:
        index = next(i for i, s in enumerate(plan.sites) if (s.kind, s.stack, s.block) == ("mlp", stack, block))
        for step, source in enumerate(group["source_timestep"]):
            if source is not None:
                assert plan.timesteps[plan.sources[step][index]] == source
