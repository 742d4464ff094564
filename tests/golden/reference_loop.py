"""Checks that whole denoising runs of all families share: plans, decisions, and the inputs and outputs of the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.sites import Site
from tests.golden.broadcast_traces import check_ours, check_stated, plan_of, reference_for, rules_from_reference
from tests.golden.cases import Case, same
from tests.golden.exceptions import reason


@dataclass(frozen=True)
class FixedCodec:
    """A codec that only knows the size of the latents."""

    shape: tuple[int, ...]

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.shape


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Our plan for a case, and the plan that decides as the reference did; None if the reference reused an earlier clip."""

    ours: BroadcastPlan
    reference: BroadcastPlan | None


def plans_of(case: Case, seen: Sequence[float], sites: tuple[Site, ...], depth: int) -> Plans:
    """Checks every stated decision, and that ours equal the reference's, except for what `exceptions` names.

    `seen`: the noise level of every call, as the model gets it.
    """
    config, steps = case.facts["pab_config"], case.args["steps"]
    ours = make_plan(rules_from_reference(config), seen, sites)
    check_ours(ours, config, depth, case.name)
    calls = [int(level) for level in seen]
    reference = reference_for(config, steps, sites, depth)
    first, second = reference.decide(calls), reference.decide(calls)
    decided = first
    if case.args.get("second"):
        assert reason("counters that are not reset")
        decided = second
    stated = case.facts["decisions"]
    assert (stated is None) == (config is None), f"{case.name}: decisions and pab_config, one of them without the other"
    check_stated(decided, stated or {}, calls, case.name)
    again = case.facts.get("second_generation_on_same_model_identical")
    if again is not None:
        same((first.attention, first.mlp) == (second.attention, second.mlp), again, f"{case.name}: second generation")
    if decided.looks_back:
        assert reason("outputs of the clip before")
        return Plans(ours=ours, reference=None)
    return Plans(ours=ours, reference=plan_of(decided, ours))


def rows_of_steps(case: Case, prefix: str, count: int, clip: int) -> Any:
    """Returns one clip's model inputs of every call. For a single clip the file has no dim for clips."""
    (name,) = [name for name in case.tensors if name.startswith(prefix)]
    shown: Tensor = case.tensors[name]
    if shown.dim() == 6:
        same(shown.shape[1], count, f"clips in {name}")
        return shown[:, clip]
    same(1, count, f"clips in {name}")
    return shown


def check_answers(
    case: Case, answered: Sequence[Tensor], rows: Sequence[int], compare: Callable[[Tensor, Tensor, str], None]
) -> None:
    """Checks the first model output and the one half-way. `rows`: the reference's rows, in our order."""
    for part, call in (("first", 0), ("mid", len(answered) // 2)):
        (name,) = [name for name in case.tensors if name.startswith(f"model_output_{part}_")]
        compare(answered[call], case.tensors[name][list(rows)], f"{part} model output")
