"""Benchmarks that a GPU is meant for run here on tiny sizes, so that they still run when a GPU is at hand."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.library_gpu import PARTS, main, parts_of


def test_decoders_are_timed_and_one_that_fails_stops_none(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> dict[str, object]:
        raise torch.OutOfMemoryError("no memory")

    assert main(["decoding"], {"decoding broken": fails, "decoding ltx2": PARTS["decoding ltx2"]}) == 1
    broken, ltx2 = map(json.loads, capsys.readouterr().out.splitlines())
    assert broken["error"] == "OutOfMemoryError: no memory"
    assert ltx2["part"] == "decoding ltx2"
    assert min(ltx2["tiles_s"], ltx2["whole_s"], ltx2["fast_s"]) >= 0
    assert 0 < ltx2["fast_off_of_255"] < 1


def test_parts_are_named_by_their_first_word_too() -> None:
    assert parts_of([]) == list(PARTS)
    assert parts_of(["decoding wan", "norm"]) == ["decoding wan", "norm"]
    assert parts_of(["decoding"]) == [name for name in PARTS if name.startswith("decoding ")]
    with pytest.raises(ValueError, match="part 'decode' is not known, allowed: attention, norm, decoding wan"):
        parts_of(["decode"])
