"""The harness itself: it goes by what a case says, builds every form, and fails by name for what it does not know."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pab.broadcast.plan import make_plan
from pab.families.latte.sites import latte_sites
from pab.families.open_sora.sites import stdit3_sites
from pab.families.open_sora_plan.causal_tiles import Tiling
from pab.sampling import rectified_flow as rf
from pab.sampling.samplers import ddim_timesteps, pndm_timesteps
from tests.golden.broadcast_traces import check_ours, reference_for, rules_from_reference
from tests.golden.cases import Case, find_cases, same_levels
from tests.golden.causal_vae import load_model as load_causal_vae
from tests.golden.checks import FORMS
from tests.golden.forms import check_case, form_of

SHIPPED = Path(__file__).parents[1] / "data" / "golden"


def copy_case(name: str, folder: Path, new_name: str = "a/renamed") -> Case:
    """A shipped case under another name, with its weights beside it."""
    source = SHIPPED / name
    target = folder / new_name
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = json.loads(source.with_suffix(".json").read_text())
    stated = facts.get("weights", [])
    for weights in [stated] if isinstance(stated, str) else stated:
        for suffix in (".json", ".safetensors"):
            shutil.copy((source.parent / weights).with_suffix(suffix), (target.parent / weights).with_suffix(suffix))
    target.with_suffix(".json").write_text(json.dumps(facts))
    if source.with_suffix(".safetensors").exists():
        shutil.copy(source.with_suffix(".safetensors"), target.with_suffix(".safetensors"))
    return Case(target.with_suffix(".json"), folder)


def change(case: Case, edit: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Case:
    """Edits facts and tensors of a copied case, and what it states of its tensors with them."""
    facts = json.loads(case.path.read_text())
    tensors = load_file(case.tensor_file) if case.tensor_file.exists() else {}
    edit(facts, tensors)
    if tensors:
        facts["tensors"] = {name: stated(tensor) for name, tensor in tensors.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, case.tensor_file)
    case.path.write_text(json.dumps(facts))
    return Case(case.path, case.root)


def stated(tensor: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.dtype != torch.bool:
        facts["absmax"] = tensor.double().abs().max().item()
    return facts


CASES = (
    "rflow/loop_edit_ratio", "rflow/loop_two_prompts", "rflow/timesteps", "rflow/training_loss_masked", "stdit3/a6_odd_hw",
    "stdit3/full_layout", "latte/a2_text_mask", "osp110/a5_latent_mask", "osp120/a3_latent_mask", "vae_os12/decode_17",
    "vae_os12/encode_20", "vae_os12/latent_frames", "vae_osp110/decode_oldattn", "pab/latte", "pab/open_sora",
    "pab/open_sora_plan_v120", "pab/cogvideox", "open_sora_pipeline/text", "open_sora_pipeline/sizes",
    "open_sora_pipeline/mask_strategy",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_known_by_what_it_says_whatever_its_name(name: str, tmp_path: Path) -> None:
    case = copy_case(name, tmp_path, "some/folder/x17")
    (found,) = find_cases(tmp_path)
    assert found.path == case.path
    check_case(found, FORMS)


@pytest.mark.parametrize("name", [case.name for case in find_cases(SHIPPED)])
def test_every_shipped_case_has_one_form(name: str) -> None:
    case = Case(SHIPPED / f"{name}.json", SHIPPED)
    form = form_of(case, FORMS)
    form.check_stated(case)
    assert name.startswith(form.group)


@pytest.mark.parametrize("name", ["rflow/loop_edit_ratio", "stdit3/a6_odd_hw", "vae_os12/decode_17"])
def test_an_unknown_argument_field_or_tensor_fails_the_case_by_name(name: str, tmp_path: Path) -> None:
    def add_argument(facts: dict, tensors: dict) -> None:
        facts["args"] = {**facts.get("args", {}), "swirl": 1}

    def add_field(facts: dict, tensors: dict) -> None:
        facts["swirl"] = 1

    def add_tensor(facts: dict, tensors: dict) -> None:
        tensors["in.swirl"] = torch.ones(1)

    for place, edit in {"argument": add_argument, "field": add_field, "tensor": add_tensor}.items():
        case = change(copy_case(name, tmp_path, f"{place}/{Path(name).name}"), edit)
        with pytest.raises(AssertionError, match=rf"{case.name}: {place}: (in\.)?swirl not known"):
            check_case(case, FORMS)


def test_an_unknown_key_of_a_configuration_fails_the_case_by_name(tmp_path: Path) -> None:
    case = change(copy_case("stdit3/a6_odd_hw", tmp_path), lambda facts, _: facts["config"].update(swirl=1))
    with pytest.raises(AssertionError, match="a/renamed: config: swirl not known"):
        check_case(case, FORMS)
    trace = change(
        copy_case("pab/latte", tmp_path, "b/trace"),
        lambda facts, _: facts["cases"]["default"]["pab_config"].update(swirl_range=2),
    )
    with pytest.raises(AssertionError, match="pab_config: swirl_range not known"):
        check_case(trace, FORMS)


def test_what_no_check_looks_at_fails_the_case_by_name(tmp_path: Path) -> None:
    def add_mask(facts: dict, tensors: dict) -> None:
        tensors["x_mask_given_to_model"] = torch.ones(30, 4, 3, dtype=torch.bool)

    case = change(copy_case("rflow/loop_two_prompts", tmp_path), add_mask)
    with pytest.raises(AssertionError, match="a/renamed: x_mask_given_to_model stated, and not looked at"):
        check_case(case, FORMS)


def test_an_unknown_case_fails_by_name_and_nothing_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "strange.json").write_text('{"source": "Another program", "what": "something"}')
    (tmp_path / "a" / "broken.json").write_text("{")
    save_file({"out": torch.ones(1)}, tmp_path / "a" / "alone.safetensors")
    copy_case("stdit3/a6_odd_hw", tmp_path)
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["a/alone", "a/broken", "a/renamed", "a/strange"]
    for case in cases[:2] + cases[3:]:
        with pytest.raises(AssertionError, match=f"{case.name}: not a form of case that is known"):
            check_case(case, FORMS)


def test_a_changed_number_fails_the_case(tmp_path: Path) -> None:
    def edit_out(facts: dict, tensors: dict) -> None:
        tensors["out"].view(-1)[0] += 1e-3

    def edit_largest(facts: dict, tensors: dict) -> None:
        facts["tensors"]["out"]["absmax"] += 1e-3

    for name in ("rflow/loop_edit_ratio", "stdit3/a6_odd_hw", "vae_os12/decode_17"):
        case = change(copy_case(name, tmp_path), edit_out)
        with pytest.raises(AssertionError, match="largest difference"):
            check_case(case, FORMS)
    case = copy_case("stdit3/a6_odd_hw", tmp_path)
    facts = json.loads(case.path.read_text())
    edit_largest(facts, {})
    case.path.write_text(json.dumps(facts))
    with pytest.raises(AssertionError, match="a/renamed: out: largest value"):
        check_case(Case(case.path, case.root), FORMS)


def test_a_changed_letter_count_source_or_counter_fails_a_trace(tmp_path: Path) -> None:
    def letter(trace: dict) -> None:
        letters = trace["first_generation"]["cross"]
        trace["first_generation"]["cross"] = letters.replace("B", "C", 1)

    def mlp_letter(trace: dict) -> None:
        trace["first_generation"]["mlp_spatial"][0]["decisions"] = "C" * 50

    def count(trace: dict) -> None:
        trace["first_generation"]["n_compute"]["spatial"] += 1

    def source(trace: dict) -> None:
        sources = trace["first_generation"]["mlp_temporal"][0]["source_timestep"]
        sources[sources.index(720)] = 740

    def counter(trace: dict) -> None:
        trace["second_generation_counters_after"]["spatial"] = 1

    def left(trace: dict) -> None:
        trace["mlp_cache_entries_left"]["mlp_spatial"] = [[720, 0]]

    def level(trace: dict) -> None:
        trace["timesteps"][3] += 1

    def extra(trace: dict) -> None:
        trace["swirl"] = 1

    for edit in (letter, mlp_letter, count, source, counter, left, level, extra):
        case = change(copy_case("pab/latte", tmp_path), lambda facts, _, edit=edit: edit(facts["cases"]["pab347"]))
        with pytest.raises(AssertionError, match="renamed: pab347"):
            check_case(case, FORMS)


def test_levels_may_differ_by_one_unit_in_the_last_place_and_no_more() -> None:
    level = np.float32(863.6513)
    up = np.nextafter(level, np.float32(1000))
    same_levels([float(level)], [float(up)], "here")
    same_levels([float(up)], [float(level)], "here")
    with pytest.raises(AssertionError, match="here: level 1 .* 2 units in the last place"):
        same_levels([1.0, float(level)], [1.0, float(np.nextafter(up, np.float32(1000)))], "here")
    with pytest.raises(AssertionError, match="1 levels, stated 2"):
        same_levels([1.0], [1.0, 2.0], "here")


def test_levels_that_a_reference_rounds_otherwise_are_the_ones_that_a_loop_walks_over(tmp_path: Path) -> None:
    """A level above 1000, by its last place, leaves every frame as it is."""
    case = loop_case(tmp_path, lift=True, **OWN_SIZES)
    assert case.tensors["timesteps_given_to_model"][0].max() > 1000
    check_case(case, FORMS)


# -- loops ------------------------------------------------------------------------------------------------------------


def loop_case(folder: Path, **settings: Any) -> Case:
    """A loop of two clips with masks, sizes and lengths of their own, computed here step by step as published."""
    n, channels, frames, height, width, steps = 2, 4, 3, 3, 5, settings.pop("steps", 7)
    sizes, lengths = settings.pop("hw"), settings.pop("nf")
    masks = torch.tensor([[0.0, 1.0, 0.6], [1.0, 0.3, 1.0]])
    transform, discrete = settings.pop("transform", True), settings.pop("discrete", False)
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    z0, outputs = normal(n, channels, frames, height, width), normal(steps, 2 * n, 2 * channels, frames, height, width)
    noise = normal(steps, n, channels, frames, height, width)
    levels = torch.tensor([(1 - i / steps) * 1000 for i in range(steps)]).repeat(n, 1)
    levels = levels.round() if discrete else levels
    if transform:
        length = torch.tensor(lengths, dtype=torch.float32)
        ratio = torch.tensor([h * w / 512**2 for h, w in sizes]).sqrt() * (length // 17 * 5).sqrt()
        unit = levels / 1000
        levels = ratio[:, None] * unit / (1 + (ratio[:, None] - 1) * unit) * 1000
    elif discrete:
        levels = levels.long()
    if settings.pop("lift", False):
        levels[:, 0] = np.nextafter(np.float32(1000), np.float32(2000))
    shown, active_at, z, begun = [], [], z0.clone(), masks == 1
    for step in range(steps):
        level = levels[:, step]
        active = masks * 1000 >= level[:, None]
        share = (level / 1000)[:, None, None, None, None]
        noised = (1 - share) * z + share * noise[step]
        z_in = torch.where((active & ~begun)[:, None, :, None, None], noised, z)
        begun = active
        shown.append(z_in.clone())
        active_at.append(active.repeat(2, 1))
        cond, uncond = outputs[step].chunk(2, dim=1)[0].chunk(2, dim=0)
        below = levels[:, step + 1] if step + 1 < steps else torch.zeros_like(level)
        moved = z_in + (uncond + 4.5 * (cond - uncond)) * ((level - below) / 1000)[:, None, None, None, None]
        z = torch.where(active[:, None, :, None, None], moved, z)
    tensors = {
        "in.z0": z0, "in.model_outputs": outputs, "in.mask": masks, "in.noise": noise, "out": z,
        "in.height": torch.tensor([float(h) for h, _ in sizes]), "in.width": torch.tensor([float(w) for _, w in sizes]),
        "in.num_frames": torch.tensor(lengths, dtype=torch.float32), "z_given_to_model": torch.stack(shown),
        "timesteps_given_to_model": levels.T.repeat(1, 2).contiguous(), "x_mask_given_to_model": torch.stack(active_at),
    }  # fmt: skip
    args = {
        "seed": 3, "n": n, "steps": steps, "cfg": 4.5, "C": channels, "T": frames, "H": height, "W": width,
        "hw": sizes, "nf": lengths, "mask": masks.tolist(), **settings,
    }  # fmt: skip
    path = folder / "loops" / "q.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"source": "Open-Sora v1.2.0 opensora/schedulers/rf (RFLOW.sample)", "args": args}))
    save_file(tensors, path.with_suffix(".safetensors"))
    return change(Case(path, folder), lambda facts, _: None)


OWN_SIZES = {"hw": [[480, 854], [144, 256]], "nf": [51, 102]}


@pytest.mark.parametrize("stated_as", ["discrete", "use_discrete_timesteps"])
@pytest.mark.parametrize(("transform", "discrete"), [(True, False), (True, True), (False, True), (False, False)])
def test_loops_have_levels_masks_sizes_and_lengths_of_their_own(
    transform: bool, discrete: bool, stated_as: str, tmp_path: Path
) -> None:
    case = loop_case(tmp_path, transform=transform, discrete=discrete, **OWN_SIZES)
    check_case(
        change(case, lambda facts, _: facts["args"].update({"transform": transform, stated_as: discrete})), FORMS
    )
    if transform:
        with pytest.raises(AssertionError, match="level"):
            check_case(change(case, lambda facts, _: facts["args"].update({"transform": False})), FORMS)
    with pytest.raises(AssertionError, match="level"):
        check_case(
            change(case, lambda facts, _: facts["args"].update({"transform": transform, stated_as: not discrete})),
            FORMS,
        )


def test_another_mask_noise_or_size_of_the_second_clip_fails_the_loop(tmp_path: Path) -> None:
    def mask(facts: dict, tensors: dict) -> None:
        tensors["in.mask"][1] = tensors["in.mask"][0]

    def noise(facts: dict, tensors: dict) -> None:
        tensors["in.noise"][:, 1] = tensors["in.noise"][:, 0]

    def size(facts: dict, tensors: dict) -> None:
        facts["args"]["hw"][1] = facts["args"]["hw"][0]

    def length(facts: dict, tensors: dict) -> None:
        tensors["in.num_frames"][1] = 51

    for edit, problem in ((mask, "mask"), (noise, "clip 1: z at step"), (size, "in.height"), (length, "in.num_frames")):
        case = change(loop_case(tmp_path, **{key: list(value) for key, value in OWN_SIZES.items()}), edit)
        with pytest.raises(AssertionError, match=problem):
            check_case(case, FORMS)


def test_switches_that_contradict_each_other_fail_the_loop(tmp_path: Path) -> None:
    case = loop_case(tmp_path, transform=True, **OWN_SIZES)
    edited = change(case, lambda facts, _: facts["args"].update(transform=True, use_timestep_transform=False))
    with pytest.raises(AssertionError, match="transform and use_timestep_transform contradict"):
        check_case(edited, FORMS)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("discrete", [False, True])
def test_levels_are_those_that_torch_computes(discrete: bool, precision: str) -> None:
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    for height, width, frames in ((480, 854, 51), (144, 256, 34), (720, 1280, 408), (227, 333, 17), (512, 512, 1)):
        for steps in (3, 10, 17, 30, 50, 100):
            h, w, f = (torch.tensor([value], dtype=dtype) for value in (height, width, frames))
            latent = torch.ones_like(f) if frames == 1 else f // 17 * 5
            ratio = (h * w / 512**2).sqrt() * latent.sqrt()
            theirs = []
            for i in range(steps):
                level = (1.0 - i / steps) * 1000
                unit = torch.tensor([round(level) if discrete else level]) / 1000
                theirs.append((ratio * unit / (1 + (ratio - 1) * unit) * 1000).float().item())
            shift = rf.size_shift(height=height, width=width, num_frames=frames, precision=precision)
            same_levels(rf.timesteps(steps, shift=shift, discrete=discrete), theirs, f"{height} {frames} {steps}")


# -- traces -----------------------------------------------------------------------------------------------------------


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
    """A trace in the reference's form, of another number of steps and another depth."""
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
    # of 25 steps one key is the last step of the key before: its entry stays in the reference's store
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
            continue  # the reference stops here: it has given its stored output away
        check_ours(plan, made, 2, f"{levels} {mlp}")
        compared += 1


