"""Benchmarks that a GPU is meant for run here on tiny sizes, so that they still run when a GPU is at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import many_gpus
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


def test_parts_are_named_by_their_first_word_too() -> None:
    assert parts_of([]) == list(PARTS)
    assert parts_of(["decoding wan", "norm"]) == ["decoding wan", "norm"]
    assert parts_of(["decoding"]) == [name for name in PARTS if name.startswith("decoding ")]
    with pytest.raises(ValueError, match="part 'decode' is not known, allowed: attention, norm, decoding wan"):
        parts_of(["decode"])


def measure_on_a_rank(work: many_gpus.Work) -> None:
    many_gpus.measure_all(torch.distributed.get_rank(), work, torch.device("cpu"))


def work_on(folder: Path, *words: str) -> many_gpus.Work:
    options = many_gpus.parser().parse_args(["--out", str(folder), "--mode", "eager", "--repeat", "1", *words])
    return many_gpus.work_of(options, str(folder))


def lines_of(work: many_gpus.Work) -> dict[str, dict[str, Any]]:
    run_on_ranks(work.ranks, measure_on_a_rank, work)
    return {line["name"]: line for line in json.loads(Path(work.file).read_text())["lines"]}


def test_ranks_are_timed_beside_one_and_send_what_is_planned(tmp_path: Path) -> None:
    work = work_on(
        tmp_path, "--ranks", "4", "--plans", "none,pab246", "--meshes", "one,cfg2 sp2,sp4 inturn", "--num-steps", "10"
    )
    lines = lines_of(work)
    size = "64x96x17"
    for plan in ("none", "pab246"):
        assert lines[f"eager {plan}, {size}"]["clips_at_once"] == 4
        for mesh in ("cfg2 sp2", "inturn sp4"):
            line = lines[f"eager {plan} {mesh}, {size}"]
            assert line["off_one_rank"] < 1e-5
            assert line["sent_gb"] == pytest.approx(line["plan_sent_gb"])
            assert line["exposed_s"] > 0
            assert len(line["clip_step_ms"][0]) == 10
    assert lines[f"eager none inturn sp4, {size}"]["hidden_s"] > 0
    assert 10 < lines[f"eager pab246 cfg2 sp2, {size}"]["quality_db"] < 80
    assert [lines[f"decode, {ranks} ranks"]["off_of_255"] for ranks in (1, 2, 4)] == [0, 0, 0]
    alone, together = lines["exchange of 1 rows, 4 ranks"], lines["exchange of 2 rows, 4 ranks"]
    assert together["sent_mb"] == 2 * alone["sent_mb"]
    # What one card gave is known to later calls; and no row begins when time is over.
    later = lines_of(replace(work, rows=("eager pab246 cfg2 sp2",), parts=("rows",)))
    assert later[f"eager pab246 cfg2 sp2, {size}"]["times_one_card"] > 0
    assert {line["skipped"] for line in lines_of(replace(work, ends=0.0, parts=("rows",))).values()}


def test_a_plan_in_a_file_and_models_of_the_library_are_rows_too(tmp_path: Path) -> None:
    plan = tmp_path / "half.json"
    plan.write_text(json.dumps({"steps": {"num_steps": 10, "passes": [0, 1, 2, 4, 6, 8], "groups": []}}))
    words = ("--ranks", "2", "--parts", "rows", "--meshes", "one,sp2", "--plans", f"none,{plan}", "--num-steps", "10")
    lines = lines_of(work_on(tmp_path, *words))
    halved = lines[f"eager {plan} sp2, 64x96x17"]
    assert halved["sent_gb"] == pytest.approx(halved["plan_sent_gb"])
    assert halved["computed_share"] == pytest.approx(0.6)
    assert 10 < halved["quality_db"] < 80
    wan = lines_of(work_on(tmp_path, "--model", "wan", *words[:6], "--plans", "pab2-6"))["eager pab2-6 sp2, 32x32x9"]
    assert wan["sent_gb"] == pytest.approx(wan["plan_sent_gb"])
    assert wan["whole_clip_s"] > wan["seconds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--meshes", "sp4"), "2 ranks are no multiple of its 4"),
        (("--plans", "pab999"), "word 'pab999', allowed"),
        (("--plans", "no-such.json"), "plan no-such.json: "),
        (("--model", "sora9"), "--model 'sora9', allowed open_sora"),
        (("--parts", "rows,cake"), "--parts 'cake', allowed exchange, rows, decode"),
        (("--sizes", "480p"), "'480p', needs HEIGHTxWIDTHxFRAMES"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_ranks_start(
    tmp_path: Path, words: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        many_gpus.main(["--out", str(tmp_path), "--ranks", "2", *words])
    assert message in capsys.readouterr().err
