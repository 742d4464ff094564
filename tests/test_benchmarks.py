"""Benchmarks that a GPU is meant for run here on tiny sizes, so that they still run when a GPU is at hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import job_start, kernels_by_rule, many_gpus, status_1m
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


def test_what_a_job_does_first_is_timed_with_an_empty_and_a_filled_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "start.json"
    job_start.main(["--out", str(file), "--num-steps", "1", "--words", ""])
    found = json.loads(file.read_text())
    assert list(found) == ["empty", "filled"]
    names = [what for what, _ in found["empty"]]
    assert names == [what for what, _ in found["filled"]]
    seconds = dict(found["filled"])
    assert seconds["import torch"] > 0.1
    assert seconds["the first clip of 1 steps"] >= seconds["  its step 0"] > seconds["the second"], "it captures graphs"
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(names) + 1


def test_kernels_by_rule_are_compared_with_those_by_timing_and_a_row_that_fails_stops_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = "wan: compiled none"
    rows = f"open_sora_plan: compiled none; {row}"
    words = ["--out", str(tmp_path), "--rows", rows, "--num-steps", "2", "--repeat", "1", "--backend", "eager"]
    assert kernels_by_rule.main(words) == 1
    lines = json.loads((tmp_path / "kernels_by_rule.json").read_text())
    assert [(line["row"], line["choice"], line["apart"]) for line in lines] == [
        (row, choice, 0.0) for choice in kernels_by_rule.CHOICES
    ]
    assert all(line["step_ms"]["scm"] > 0 for line in lines)
    # As torch itself says it in the two processes.
    assert {(line["timings"], line["other_timings"]) for line in lines} == {("", "inverse")}
    told = capfd.readouterr()
    assert f"| {row}, scm | " in told.out
    assert told.err.count("open_sora_plan: compiled none: ValueError: num_steps=2, PNDM needs 4 or more") == 2


def test_latents_of_another_process_count_as_apart(tmp_path: Path) -> None:
    torch.save(torch.full((2,), 2.0), tmp_path / "one.pt")
    torch.save(torch.full((2,), 2.5), tmp_path / "other.pt")
    one = {"row": "wan: compiled none", "latents": str(tmp_path / "one.pt"), "timings": ""}
    timed = {**one, "choice": "by timing", "step_ms": {"scm": 4.0}, "inductors_ms": 1.0}
    ruled = {**one, "choice": "by rule", "step_ms": {"scm": 5.0}, "inductors_ms": 2.0}
    told = kernels_by_rule.compared([timed, ruled], [{**timed, "latents": str(tmp_path / "other.pt")}])
    assert [each["apart"] for each in told] == [0.25, None]
    line = "| wan: compiled none, scm | 4.0 -> 5.0 | 1.00 -> 2.00 a step | 0.25000 -> not rendered |"
    assert kernels_by_rule.table(told).splitlines()[2:] == [line]
    assert kernels_by_rule.table(told[:1]).splitlines()[2:] == []


def test_rows_that_the_first_process_has_not_are_not_compared_with_themselves(tmp_path: Path) -> None:
    line = {"row": "wan: compiled none", "choice": "by rule", "latents": "x", "timings": "inverse"}
    assert kernels_by_rule.compared([], [line]) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("wam: compiled none", "'wam', allowed open_sora"),
        ("wan: fast", "'fast'"),
        ("wan: eager none", "only our own compiled rows on one rank"),
        ("wan: compiled none cfg2", "only our own compiled rows on one rank"),
        ("wan: diffusers: compiled none", "only our own compiled rows on one rank"),
    ],
)
def test_rows_of_kernels_by_rule_that_are_none_are_refused(
    words: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        kernels_by_rule.main(["--out", str(tmp_path), "--rows", words])
    assert why in capsys.readouterr().err


def test_status_of_a_made_up_run_is_timed_and_counts_what_was_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["status_1m", "--clips", "2000", "--check"])
    assert status_1m.main() == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rendered"], told["failed"], told["remaining"]) == (1998, 1, 1)
    assert told["as_wanted"]


def test_products_and_a_block_are_timed_and_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["products", "--profile", str(tmp_path)]) + main(["block"]) == 0
    products, block, eight = map(json.loads, capsys.readouterr().out.splitlines())
    assert all(0 < products[f"{name}_off"] < 0.06 for name in ("square", "mlp_up", "mlp_down"))
    assert min(block["one_block_step_ms"], eight["one_block_step_ms"]) > 0
    assert "aten::" in (tmp_path / "products.txt").read_text()
    assert products["profile"] == str(tmp_path / "products.txt")


def test_parts_are_named_by_their_first_word_too() -> None:
    assert parts_of([]) == list(PARTS)
    assert parts_of(["decoding wan", "products"]) == ["decoding wan", "products"]
    assert parts_of(["decoding"]) == [name for name in PARTS if name.startswith("decoding ")]
    with pytest.raises(
        ValueError,
        match="part 'decode' is not known, allowed: attention, norm, norm by warps, rows by",
    ):
        parts_of(["decode"])


def measure_on_a_rank(works: list[many_gpus.Work]) -> None:
    for work in works:
        many_gpus.measure_all(torch.distributed.get_rank(), work, torch.device("cpu"))


def work_on(folder: Path, *words: str) -> many_gpus.Work:
    options = many_gpus.parser().parse_args(["--out", str(folder), "--mode", "eager", "--repeat", "1", *words])
    return many_gpus.work_of(options, str(folder))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The lines of several calls with one folder, by the name of the call and of the line, on the same four ranks."""
    folder = tmp_path_factory.mktemp("many_gpus")
    (folder / "half.json").write_text(
        json.dumps({"steps": {"num_steps": 10, "passes": [0, 1, 2, 4, 6, 8], "groups": []}})
    )
    plans = f"none,pab246,{folder}/half.json"
    rows = ("--ranks", "4", "--parts", "rows")
    first = work_on(folder, "--ranks", "4", "--name", "first", "--plans", plans, "--meshes", "one,cfg2 sp2,sp2 inturn")
    works = [
        first,
        work_on(folder, *rows, "--name", "later", "--plans", "pab246", "--meshes", "sp4", "--repeat", "2"),
        work_on(folder, *rows, "--name", "wan", "--model", "wan", "--plans", "pab2-6", "--meshes", "sp2"),
        replace(first, file=str(folder / "over.json"), ends=0.0),
    ]
    run_on_ranks(4, measure_on_a_rank, works)
    shutil.copy(folder / "later.json", folder / "more.json")
    more = work_on(folder, *rows, "--name", "more", "--plans", "none,pab246", "--meshes", "sp4", "--go-on")
    run_on_ranks(4, measure_on_a_rank, [more])
    found = {}
    for name in ("first", "later", "wan", "over", "more"):
        for line in json.loads((folder / f"{name}.json").read_text())["lines"]:
            found[name, line["name"].replace(f"{folder}/", "")] = line
    return found


