"""Traces with other step counts, sizes, depths and rules are accepted, and our plans decide as the reference's counters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pab.broadcast.plan import make_plan
from pab.families.latte.sites import latte_sites
from pab.families.open_sora.sites import stdit3_sites
from pab.sampling import rectified_flow as rf
from pab.sampling.samplers import ddim_timesteps, pndm_timesteps
from tests.golden.broadcast_traces import check_ours, reference_for, rules_from_reference
from tests.golden.cases import Case
from tests.golden.checks import FORMS
from tests.golden.forms import check_case
from tests.golden.made_cases import change


def config(window: tuple[int, int], ranges: tuple[int, int, int], mlp: dict[int, tuple[list[int], int]]) -> dict:
    made: dict[str, Any] = {"mlp_broadcast": bool(mlp)}
    for kind, reach in zip(("spatial", "temporal", "cross"), ranges, strict=True):
        made |= {f"{kind}_broadcast": True, f"{kind}_threshold": list(window), f"{kind}_range": reach}
    for stack in ("spatial", "temporal"):
        made[f"mlp_{stack}_broadcast_config"] = {
            str(key): {"block": blocks, "skip_count": skip} for key, (blocks, skip) in mlp.items()
        }
    return made


def trace_of(reference_config: dict, levels: tuple[float, ...], steps: int, depth: int, sites) -> dict:
    """Makes a trace in the reference's form, with another number of steps and another depth."""
    calls = [int(level) for level in levels]
    reference = reference_for(reference_config, steps, sites(depth), depth)
    generations, after = [], []
    for _ in range(2):
        decided = reference.decide(calls)
        mlp = {
            f"mlp_{stack}": [
                {
                    "blocks": [block],
                    "decisions": decided.mlp[stack, block],
                    "source_timestep": [
                        calls[source] if letter == "B" else None
                        for letter, source in zip(decided.mlp[stack, block], decided.sources[stack, block], strict=True)
                    ],
                }
                for block in range(depth)
            ]
            for stack in ("spatial", "temporal")
        }
        counts = {kind: letters.count("C") for kind, letters in decided.attention.items()}
        generations.append({**decided.attention, **mlp, "n_compute": counts, "counters_after": decided.counters})
        after.append(decided)
    left = {f"mlp_{stack}": [list(entry) for entry in after[0].left[stack]] for stack in ("spatial", "temporal")}
    return {
        "pab_config": reference_config, "steps_given_to_manager": steps, "n_transformer_calls": len(calls), "depth": depth,
        "timesteps": list(levels), "timesteps_int": calls, "first_generation": generations[0],
        "second_generation": generations[1], "mlp_cache_entries_left": left,
        "second_generation_counters_after": after[1].counters,
    }  # fmt: skip


def trace_case(folder: Path, model: str, traces: dict[str, dict]) -> Case:
    path = folder / "traces" / "any.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"model": model, "legend": {}, "cases": traces}))
    return Case(path, folder)


def test_traces_of_other_step_counts_and_depths_are_known(tmp_path: Path) -> None:
    keys = {720: ([0, 1], 2), 640: ([0, 1], 2), 560: ([0], 3)}
    for steps in (8, 20, 25, 40, 100, 125):
        rules = config((100, 800), (2, 3, 6), keys)
        trace = trace_of(rules, ddim_timesteps(steps), steps, 3, latte_sites)
        check_case(trace_case(tmp_path, "latte (Latte-1), DDIM, leading", {f"s{steps}": trace}), FORMS)
    # with 25 steps one key is the last step that the previous key covers: its entry stays in the reference's store
    assert trace_of(rules, ddim_timesteps(25), 25, 3, latte_sites)["mlp_cache_entries_left"]["mlp_spatial"]


def test_traces_whose_counters_wrap_within_the_window_are_known_and_ours_do_not_wrap(tmp_path: Path) -> None:
    model = "open_sora_plan v1.1.0 (LatteT2V), PNDMScheduler() with its defaults"
    for steps in (10, 20, 50):
        trace = trace_of(config((10, 990), (3, 4, 7), {}), pndm_timesteps(steps), steps, 2, latte_sites)
        check_case(trace_case(tmp_path, model, {"any": trace}), FORMS)
        ours = make_plan(rules_from_reference(trace["pab_config"]), trace["timesteps_int"], latte_sites(2))
        theirs = trace["first_generation"]["spatial"]
        assert ours.decisions(0)[:steps] == theirs[:steps]
        assert ours.decisions(0) != theirs, "the reference wraps within its window here"


def test_open_sora_traces_of_other_sizes_lengths_and_precisions_are_known(tmp_path: Path) -> None:
    traces = {}
    for resolution, ratio, height, width, frames, steps, dtype in (
        ("144p", "1:1", 192, 192, 34, 12, "float32"),
        ("240p", "9:16", 240, 426, 102, 60, "bfloat16"),
        ("480p", "9:16", 480, 854, 51, 100, "bfloat16"),
    ):
        shift = rf.size_shift(height=height, width=width, num_frames=frames, precision=dtype)
        levels = rf.timesteps(steps, shift=shift)
        seen = tuple(rf.round_to(dtype, level) for level in levels)
        trace = trace_of(config((450, 930), (2, 4, 6), {676: ([0], 2), 864: ([0, 1], 2)}), seen, steps, 2, stdit3_sites)
        size = {"resolution": resolution, "aspect_ratio": ratio, "height": height, "width": width, "num_frames": frames}
        traces[resolution] = {**trace, **size, "timesteps": list(levels), "dtype": dtype}
    case = trace_case(tmp_path, "open_sora (STDiT3, Open-Sora v1.2)", traces)
    check_case(case, FORMS)
    wrong = change(case, lambda facts, _: facts["cases"]["240p"].update(num_frames=51))
    with pytest.raises(AssertionError, match="240p: level"):
        check_case(wrong, FORMS)


def test_our_plan_decides_as_the_reference_where_timesteps_repeat_and_keys_overlap() -> None:
    draw = np.random.default_rng(5)
    compared = 0
    while compared < 150:
        levels = sorted(draw.integers(100, 160, size=int(draw.integers(4, 24))).tolist(), reverse=True)
        keys = draw.choice(levels, size=min(3, len(levels)), replace=False).tolist()
        mlp = {key: (sorted({int(b) for b in draw.integers(0, 2, size=2)}), int(draw.integers(1, 4))) for key in keys}
        made = config((110, 150), tuple(int(r) for r in draw.integers(1, 7, size=3)), mlp)
        plan = make_plan(rules_from_reference(made), levels, stdit3_sites(2))
        try:
            reference_for(made, len(levels), plan.sites, 2).decide(levels)
        except KeyError:
            continue  # the reference stops here: its stored output is already removed
        check_ours(plan, made, 2, f"{levels} {mlp}")
        compared += 1
