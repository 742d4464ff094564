"""`bench` on a CPU: tiny models, the same code; which rows there are, and what their figures say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.bench.against import against, shown
from jobs.bench.factors import factors
from jobs.bench.groups import GROUPS
from jobs.bench.library_subjects import make_subject
from jobs.bench.measure import OurClips, new_recorder
from jobs.bench.rows import Row, all_rows, chosen_rows, parse_row
from jobs.bench.run import run_rows, usual_settings
from pab.broadcast.plan import make_plan
from pab.broadcast.rules import KINDS
from pab.execution.choice import Execution
from pab.families.latte.family import LATTE
from pab.families.latte.sites import latte_sites
from pab.parallel.mesh import NodeGroup
from pab.sampling.recorded_loop import MAX_HELD_ROW_TOKENS
from pipeline.commands.bench import joined
from pipeline.commands.bench_job import broadcast_of, compiled_later, render_settings
from tests.pipeline.command import Command

Json = dict[str, Any]
GROUP = {group.name: group for group in GROUPS}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Json, Path]:
    """What the whole tiny table gives."""
    folder = tmp_path_factory.mktemp("bench")
    command = Command(folder=folder, weights=folder, in_process=True)
    code, document = command.json("bench", "--output", "table", "--repeat", "1")
    return code, document, folder / "table"


def rows_of(document: Json) -> dict[str, Json]:
    return {line["name"]: line for line in document["rows"]}


def test_every_row_of_the_tiny_table_is_measured_or_says_why_not(ran: tuple[int, Json, Path]) -> None:
    code, document, folder = ran
    rows = rows_of(document)
    assert code == 0
    assert list(rows) == [row.name for row in all_rows(tiny=True)]
    (why,) = [line["why"] for line in rows.values() if line["status"] != "measured"]
    assert why == rows["latte cache-dit: eager none"]["why"]
    assert why.startswith(("cache-dit is not installed: pip install cache-dit", "cache-dit says: LattePipeline is not"))
    for line in rows.values():
        if line["status"] == "measured":
            assert 0 < line["seconds"] < 600
            assert line["clips_per_gpu_hour"] == pytest.approx(3600 / line["seconds"] / line["gpus"])
            assert sum(line["step_ms"].values()) > 0
            assert line["graphs_after_warm_up"] == 0
    assert json.loads((folder / "bench.json").read_text()) == document
    assert [json.loads(text) for text in (folder / "lines.jsonl").read_text().splitlines()] == document["rows"]
    page = (folder / "bench.html").read_text()
    assert "<h2>Latte-1</h2><p>64x64, 16 frames, 10 steps, guidance 7.5; 0.1 million random weights" in page
    assert why[:30] in page


def test_quality_is_told_against_the_same_way_of_running_without_reuse(ran: tuple[int, Json, Path]) -> None:
    rows = rows_of(ran[1])
    exact = rows["open_sora ours: compiled none"]
    assert exact["quality"]["identical"]
    assert exact["quality"]["psnr_db"] is None
    assert exact["quality"]["ssim"] == pytest.approx(1)
    assert exact["to_eager"]["relative_rms"] < 1e-5
    reused = rows["open_sora ours: compiled pab246"]["quality"]
    assert not reused["identical"]
    assert 10 < reused["worst_psnr_db"] <= reused["psnr_db"] < 80
    assert 0 < reused["ssim"] < 1
    assert reused["psnr_db"] == pytest.approx(rows["open_sora ours: eager pab246"]["quality"]["psnr_db"], rel=1e-3)
    assert rows["demo ours: eager pab246"]["quality"]["of"] == "video"


def test_computed_shares_are_the_plans(ran: tuple[int, Json, Path]) -> None:
    rows = rows_of(ran[1])
    plan = make_plan(LATTE.presets["pab236"], [float(900 - 100 * step) for step in range(10)], latte_sites(2))
    share = sum(map(plan.computed, KINDS)) / sum(map(plan.total, KINDS))
    assert rows["latte ours: eager pab236"]["computed_share"] == pytest.approx(share)
    assert rows["latte ours: eager none"]["computed_share"] == 1
    assert rows["latte ours: eager pab236"]["plan"] == plan.digest


def test_the_peer_gets_our_weights_and_makes_our_numbers(ran: tuple[int, Json, Path]) -> None:
    theirs = rows_of(ran[1])["latte diffusers: eager none"]
    assert theirs["to_eager"]["relative_rms"] < 1e-5
    assert not rows_of(ran[1])["latte diffusers: eager pab236"]["quality"]["identical"]


def test_factors_are_ratios_of_rows_that_differ_in_one_word(ran: tuple[int, Json, Path]) -> None:
    rows = rows_of(ran[1])
    found = {(each["group"], each["of"], each["to"]): each["factor"] for each in ran[1]["factors"]}
    ratio = rows["open_sora ours: compiled none"]["seconds"] / rows["open_sora ours: compiled pab246"]["seconds"]
    assert found["open_sora", "pab246", "compiled pab246"] == pytest.approx(ratio)
    assert ("open_sora", "compiling", "compiled none") in found
    assert ("open_sora", "int8", "compiled pab246 int8") in found
    assert all(math.isfinite(factor) and factor > 0 for factor in found.values())


def told(words: str, seconds: float, execution: str = "compiled attention cudnn kernels") -> tuple[Row, Json]:
    return parse_row(GROUP["open_sora"], words), {"status": "measured", "seconds": seconds, "execution": execution}


def test_compiling_kernels_reuse_and_ranks_are_told_apart() -> None:
    lines = [
        told("eager none", 16.0, "eager"),
        told("compiled none nokernels", 9.0, "compiled attention cudnn"),
        told("compiled none", 6.0),
        told("compiled pab246", 5.0),
        told("compiled pab246 cfg2", 2.5),
        told("compiled pab246 sp2", 3.125),
    ]
    found = {each["of"]: each for each in factors(lines)}
    assert {name: each["factor"] for name, each in found.items()} == {
        "compiling and fused kernels": pytest.approx(16 / 6),
        "compiling": pytest.approx(16 / 9),
        "kernels": pytest.approx(1.5),
        "pab246": pytest.approx(1.2),
        "dp=1,cfg=2,sp=1": pytest.approx(2.0),
        "dp=1,cfg=1,sp=2": pytest.approx(1.6),
    }
    assert found["dp=1,cfg=1,sp=2"]["share_of_ideal"] == pytest.approx(0.8)


def test_rows_run_as_jobs_do_but_for_their_words() -> None:
    row = parse_row(GROUP["open_sora"], "compiled pab246")
    assert row.execution("cuda", "bfloat16") == Execution(compiled=True, attention="cudnn", kernels=True, records=True)
    assert row.execution("cpu", "float32") == Execution(compiled=True)
    words = parse_row(GROUP["open_sora"], "compiled pab246 nokernels int8 float8")
    assert words.execution("cuda", "bfloat16") == Execution(
        compiled=True, attention="cudnn", keep="int8", linears="float8"
    )
    with pytest.raises(ValueError, match="demo has no 8-bit matrix products"):
        parse_row(GROUP["demo"], "compiled none float8").execution("cuda", "bfloat16")


def test_rows_are_chosen_by_group_by_part_of_a_name_and_in_words() -> None:
    assert [row.name for row in chosen_rows(["open_sora_small"])] == [
        row.name for row in all_rows() if row.group.name == "open_sora_small"
    ]
    assert {row.side for row in chosen_rows(["diffusers: eager"])} == {"diffusers"}
    (free,) = chosen_rows(["latte: compiled pab347"])
    assert free.name == "latte ours: compiled pab347"
    assert not set(chosen_rows(["open_sora"])) & set(chosen_rows(["open_sora_plan"]))
    with pytest.raises(ValueError, match=r"'sora9' names no row; allowed: a group \(open_sora, latte"):
        chosen_rows(["sora9"])
    with pytest.raises(ValueError, match="word 'pab999', allowed eager, compiled, nokernels"):
        chosen_rows(["open_sora: compiled pab999"])


def test_a_row_that_takes_too_long_and_rows_after_the_time_say_so(cold_command: Command) -> None:
    rows = "demo: eager none,latte: eager none"
    # In a process of its own, where loading takes longer than that.
    code, document = cold_command.json("bench", "--rows", rows, "--seconds", "0.2", "--output", "short")
    demo, latte = document["rows"]
    assert code == 1
    assert (demo["status"], latte["status"]) == ("failed", "not run")
    assert demo["why"].startswith("stopped after 0 s")
    assert latte["why"] == "no time left of 0 s (--seconds)"


def document(device: str, *lines: Json) -> Json:
    return {"schema": 1, "runs": [{"device": device}], "rows": list(lines), "factors": []}


def line(words: str, **others: Any) -> Json:
    return {"name": f"open_sora ours: {words}", "side": "ours", "words": words} | others


def test_runs_are_joined_and_a_measured_row_wins() -> None:
    fast = line("compiled pab246", status="measured", seconds=5.0)
    first = document("a", line("compiled none", status="measured", seconds=8.0), fast)
    second = document(
        "a", line("compiled none", status="not run", why="no time"), line("eager none", status="failed", why="x")
    )
    found = joined([first, second])
    assert [(each["words"], each["status"], each["run"]) for each in found["rows"]] == [
        ("eager none", "failed", 1), ("compiled none", "measured", 0), ("compiled pab246", "measured", 0),
    ]  # fmt: skip
    assert [each["factor"] for each in found["factors"]] == [1.6]
    assert len(found["runs"]) == 2


def test_rows_of_different_devices_are_not_compared() -> None:
    slow = document("a", line("compiled none", status="measured", seconds=8.0))
    assert joined([slow, document("b", line("compiled pab246", status="measured", seconds=5.0))])["factors"] == []


def test_the_fastest_clips_of_two_tables_are_compared_and_their_steps() -> None:
    """A step may be slower in a row that is not; what takes no time, as in a replayed recording, is no step."""
    steps = {"stcm": 200.0, "...m": 50.0, "....": 0.01}

    def table(device: str, **rows: tuple[list[float], dict[str, float]]) -> Json:
        lines = [
            line(words, status="measured", seconds=max(clips), clip_seconds=clips, step_ms=of_steps)
            for words, (clips, of_steps) in rows.items()
        ]
        return document(device, *lines, line("failed", status="failed", why="x"))

    old = table("H100", same=([8.0, 9.0], steps), slow=([6.0], steps), fast=([6.0], steps), gone=([1.0], steps))
    new = table(
        "H100", same=([8.2, 20.0], steps), slow=([6.1], steps | {"...m": 60.0, "....": 0.05}), fast=([5.0], {"stcm": 170.0}),
        new=([7.0], steps),
    )  # fmt: skip
    assert [shown(each).replace("open_sora ours: ", "") for each in against(new, old)] == [
        "as before: same 8.200 s, before 8.000 s (1.02x)",
        "slower: slow 6.100 s, before 6.000 s (1.02x); steps: ...m 1.20x",
        "faster: fast 5.000 s, before 6.000 s (0.83x); steps: stcm 0.85x",
    ]
    assert against(table("H200", same=([16.0], steps)), old) == []


def test_a_table_with_a_slower_row_than_an_older_one_ends_with_1(
    command: Command, ran: tuple[int, Json, Path], tmp_path: Path
) -> None:
    def compared(device: str, times: float) -> tuple[int, str, list[Json]]:
        older = json.loads((ran[2] / "bench.json").read_text())
        older["runs"][0]["device"] = device
        for each in older["rows"]:
            if each["status"] == "measured":
                each |= {"seconds": times * each["seconds"], "clip_seconds": [], "step_ms": {}}
        (tmp_path / "older.json").write_text(json.dumps(older))
        folder = tmp_path / f"{device} {times}"
        given = ("--join", str(ran[2]), "--against", str(tmp_path / "older.json"), "--output", str(folder))
        done = command.run("bench", *given)
        return done.returncode, done.stdout, json.loads((folder / "bench.json").read_text())["against"]

    device = ran[1]["runs"][0]["device"]
    code, told, lines = compared(device, 0.5)
    assert (code, {each["changed"] for each in lines}) == (1, {"slower"})
    assert "\nslower: demo ours: eager none " in told
    assert compared(device, 1.0)[0] == compared(device, 2.0)[0] == 0
    code, told, lines = compared("H200", 0.5)
    assert (code, lines) == (0, [])
    assert "no row of the older table was measured on this kind of device" in told


def test_wrong_rows_are_wrong_usage(command: Command) -> None:
    ran = command.run("bench", "--rows", "sora9")
    assert ran.returncode == 2
    assert "'sora9' names no row" in ran.stderr
    listed = command.json("bench", "--list", "--rows", "latte")[1]["rows"]
    assert "latte diffusers: compiled pab236" in listed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", ""], "--rows '' has an empty part"),
        (["--rows", "demo,"], "--rows 'demo,' has an empty part"),
        (["--weights", "folder"], "--weights is of --figures FAMILY"),
        (["--linears", "float8"], "--linears is of --figures FAMILY"),
        (["--eager", "--rows", "demo"], "--eager is of --figures FAMILY"),
        (["--figures", "demo", "--rows", "demo"], "--figures times no rows"),
        (["--list", "--figures", "demo"], "--figures and --list are different things to do"),
        (["--backend", "gcc"], "--backend 'gcc' is not known to torch, allowed: auto, "),
        (["--seconds", "nan"], "nan, needs more than 0 seconds"),
        (["--row-seconds", "inf"], "inf, needs more than 0 seconds"),
        (["--against", "list.json"], "--against list.json: holds a JSON list; needs a bench.json"),
        (["--against", "empty.json"], "--against empty.json: has no lists of rows and runs; needs a bench.json"),
        (["--list", "--against", "list.json"], "--against compares rows, and --list times none"),
        (["--join", "deep.json"], "maximum recursion depth exceeded"),
        (["--join", "list.json"], "--join list.json: holds a JSON list; needs a bench.json"),
        (
            ["--rows", "demo", "--output", "list.json"],
            "--output list.json: File exists; name a folder that can be written",
        ),
        (["--figures", "demo", "--output", "list.json/a"], "list.json/a: Not a directory; name a folder"),
    ],
)
def test_what_would_be_ignored_or_fail_after_measuring_is_refused_at_once(
    words: list[str], message: str, command: Command
) -> None:
    (command.folder / "deep.json").write_text("[" * 100_000)
    (command.folder / "list.json").write_text("[]")
    (command.folder / "empty.json").write_text('{"schema": 1}')
    ran = command.run("bench", *words)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not (command.folder / "runs").exists() or not list((command.folder / "runs").rglob("*.json"))


@pytest.mark.parametrize("name", ["bench.json", "peers.json"])
def test_a_table_that_is_there_is_written_over_only_if_asked(
    command: Command, ran: tuple[int, Json, Path], tmp_path: Path, name: str
) -> None:
    table, older = str(ran[2]), tmp_path / "older"
    older.mkdir()
    (older / name).write_text("hours of work")
    for words in (["--rows", "open_sora", "--seconds", "1e-9"], ["--join", table]):
        refused = command.run("bench", *words, "--output", str(older))
        told = f"error: --output {older}: {name} exists; name another folder, or add --overwrite\n"
        assert (refused.returncode, refused.stderr) == (2, told)
        assert [(path.name, path.read_text()) for path in older.iterdir()] == [(name, "hours of work")]
    assert command.run("bench", "--join", table, "--output", str(older), "--overwrite").returncode == ran[0]
    assert json.loads((older / "bench.json").read_text())["rows"]
    refused = command.run("bench", "--list", "--overwrite")
    assert (refused.returncode, "--list writes over no table" in refused.stderr) == (2, True)


def test_cache_dit_is_compared_with_the_same_pipeline_without_it() -> None:
    (default,) = [row for row in all_rows() if row.name == "wan cache-dit: compiled none"]
    (half,) = [row for row in all_rows() if row.name == "wan_14b cache-dit: compiled none half"]
    assert default.reuses
    assert half.reuses
    assert default.without_reuse == parse_row(GROUP["wan"], "diffusers: compiled none").without_reuse
    assert half.without_reuse == parse_row(GROUP["wan_14b"], "diffusers: compiled none").without_reuse
    assert not parse_row(GROUP["wan"], "diffusers: compiled none").reuses


def test_what_cache_dit_makes_faster_is_a_factor() -> None:
    plain, default, half = (
        parse_row(GROUP["wan"], text)
        for text in ("diffusers: compiled none", "cache-dit: compiled", "cache-dit: compiled half")
    )
    found = factors(
        [(row, {"status": "measured", "seconds": s}) for row, s in ((plain, 6.0), (default, 5.0), (half, 3.0))]
    )
    told = {(each["of"], each["to"]): each["factor"] for each in found if each["side"] == "cache-dit"}
    assert told == {
        ("cache-dit", "compiled none"): pytest.approx(1.2),
        ("cache-dit", "compiled none half"): pytest.approx(2.0),
        ("half", "compiled none half"): pytest.approx(5 / 3),
    }


def test_of_wan_a_peer_is_asked_for_nothing_else() -> None:
    lines: list[Json] = []
    rows = chosen_rows(["wan cache-dit: eager pab2-6", "wan diffusers: eager none half"])
    settings = usual_settings(size="tiny", seconds=60, row_seconds=60, repeat=1, backend="eager")
    run_rows(rows, settings, lines.append)
    assert {line["status"] for line in lines} == {"not run"}
    assert lines[0]["why"].startswith(("cache-dit is not installed", "of Wan only cache-dit: eager none or half"))
    assert lines[1]["why"] == "of Wan only diffusers: eager none and compiled none are measured"


def test_graphs_of_a_job_count_after_the_first_clip_of_each_replica() -> None:
    records = [
        {"started_at": f"2026-01-01T00:00:0{second}", "job": {"rank": rank}, "execution": {"graphs": graphs}}
        for second, rank, graphs in ((3, 1, 2), (1, 0, 5), (0, 1, 5), (2, 0, 0))
    ]
    assert compiled_later(records) == 2


def test_a_plan_in_a_file_is_a_word_of_rows_and_of_jobs(tmp_path: Path) -> None:
    steps = {"num_steps": 30, "passes": [0, 1, 2, 4], "groups": []}
    plan = tmp_path / "mine.json"
    plan.write_text(json.dumps({"steps": steps, "about": {"made_at": "-"}}))
    row = parse_row(GROUP["job"], f"compiled {plan} float8 dp2")
    assert row.words == f"compiled {plan} float8 dp2"
    assert row.reuses
    assert broadcast_of(row) == ("mine", {"mine": {"steps": steps}})
    assert broadcast_of(parse_row(GROUP["job"], "compiled pab246")) == ("pab246", None)
    plan.write_text(json.dumps({"steps": steps | {"family": "latte"}}))
    with pytest.raises(ValueError, match=r"mine.json: the plan is for family 'latte', not open_sora"):
        parse_row(GROUP["open_sora"], str(plan))
    plan.write_text("{}")
    with pytest.raises(ValueError, match=r"mine.json: states no steps; give a plan as `calibrate` writes it"):
        parse_row(GROUP["open_sora"], str(plan))
    plan.rename(tmp_path / "pab246.json")
    with pytest.raises(ValueError, match="'pab246' is a preset of open_sora; rename the file"):
        parse_row(GROUP["open_sora"], str(tmp_path / "pab246.json"))


@pytest.mark.parametrize(("words", "loops"), [("", "auto"), ("recorded", "on"), ("norecording", "off")])
def test_a_job_records_loops_as_its_row_says(words: str, loops: str) -> None:
    settings = usual_settings(size="tiny", seconds=9, row_seconds=9, repeat=1, backend="eager")
    row = parse_row(GROUP["job"], f"eager pab246 {words}")
    assert render_settings(row, settings).record_loops == loops


def test_rows_say_which_loops_are_recorded_of_families_whose_loops_can_be() -> None:
    row = parse_row(GROUP["open_sora"], "compiled pab246 recorded sp2")
    assert row.execution("cuda", "bfloat16").records
    assert row.without_reuse == parse_row(GROUP["open_sora"], "compiled none").without_reuse
    with pytest.raises(ValueError, match="'recorded': the loops of wan cannot be recorded"):
        parse_row(GROUP["wan"], "compiled pab2-6 recorded").execution("cuda", "bfloat16")


def test_rows_hold_as_many_recordings_as_jobs_do() -> None:
    subject, group = make_subject("open_sora", "tiny", torch.device("cpu")), NodeGroup()
    family = replace(subject.family, num_tokens=lambda *_size: MAX_HELD_ROW_TOKENS)
    recorder = new_recorder(group)
    clips = OurClips(
        subject=replace(subject, family=family), broadcast="none", group=group, recorder=recorder, all_loops=True
    )
    for num_steps in (2, 2, 3, 3):
        clips.denoise(replace(subject.requests[0], num_steps=num_steps))
    assert recorder.recordings == 1, "together they would hold too much"
