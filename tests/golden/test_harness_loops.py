"""Loops of several clips, each with its own levels, mask, size and length, are built as the case states them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pab.sampling import rectified_flow as rf
from tests.golden.cases import Case, same_levels
from tests.golden.checks import FORMS
from tests.golden.forms import check_case
from tests.golden.made_cases import SHIPPED, change, copy_case


def loop_case(folder: Path, **settings: Any) -> Case:
    """Makes a loop of two clips, each with its own mask, size and length, computed step by step as published."""
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
        levels[:, 0] = float(np.nextafter(np.float32(1000), np.float32(2000)))
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
    return change(Case(path, folder), lambda _facts, _tensors: None)


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


def test_a_run_of_several_clips_gives_each_its_own_text_mask_size_and_levels(tmp_path: Path) -> None:
    """Joins two clips of the reference into one case."""
    parts = [Case(SHIPPED / "e2e_stdit3" / f"{name}.json", SHIPPED) for name in ("none", "none_360p_204f")]

    def join(facts: dict, tensors: dict) -> None:
        both = [part.tensors for part in parts]
        for name in ("in.z0", "in.y", "in.text_mask", "out"):
            tensors[name] = torch.cat([each[name] for each in both])
        tensors["latents_before_step"] = torch.stack([each["latents_before_step"] for each in both], dim=1)
        tensors["timesteps"] = torch.stack([each["timesteps"] for each in both], dim=1)
        for part in ("first", "mid"):
            rows = [each[f"model_output_{part}_step"] for each in both]
            tensors[f"model_output_{part}_step"] = torch.stack(rows, dim=1).flatten(0, 1)
        sizes = [part.content["args"] for part in parts]
        for name in ("h", "w", "n", "ntext"):
            del facts["args"][name]
        facts["args"] |= {"n": 2, "hw": [[size["h"], size["w"]] for size in sizes], "nf": [size["n"] for size in sizes]}

    case = change(copy_case("e2e_stdit3/none", tmp_path), join)
    check_case(case, FORMS)
    wrong = change(
        case, lambda _facts, tensors: tensors["in.text_mask"].__setitem__(1, tensors["in.text_mask"][0] * 0 + 1)
    )
    with pytest.raises(AssertionError, match="clip 1: latents before step 1"):
        check_case(wrong, FORMS)


def test_levels_that_a_reference_rounds_otherwise_are_the_ones_that_a_loop_walks_over(tmp_path: Path) -> None:
    """A first level above 1000 by one unit in the last place leaves every frame unchanged."""
    case = loop_case(tmp_path, lift=True, **OWN_SIZES)
    assert case.tensors["timesteps_given_to_model"][0].max() > 1000
    check_case(case, FORMS)