# -- tiles ------------------------------------------------------------------------------------------------------------

TILINGS = (
    # latents and pixels of a tile, latent frames and frames, overlap; latents
    ((4, 32, 3, 9, 0.25), (5, 6, 5)),
    ((3, 24, 2, 5, 0.4), (4, 5, 7)),
    ((4, 32, 2, 5, 0.5), (3, 4, 3)),
    ((5, 40, 3, 17, 0.0), (3, 7, 4)),
    ((4, 28, 3, 9, 0.25), (3, 6, 6)),
)


@pytest.mark.parametrize(("sizes", "shape"), TILINGS)
def test_tiles_with_sizes_of_their_own_are_those_of_the_reference(
    sizes: tuple[int, int, int, int, float], shape: tuple[int, int, int]
) -> None:
    case = Case(SHIPPED / "vae_osp110" / "decode_oldattn.json", SHIPPED)
    vae = load_causal_vae(case, "decode")
    latent, pixels, frames, _, overlap = sizes
    z = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(1))
    tiling = Tiling(
        latent_size=latent, sample_size=pixels, latent_frames=frames, sample_frames=sizes[3], overlap=overlap
    )
    with torch.inference_mode():
        ours = vae.decode(z, tiling=tiling)
        theirs = in_tiles(vae._decode, z / 0.18215, size=latent, result=pixels, frames=frames, overlap=overlap)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=2e-5)


