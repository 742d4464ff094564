"""A prompt that its family's cleaning empties is told before anything is rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from manifests.accept import validate
from manifests.cleaning import MOST_CLEANED
from manifests.rules import FamilyRules
from pab.families import FAMILIES
from tests.manifests.conftest import family

Write = Callable[..., str]
CHINESE = ["一只橙色的猫在窗台上睡觉", "雨后的小巷，灯光映在水面上", "a quiet street after rain"]


def rules_of(name: str) -> dict[str, FamilyRules]:
    return {name: dataclasses.replace(family(name), clean_prompt=FAMILIES[name].clean_prompt)}


@pytest.mark.parametrize("name", ["open_sora", "latte", "open_sora_plan_v110", "open_sora_plan_v110_221"])
def test_a_prompt_that_cleaning_empties_or_halves_is_told_by_row(manifest: Write, name: str) -> None:
    prompts = [
        *CHINESE,
        "a cat 一只橙色的猫在窗台上睡觉 sleeps",
        "https://example.com/a",
        "download",
        "a café in 1920, 4k",
    ]
    result = validate(manifest({"prompt": prompts}), rules_of(name), default_model=name)
    assert result.num_rows == len(prompts)
    (told,) = result.warnings
    assert told.startswith(f"{name} cleans prompts as its own program does")
    assert "it leaves nothing of rows 0, 1, 4, 5 and less than half of row 3; write these prompts in English" in told


def test_a_family_that_keeps_chinese_has_no_such_warning(manifest: Write) -> None:
    for name in ("open_sora_plan_v120", "wan", "demo"):
        assert validate(manifest({"prompt": CHINESE}), rules_of(name), default_model=name).warnings == ()


def test_only_the_rows_of_the_family_are_counted_and_the_first_are_named(manifest: Write) -> None:
    rules = rules_of("latte") | {"wan": family()}
    columns = {"prompt": CHINESE[:1] * 20, "model": ["wan", "latte"] * 10, "negative_prompt": ["不"] * 20}
    (told,) = validate(manifest(columns), rules, default_model="wan").warnings
    assert "nothing of rows 1, 3, 5, 7, 9 and 5 more;" in told


def test_of_very_many_such_prompts_the_first_thousands_are_cleaned(manifest: Write) -> None:
    cleaned: list[str] = []
    rules = {"wan": dataclasses.replace(family(), clean_prompt=lambda text: cleaned.append(text) or "")}
    url = manifest({"prompt": CHINESE[:1] * (MOST_CLEANED + 9)})
    (told,) = validate(url, rules, default_model="wan").warnings
    assert len(cleaned) == MOST_CLEANED
    assert f"rows 0, 1, 2, 3, 4 and at least {MOST_CLEANED - 5:,} more" in told


def test_plain_prompts_are_not_cleaned_at_all(manifest: Write) -> None:
    def clean(text: str) -> str:
        raise AssertionError(text)

    rules = {"wan": dataclasses.replace(family(), clean_prompt=clean)}
    prompts = ["a quiet street after rain, with lamps; dusk", "the cat's whiskers - a close-up!"]
    assert validate(manifest({"prompt": prompts}), rules, default_model="wan").warnings == ()


def test_without_the_libraries_of_cleaning_it_is_told_that_nothing_was_looked_at(manifest: Write) -> None:
    def clean(text: str) -> str:
        raise ImportError("cleaning prompts needs ftfy; pip install 'pab-pipeline[models]'")

    rules = {"wan": dataclasses.replace(family(), clean_prompt=clean)}
    (told,) = validate(manifest({"prompt": CHINESE}), rules, default_model="wan").warnings
    assert "prompts were not looked at" in told
    assert "needs ftfy" in told