def test_ranks_are_timed_beside_one_and_send_what_is_planned(measured: dict[Any, Any]) -> None:
    for plan in ("none", "pab246", "half.json"):
        assert measured["first", f"eager {plan}, 64x96x17"]["clips_at_once"] == 4
        for mesh in ("cfg2 sp2", "inturn sp2"):
            line = measured["first", f"eager {plan} {mesh}, 64x96x17"]
            assert line["off_one_rank"] < 1e-5
            assert line["sent_gb"] == pytest.approx(line["plan_sent_gb"])
            assert line["exposed_s"] > 0
            assert len(line["clip_step_ms"][0]) == 10
        assert measured["first", f"eager {plan} inturn sp2, 64x96x17"]["hidden_s"] > 0
    assert measured["first", "eager none inturn sp2, 64x96x17"]["quality_to_plain_db"] is None, "nothing is reused"
    assert measured["first", "eager half.json, 64x96x17"]["computed_share"] == pytest.approx(0.6)
    assert 10 < measured["first", "eager pab246 cfg2 sp2, 64x96x17"]["quality_db"] < 80
    assert [measured["first", f"decode, {ranks} ranks"]["off_of_255"] for ranks in (1, 2, 4)] == [0, 0, 0]
    alone, together = (measured["first", f"exchange of {rows} rows, 4 ranks"] for rows in (1, 2))
    assert together["sent_mb"] == 2 * alone["sent_mb"]


def test_later_calls_know_what_one_card_gave_and_take_models_of_the_library(measured: dict[Any, Any]) -> None:
    later = measured["later", "eager pab246 sp4, 64x96x17"]
    assert later["times_one_card"] > 0
    assert later["off_one_rank"] < 1e-5
    assert later["off_again"] == 0
    assert later["quality_db"] == later["quality_to_plain_db"]
    wan = measured["wan", "eager pab2-6 sp2, 32x32x9"]
    assert wan["sent_gb"] == pytest.approx(wan["plan_sent_gb"])
    assert wan["whole_clip_s"] > wan["seconds"]


def test_no_row_begins_when_time_is_over(measured: dict[Any, Any]) -> None:
    over = [line for (call, _), line in measured.items() if call == "over"]
    assert len(over) == len([call for call, _ in measured if call == "first"])
    assert {line["skipped"] for line in over} == {"no time left (--seconds)"}


def test_a_call_that_goes_on_keeps_what_its_file_has_and_measures_the_rest(measured: dict[Any, Any]) -> None:
    kept, new = (measured["more", f"eager {plan} sp4, 64x96x17"] for plan in ("pab246", "none"))
    assert kept | {"device": 0, "began": 0} == measured["later", kept["name"]] | {"device": 0, "began": 0}
    assert kept["device"] == "cpu"
    assert new["times_one_card"] > 0
    assert "device" not in new


def test_a_call_goes_on_only_with_lines_of_its_own_model_and_ranks_that_were_measured(tmp_path: Path) -> None:
    words = ("--ranks", "2", "--name", "mine", "--go-on")
    lines = [{"name": "a", "took_s": 1.0}, {"name": "b", "skipped": "no time left"}, {"name": "c", "status": "failed"}]
    document = {"model": "open_sora", "size": "tiny", "ranks": 2, "num_steps": None, "began": "then", "device": "cpu"}
    (tmp_path / "mine.json").write_text(json.dumps(document | {"lines": lines}))
    assert work_on(tmp_path, *words).known == ({"device": "cpu", "began": "then", "name": "a", "took_s": 1.0},)
    for others in (("--num-steps", "4"), ("--model", "wan", "--plans", "pab2-6"), ("--ranks", "4")):
        assert work_on(tmp_path, *words, *others).known == ()
    assert work_on(tmp_path, *words[:-1]).known == ()


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
