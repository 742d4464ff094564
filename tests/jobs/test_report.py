"""The speedup report: numbers that follow from the records, joined over starts, and a page that needs nothing else."""

import base64
import re
import xml.etree.ElementTree as ET

import pytest

from jobs.rendering.guarded_plans import drawn
from jobs.reports.report_html import report_page
from jobs.reports.report_speedup import clip_factors, derived_baseline_s, derived_speedup, difference
from jobs.reports.report_times import settle, settled_s, warm_up_s
from jobs.settings import Mesh
from jobs.store import layout
from tests.jobs.hostile import assert_harmless, poisoned
from tests.jobs.machines import run_on_forked_ranks
from tests.jobs.world import clip, render_job, write_shard


def steps(text: str, seconds: list[float], around_s: float = 0.0) -> dict:
    return {
        "seconds": {"denoise": sum(seconds) + around_s},
        "clip": {"num_frames": 8, "height": 8, "width": 8, "guidance_scale": 3.0},
        "steps": {"pattern": text.split(), "seconds": seconds},
        "plan": {"num_steps": len(seconds)},
    }


def test_the_derived_baseline_is_the_median_full_step_times_all_steps():
    record = steps("stcm s..m stcm sTcm stcm", [9.0, 1.0, 2.0, 50.0, 4.0])
    assert derived_baseline_s(record) == 4.0 * 5
    assert derived_baseline_s(steps("s..m sTcm", [1.0, 2.0])) is None


def test_warm_up_is_what_first_steps_took_beyond_later_ones():
    records = [steps("stcm ...m", [5.0, 3.0]), steps("stcm ...m sTcm", [2.0, 1.0, 9.0]), steps("stcm", [4.0])]
    assert warm_up_s(records) == (5.0 - 3.0) + (3.0 - 1.0)
    slow_start = [steps("stcm", [1.0], around_s=around_s) for around_s in (4.5, 0.5, 0.25, 0.5)]
    assert warm_up_s(slow_start) == 4.0
    assert warm_up_s(slow_start[:1]) == 0.0


def test_a_clip_is_timed_without_warm_up_where_others_of_its_size_tell():
    first, second, third = (steps("stcm ...m", [seconds, 1.0]) for seconds in (9.0, 2.0, 2.0))
    third["clip"] = {**third["clip"], "width": 16}
    assert settled_s(first, [second, second, third]) == 2.0 + 1.0
    assert settled_s(first, [third]) == 9.0 + 1.0


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    items = [clip(0), clip(1), clip(2, broadcast="none"), clip(3, prompt="fail now"), clip(4, prompt="a zyx <script>")]
    bucket = write_shard(str(folder), items)
    render_job(str(folder))()
    return bucket, bucket.read_json(layout.job_report(7)), bucket.records(item.key for item in items)


def test_the_report_says_what_the_records_say(reported):
    _, report, records = reported
    assert report["counts"] == {"clips": 5, "rendered": 4, "failed": 1, "left": 0}
    loops = {record["clip_id"]: sum(record["steps"]["seconds"]) for record in records.values()}
    assert {row["clip_id"]: row["denoise_s"] for row in report["clips"] if row["outcome"] == "rendered"} == (
        pytest.approx(loops, abs=1e-4)
    )
    denoise = report["seconds_by_stage"]["denoise"]
    assert denoise["sum"] == pytest.approx(sum(r["seconds"]["denoise"] for r in records.values()), abs=1e-3)
    assert denoise["clips"] == 4
    steps_s = sum(spread["sum"] for spread in report["step_seconds"].values())
    assert steps_s == pytest.approx(sum(loops.values()), abs=1e-3)
    (failed,) = [row for row in report["clips"] if row["outcome"] == "failed"]
    assert failed["reason"] == "denoise: ArithmeticError: this prompt always fails"
    busy_s = sum(record["seconds"]["denoise"] + record["seconds"]["decode"] for record in records.values())
    assert report["throughput"]["clips_per_gpu_hour"] == pytest.approx(4 / busy_s * 3600, rel=1e-3)


def test_the_baseline_is_measured_and_derived_and_both_say_how(reported):
    _, report, records = reported
    speedup, baseline = report["speedup"], report["baseline"]
    assert speedup["broadcast_clips"] == 3
    sample = drawn([clip(0), clip(1), clip(3), clip(4)])[0]
    assert baseline["clip_id"] == sample.clip_id
    assert set(baseline["steps"]["pattern"]) == {"stcm"}
    assert baseline["broadcast_steps"]["seconds"] == records[sample.key]["steps"]["seconds"]
    measured = speedup["measured"]
    assert measured["pab_factor"] == pytest.approx(baseline["settled_s"] / baseline["broadcast_settled_s"], abs=1e-4)
    derivable = [record for record in records.values() if record["clip"]["broadcast"] == "pab"]
    without = sum(derived_baseline_s(record) for record in derivable)
    assert speedup["derived"]["baseline_denoise_s"] == pytest.approx(without, abs=1e-4)
    assert "fully computed" in speedup["derived"]["how"]
    assert "second time" in measured["how"]
    assert 20 < baseline["psnr_db"] < 99
    assert 0.5 < baseline["ssim"] < 1
    assert not baseline["identical"]


