"""Broadcast decisions of the reference, call by call, for the families that are known."""

from pab.models.stdit3 import stdit3_sites
from pab.plan import ATTENTION_KINDS, AttentionRule, BroadcastPlan, BroadcastRules, MlpRule, make_plan
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
    for trace in case.facts["cases"].values():
        check_open_sora(trace)


def check_open_sora(trace: dict) -> None:
    plan = make_plan(rules_from_reference(trace["pab_config"]), trace["timesteps_int"], stdit3_sites(trace["depth"]))
    stated = trace["first_generation"]
    check_decisions(plan, stated)
    for stack in ("spatial", "temporal"):
        for group in stated.get(f"mlp_{stack}", ()):
            check_mlp_sources(plan, group, stack)
    for kind, count in stated["n_compute"].items():
        sites = sum(site.kind == kind for site in plan.sites)
        assert plan.computed(kind) == count * sites


def check_mlp_sources(plan: BroadcastPlan, group: dict, stack: str) -> None:
    """A reused MLP output comes from the step the reference takes it from."""
    for block in group["blocks"]:
        index = plan.index[f"{stack}_blocks.{block}.mlp"]
        for step, source in enumerate(group["source_timestep"]):
            if source is not None:
                assert plan.timesteps[plan.sources[step][index]] == source
