"""Benchmarks that a GPU is meant for run here on tiny sizes, so that they still run when a GPU is at hand."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import two_gpus
from benchmarks.library_gpu import PARTS, main, parts_of
from tests.ranks import run_on_ranks


def test_decoders_are_timed_and_one_that_fails_stops_none(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> dict[str, object]:
        raise torch.OutOfMemoryError("no memory")

    assert main(["decoding"], {"decoding broken": fails, "decoding ltx2": PARTS["decoding ltx2"]}) == 1
    broken, ltx2 = map(json.loads, capsys.readouterr().out.splitlines())
    assert broken["error"] == "OutOfMemoryError: no memory"
    assert ltx2["part"] == "decoding ltx2"
    assert min(ltx2["tiles_s"], ltx2["whole_s"], ltx2["fast_s"]) >= 0
    assert 0 < ltx2["fast_off_of_255"] < 1


def test_products_and_a_block_are_timed_and_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["products", "--profile", str(tmp_path)]) + main(["block"]) == 0
    products, block = map(json.loads, capsys.readouterr().out.splitlines())
    assert all(0 < products[f"{name}_off"] < 0.06 for name in ("square", "mlp_up", "mlp_down"))
    assert block["one_block_step_ms"] > 0
    assert "aten::" in (tmp_path / "products.txt").read_text()
    assert products["profile"] == str(tmp_path / "products.txt")


def test_parts_are_named_by_their_first_word_too() -> None:
    assert parts_of([]) == list(PARTS)
    assert parts_of(["decoding wan", "norm"]) == ["decoding wan", "norm"]
    assert parts_of(["decoding"]) == [name for name in PARTS if name.startswith("decoding ")]
    with pytest.raises(ValueError, match="part 'decode' is not known, allowed: attention, norm, decoding wan"):
        parts_of(["decode"])


def measure_on_a_rank(work: two_gpus.Work) -> None:
    two_gpus.measure_all(torch.distributed.get_rank(), work, torch.device("cpu"))


def test_two_ranks_are_timed_beside_one_and_no_row_begins_when_time_is_over(tmp_path: Path) -> None:
    work = two_gpus.Work(
        meet="-", file=str(tmp_path / "lines.json"), device="cpu", size="tiny", backend="eager", mode="eager", repeat=1,
        plans=("pab246",), meshes=("", "cfg2", "sp2 inturn"), parts=("exchange", "rows", "decode"),
        ends=time.time() + 500,
    )  # fmt: skip
    run_on_ranks(2, measure_on_a_rank, work)
    lines = {line["name"]: line for line in json.loads((tmp_path / "lines.json").read_text())["lines"]}
    for words in ("eager pab246", "eager pab246 cfg2", "eager pab246 inturn sp2"):
        assert lines[words]["off_one_rank"] < 1e-5
    assert lines["eager pab246 inturn sp2"]["hidden_s"] > 0
    assert lines["decode, two ranks"]["off_of_255"] == 0
    assert lines["exchange of 2 rows"]["sent_mb"] == 2 * lines["exchange of 1 rows"]["sent_mb"]
    run_on_ranks(2, measure_on_a_rank, replace(work, ends=0.0, parts=("rows",)))
    assert {line["skipped"] for line in json.loads((tmp_path / "lines.json").read_text())["lines"]}