def test_quality_and_alarms_of_a_job_are_in_its_report_and_on_its_page(reported):
    bucket, report, records = reported
    (baseline,) = report["baselines"]
    assert baseline["vmaf"] is None
    assert baseline["no_vmaf"] == "too small for VMAF: 48x32, needs 64 pixels on each side"
    assert report["quality"]["clips"] == 1
    assert report["quality"]["psnr_db"] == {"worst": baseline["psnr_db"], "median": baseline["psnr_db"]}
    assert report["alarms"]["looked_at"] == 4
    rows = {row["clip_id"]: row for row in report["clips"]}
    for record in records.values():
        row = rows[record["clip_id"]]
        assert row["alarms"] == record["alarms"]
        assert set(record["pixels"]) == {"one_colour", "changed", "flicker", "low", "high"}
    compared = {name: row["quality"]["psnr_db"] for name, row in rows.items() if row.get("quality")}
    assert compared == {baseline["clip_id"]: baseline["psnr_db"]}
    page = bucket.read(layout.job_report(7, "html")).decode()
    links = [link.get("href") for link in ET.fromstring(page.removeprefix("<!DOCTYPE html>\n")).iter("a")]
    assert set(links) == {"run.html", *(f"../{record['video']['path']}" for record in records.values())}
    assert "too small for VMAF" in page


def test_a_report_of_an_earlier_version_still_has_a_page(reported):
    _, report, _ = reported
    new = {"quality", "alarms"}
    old = {name: value for name, value in report.items() if name not in new}
    old["clips"] = [{k: v for k, v in row.items() if k not in {*new, "settled_s"}} for row in report["clips"]]
    old["broadcasts"] = [{k: v for k, v in row.items() if k not in {"vmaf", "alarms"}} for row in report["broadcasts"]]
    old["baselines"] = [{k: v for k, v in each.items() if "vmaf" not in k} for each in report["baselines"]]
    added = {"note", "samples", "full_step_s"}
    old["speedup"] = {
        name: {k: v for k, v in each.items() if k not in added} if isinstance(each, dict) else each
        for name, each in report["speedup"].items()
        if name != "difference"
    }
    page = report_page(old, None)
    assert "No clip was looked at." in page
    assert "PSNR" in page


def compiled(record: dict) -> dict:
    return record | {"execution": {"graphs": 3}}


def test_a_step_that_held_compiling_counts_only_where_no_other_was_timed():
    first = compiled(steps("stcm s..m stcm s..m", [60.0, 30.0, 2.0, 1.0]))
    assert settled_s(first, ()) == 2.0 + 1.0 + 2.0 + 1.0
    assert derived_baseline_s(first) == 4 * 2.0
    alone = settle(compiled(steps("stcm s..m stcm", [60.0, 30.0, 2.0])), ())
    assert (alone.compiling, alone.samples) == (True, 1)
    beside = settle(compiled(steps("stcm s..m stcm", [60.0, 30.0, 2.0])), [steps("s..m stcm", [1.0, 2.0])])
    assert (beside.seconds, beside.compiling) == (2.0 + 1.0 + 2.0, False)


def of_plan(record: dict) -> dict:
    return record | {"plan": {"computed": {"mlp": 1}, "total": {"mlp": 2}}}


def test_no_factor_is_shown_where_compiling_is_all_that_was_timed():
    once = of_plan(compiled(steps("stcm s..m stcm", [60.0, 30.0, 2.0])))
    (factor,) = clip_factors([once])
    assert factor.factor is None
    told = derived_speedup([(once, factor)])
    assert told is not None
    assert told["pab_factor"] is None
    assert "1 clip left out: some of its steps were timed only while something was compiled" in told["note"]
    again = of_plan(steps("stcm s..m stcm", [2.0, 1.0, 2.0]))
    pairs = list(zip([once, again], clip_factors([once, again]), strict=True))
    told = derived_speedup(pairs)
    assert told is not None
    assert told["pab_factor"] == pytest.approx(6 / 5)
    assert (told["clips"], told["note"]) == (2, "some steps were timed once only")


def test_factors_that_differ_are_explained_and_others_are_not():
    one, other = ({"pab_factor": f, "clips": n, "full_step_s": s} for f, n, s in ((0.65, 1, 0.5), (1.25, 8, 0.96)))
    told = difference(one, other)
    assert told is not None
    assert told.startswith("0.65x measured is of 1 clip rendered twice, 1.25x derived is of 8 clips; ")
    assert "took 500.0 ms in clips without reuse and 960.0 ms in those with it" in told
    assert difference(one, one | {"pab_factor": 0.7}) is None
    assert difference(None, other) is None
    assert difference(one | {"pab_factor": None}, other) is None


