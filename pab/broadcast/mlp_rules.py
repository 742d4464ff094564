"""Which steps reuse the MLP outputs of which step, by the rules for MLPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pab.broadcast.rules import MlpRule


def mlp_sources(rules: Iterable[MlpRule], timesteps: Sequence[int]) -> dict[tuple[str, int], dict[int, int]]:
    """Returns (stack, block) -> {step that reuses: step that computed}.

    A key step always computes, and so does every later step with the same key timestep. If rules of a stack overlap, the
    first one decides. As published, a rule by timestep also decides for blocks that it does not list: they compute.
    """
    sources: dict[tuple[str, int], dict[int, int]] = {}
    keyed = [(rule, keys) for rule in rules if (keys := rule.key_steps(timesteps))]
    for stack in dict.fromkeys(rule.stack for rule, _ in keyed):
        here = [(rule, keys) for rule, keys in keyed if rule.stack == stack]
        covering = _covering(here, timesteps)
        for block in dict.fromkeys(block for rule, _ in here for block in rule.blocks):
            computing = {step for rule, keys in here if block in rule.blocks for step in keys}
            found = sources.setdefault((stack, block), {})
            for step, rules_there in covering.items():
                deciding = _deciding(rules_there, block)
                if deciding is not None and step not in computing:
                    # A rule by position reuses the latest kept output; a rule by timestep the one of its own timestep.
                    own = computing if deciding[0].timestep is None else deciding[1]
                    found[step] = max(key for key in own if key < step)
    return sources


Keyed = tuple[MlpRule, tuple[int, ...]]
"""A rule and its key steps."""


def _covering(rules: Sequence[Keyed], timesteps: Sequence[int]) -> dict[int, list[Keyed]]:
    """Returns, per step, the rules that cover it: from their key step on, those whose steps include its timestep."""
    found: dict[int, list[Keyed]] = {}
    for rule, keys in rules:
        covered = set(timesteps[keys[0] : keys[0] + 1 + rule.skip_count])
        for step in range(keys[0], len(timesteps)):
            if timesteps[step] in covered:
                found.setdefault(step, []).append((rule, keys))
    return found


def _deciding(rules: Sequence[Keyed], block: int) -> Keyed | None:
    """Returns the one of the rules covering a step that makes the block reuse; None if the block computes."""
    for rule, keys in rules:
        if block in rule.blocks:
            return rule, keys
        if rule.timestep is not None and all(
            block not in other.blocks for other, _ in rules if other.timestep == rule.timestep
        ):
            return None
    return None