def test_pixels_are_encoded_in_tiles_as_the_reference_does() -> None:
    tiling = Tiling(latent_size=4, sample_size=32, latent_frames=3, sample_frames=9, overlap=0.25)
    x = torch.randn(1, 3, 13, 48, 32, generator=torch.Generator().manual_seed(2))
    case = Case(SHIPPED / "vae_osp110" / "decode_oldattn.json", SHIPPED)
    vae = load_causal_vae(case, "decode")
    with torch.inference_mode():
        ours = vae.encode(x, tiling=tiling).moments
        theirs = in_tiles(vae._encode, x, size=32, result=4, frames=9, overlap=0.25)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def in_tiles(apply, x: Tensor, *, size: int, result: int, frames: int, overlap: float) -> Tensor:
    """Tiles one by one, told by their corners: spans of time that share one frame, and in each rows of tiles."""
    step, fade = int(size * (1 - overlap)), int(result * overlap)
    spans = []
    for start in range(0, max(x.shape[2] - 1, 1), frames - 1):
        span = x[:, :, start : start + frames]
        corners = [[(y, c) for c in range(0, x.shape[4], step)] for y in range(0, x.shape[3], step)]
        tiles = [[apply(span[..., y : y + size, c : c + size]) for y, c in row] for row in corners]
        rows = []
        for i, row in enumerate(tiles):
            for j, tile in enumerate(row):
                if i:
                    blend(tiles[i - 1][j], tile, 3, fade)
                if j:
                    blend(row[j - 1], tile, 4, fade)
            rows.append(torch.cat([tile[..., : result - fade, : result - fade] for tile in row], dim=4))
        whole = torch.cat(rows, dim=3)
        spans.append(whole[:, :, 1:] if start else whole)
    return torch.cat(spans, dim=2)


def blend(before: Tensor, tile: Tensor, dim: int, extent: int) -> None:
    extent = min(before.shape[dim], tile.shape[dim], extent)
    for i in range(extent):
        old = before.select(dim, before.shape[dim] - extent + i)
        tile.select(dim, i).copy_(old * (1 - i / extent) + tile.select(dim, i) * (i / extent))


def test_names_in_the_list_of_exceptions_are_those_that_checks_give() -> None:
    from tests.golden.exceptions import UNLIKE_THE_REFERENCE

    source = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py") if path.name != "exceptions.py")
    given = set(re.findall(r'reason\("([^"]+)"\)', source)) | {"intermediate results"}
    assert given == set(UNLIKE_THE_REFERENCE)