def test_planned_and_counted_calls_agree(reported):
    _, report, records = reported
    assert report["calls"]["agree"] is True
    for kind, calls in report["calls"]["by_kind"].items():
        assert calls["planned"] == calls["counted"] == sum(r["plan"]["computed"][kind] for r in records.values()), kind
        assert calls["total"] == 4 * records[clip(0).key]["plan"]["total"][kind]
    assert report["all_to_alls"]["counted"] == report["all_to_alls"]["without_broadcast"] == 0
    (start,) = report["starts"]
    assert start["rendered"] == 4
    assert start["peak_rss_bytes"] > 50e6
    assert set(start["load_s"]) == {"tiny"}


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(reported):
    bucket, report, _ = reported
    page = bucket.read(layout.job_report(7, "html")).decode()
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert root.tag == "html"
    for element in root.iter():
        assert element.tag not in ("script", "link", "iframe", "object")
        assert element.get("src", "data:").startswith("data:")
        # A link loads nothing: those to the run's page and videos are followed by a person.
        assert element.get("href", "run.html") == "run.html" or element.get("href", "").startswith("../renders/")
        assert element.tag == "a" or element.get("href") is None
    assert not re.search(r"url\(|@import|https?://", page)
    assert "<script>" not in page
    assert len(root.findall(".//svg")) == 2 * len(report["plans"]) == 4
    # A cell of the picture per kind and step, each with what it tells.
    first = root.find(".//svg")
    assert first is not None
    titles = [title.text for title in first.iter("title")]
    assert len(titles) == 4 * 8
    assert titles.count("step 1: spatial reused") == 1
    picture = next(image.get("src") for image in root.iter("img"))
    assert picture is not None
    assert base64.b64decode(picture.split(",")[1]) == bucket.read(layout.job_report(7, "png"))


def test_hostile_text_is_told_and_does_nothing_on_the_page_of_a_job(reported):
    _, report, _ = reported
    keep = ["patterns", "blocks"]
    page = report_page(poisoned(report, keep=keep, names=["seconds_by_stage", "step_seconds", "versions"]), None)
    assert_harmless(page, shown=50)
    (reason,) = [row["reason"] for row in report["clips"] if row["outcome"] == "failed"]
    assert f'<td class="text">{reason}</td>' in report_page(report, None)


def test_a_later_start_keeps_what_an_earlier_one_measured(tmp_path):
    gone = [clip(0), clip(1)]
    bucket = write_shard(str(tmp_path), gone)
    render_job(str(tmp_path))()
    before = bucket.read_json(layout.job_report(7))
    bucket.remove(layout.record(gone[1].key))
    render_job(str(tmp_path))()
    after = bucket.read_json(layout.job_report(7))
    assert after["baseline"] == before["baseline"]
    assert [start["rendered"] for start in after["starts"]] == [2, 1]
    assert after["starts"][0] == before["starts"][0]
    assert after["starts"][1]["baseline_s"] == 0
    assert after["counts"]["rendered"] == 2
    assert b"data:image/png" in bucket.read(layout.job_report(7, "html"))
    render_job(str(tmp_path))()
    assert bucket.read_json(layout.job_report(7))["starts"] == after["starts"]


@pytest.mark.parametrize(("changes", "broadcast"), [({"baseline": False}, "pab"), ({}, "none")], ids=["off", "no PAB"])
def test_no_baseline_is_rendered_where_none_is_wanted(tmp_path, changes, broadcast):
    bucket = write_shard(str(tmp_path), [clip(0, broadcast=broadcast)])
    render_job(str(tmp_path), **changes)()
    report = bucket.read_json(layout.job_report(7))
    assert report["baseline"] is None
    assert report["speedup"]["measured"] is None
    assert (report["speedup"]["derived"] is None) == (broadcast == "none")


def test_two_ranks_report_the_all_to_alls_that_broadcast_saved(tmp_path):
    bucket = write_shard(str(tmp_path / "out"), [clip(0)])
    run_on_forked_ranks(render_job(str(tmp_path / "out"), mesh=Mesh(sp=2)), tmp_path / "jobs", ranks=2)
    report = bucket.read_json(layout.job_report(7))
    exchanged = report["all_to_alls"]
    assert exchanged["agree"] is True
    assert (exchanged["planned"], exchanged["counted"], exchanged["without_broadcast"]) == (12, 12, 32)
    assert exchanged["bytes_without_broadcast"] == exchanged["bytes"] // 12 * 32 > 0
    assert report["ranks_per_clip"] == 2
    assert report["baseline"]["clip_id"] == "clip.0"
    (record,) = bucket.records([clip(0).key]).values()
    assert record["exchanges"]["exposed_s"] > 0
    assert report["exchanges"]["exposed_s"] == pytest.approx(record["exchanges"]["exposed_s"], abs=1e-3)
    assert report["headline"]["frames"] == record["video"]["num_frames"]
    assert b"frames a second" in bucket.read(layout.job_report(7, "html"))
    assert report["throughput"]["gpu_seconds"] == pytest.approx(
        2 * sum(report["seconds_by_stage"][stage]["sum"] for stage in ("denoise", "decode")), abs=1e-3
    )
