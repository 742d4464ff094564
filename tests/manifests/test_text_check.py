"""What a model will not read of prompts is told before anything is rendered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.accept import validate
from manifests.rules import FamilyRules
from pab.text.token_count import token_counter
from tests.manifests.conftest import family

Manifest = Callable[..., str]


def losses(url: str, rules: FamilyRules) -> tuple[dict[str, int], tuple[str, ...]]:
    accepted = validate(url, {rules.name: rules}, default_model=rules.name)
    return dict(accepted.text_losses), accepted.warnings


def test_prompts_that_are_longer_than_the_text_encoder_reads_are_counted(manifest: Manifest) -> None:
    url = manifest({"prompt": ["a kite", "a kite " * 25, "\u96e8" * 25, "a kite " * 9]})
    short = replace(family(), text_tokens=20)
    counts, warnings = losses(url, short)
    assert counts == {"cut": 2}
    told = "the text encoder of wan reads 20 tokens and cuts the rest: 2 of the prompts are longer"
    assert warnings == (f"{told} (estimated by letters, its tokenizer is not here): rows 1, 2; shorten them",)
    counted: list[str] = []

    def count(texts: list[str]) -> list[int]:
        counted.extend(texts)
        return [len(text.split()) + 1 for text in texts]

    counts, warnings = losses(url, replace(short, count_tokens=lambda: count))
    assert counts == {"cut": 1}
    assert "1 of the prompts are longer (by its tokenizer): row 1;" in warnings[0]
    assert "a kite" not in counted  # too short to be counted


def test_an_encoder_of_whole_words_counts_those_of_every_prompt(manifest: Manifest) -> None:
    url = manifest({"prompt": ["a kite", "a kite, a kite, a kite, a kite", "a kite and many more words"] * 7_000})
    words = replace(family(), text_tokens=6, count_words=lambda text: text.count("a kite") * 2)
    told = "the text encoder of wan reads 6 words that it knows and cuts the rest: 7,000 of the prompts are longer: rows 1, 4"
    counts, warnings = losses(url, words)
    assert (counts, warnings[0].startswith(told)) == ({"cut": 7_000}, True), warnings


def test_words_that_a_model_does_not_know_are_named(manifest: Manifest) -> None:
    url = manifest({"prompt": ["a red kite", "a red ball", "a kite in the sky"]})
    knows = replace(family(), unknown_words=lambda text: [word for word in text.split() if word in ("kite", "sky")])
    assert losses(url, knows) == (
        {"unknown_words": 2},
        ("wan does not know 'kite', 'sky', in rows 0, 2; it renders the rest of the prompt",),
    )


def test_negative_prompts_without_effect_are_told(manifest: Manifest) -> None:
    url = manifest({"prompt": ["a", "b", "c"], "negative_prompt": ["x", "x", " "], "guidance_scale": [1.0, 5.0, 1.0]})
    assert losses(url, family()) == (
        {"negative_unread": 1},
        ("negative prompts have no effect in row 0: guidance is off at guidance_scale=1; leave them out",),
    )
    assert losses(url, replace(family(), negative_unread=True)) == (
        {"negative_unread": 2},
        (
            "negative prompts have no effect in rows 0, 1: wan takes guidance_scale as an input, in one pass; leave them out",
        ),
    )


def test_tokens_are_counted_with_the_tokenizer_that_lies_beside_the_weights(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "kite": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    (tmp_path / "tokenizer").mkdir()
    made.save(str(tmp_path / "tokenizer/tokenizer.json"))
    count = token_counter(str(tmp_path))
    assert count is not None
    assert count(["a kite", "a kite in the sky"]) == [2, 5]
    assert token_counter(None) is token_counter("organisation/model@main") is None
    (tmp_path / "tokenizer/tokenizer.json").write_text("{")
    assert token_counter(str(tmp_path)) is None
