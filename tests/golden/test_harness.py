"""The harness itself: the content of a case decides, and unknown content fails the case by name."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.golden.cases import Case, find_cases, same_levels
from tests.golden.checks import FORMS
from tests.golden.exceptions import UNLIKE_THE_REFERENCE
from tests.golden.forms import check_case, form_of
from tests.golden.made_cases import SHIPPED, change, copy_case

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
    with pytest.raises(AssertionError, match=r"here: level 1 .* 2 units in the last place"):
        same_levels([1.0, float(level)], [1.0, float(np.nextafter(up, np.float32(1000)))], "here")
    with pytest.raises(AssertionError, match="1 levels, stated 2"):
        same_levels([1.0], [1.0, 2.0], "here")


def test_names_in_the_list_of_exceptions_are_those_that_checks_give() -> None:
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py") if path.name != "exceptions.py")
    given = set(re.findall(r'reason\("([^"]+)"\)', source)) | {"intermediate results"}
    assert given == set(UNLIKE_THE_REFERENCE)
