"""What a report says of each way of broadcasting: its worst clip, its factor, and what was decided while rendering."""

import xml.etree.ElementTree as ET

import pytest

from jobs.reports.report_broadcast import by_broadcast, distinct_plans
from jobs.reports.report_html import report_page
from jobs.reports.report_speedup import clip_factors
from jobs.store import layout
from tests.jobs.world import clip, render_job, write_shard


def test_a_way_of_broadcasting_is_told_by_its_worst_clip_and_the_median_of_all_rendered_twice(tmp_path):
    bucket = write_shard(str(tmp_path), [clip(0)])
    render_job(str(tmp_path))()
    (record,), report = bucket.records([clip(0).key]).values(), bucket.read_json(layout.job_report(7))
    (one,) = report["baselines"]
    three = [
        one | {"clip_id": name, "identical": False, "psnr_db": psnr, "ssim": psnr / 100, "vmaf": None}
        for name, psnr in (("a", 50.0), ("b", 20.0), ("c", 40.0))
    ]
    (row,) = by_broadcast(zip([record], clip_factors([record]), strict=True), three)
    assert (row["clip_id"], row["psnr_db"]) == ("b", 20.0)
    assert row["quality"]["psnr_db"] == {"worst": 20.0, "median": 40.0}
    assert row["quality"]["clips"] == 3
    page = report_page(report | {"broadcasts": [row]}, None)
    assert '<td class="n">20.00 dB</td><td class="n">40.00 dB</td>' in page


def test_foresight_is_told_beside_pab_with_factor_and_quality_of_each(tmp_path):
    items = [clip(0), clip(1, broadcast="foresight"), clip(2, broadcast="foresight"), clip(3, broadcast="none")]
    bucket = write_shard(str(tmp_path), items)
    render_job(str(tmp_path))()
    report, records = bucket.read_json(layout.job_report(7)), bucket.records(item.key for item in items)
    rows = {row["broadcast"]: row for row in report["broadcasts"]}
    assert {name: (row["clips"], row["decided"], row["clip_id"]) for name, row in rows.items()} == {
        "pab": (1, "before", "clip.0"),
        "foresight": (2, "while rendering", "clip.1"),
        "none": (1, "before", None),
    }
    assert report["counts"]["rendered"] == 4
    assert rows["none"]["computed_share"] == 1.0
    blocks = [
        record["plan"]["blocks"]
        for key, record in sorted(records.items())
        if record["clip"]["broadcast"] == "foresight"
    ]
    computed = [letters.count("C") + letters.count("S") for own in blocks for _, letters in own]
    assert 0.75 <= rows["foresight"]["computed_share"] < 1, "4 of 8 steps warm up, every second one after them computes"
    assert [name for name, _ in blocks[0]] == [
        "spatial_blocks.0",
        "temporal_blocks.0",
        "spatial_blocks.1",
        "temporal_blocks.1",
    ]
    assert rows["foresight"]["computed_share"] == pytest.approx(sum(computed) / (2 * 4 * 8))
    assert report["calls"]["agree"] is True
    measured = {baseline["clip"]["broadcast"]: baseline for baseline in report["baselines"]}
    assert list(measured) == ["pab", "foresight"]
    for name, baseline in measured.items():
        assert rows[name]["psnr_db"] == baseline["psnr_db"] > 20
        assert rows[name]["ssim"] == baseline["ssim"] < 1
        factor = baseline["settled_s"] / baseline["broadcast_settled_s"]
        assert rows[name]["factor_measured"] == pytest.approx(factor, abs=1e-4)
    assert report["speedup"]["measured"]["clips"] == 2
    page = bucket.read(layout.job_report(7, "html")).decode()
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    titles = [title.text for title in root.iter("title")]
    (told,) = [plan for plan in report["plans"] if plan["broadcast"] == "foresight"]
    assert told["clips"] == 2
    assert told["clip_id"] == "clip.1"
    for name, letters in told["blocks"]:
        for step, letter in enumerate(letters):
            assert f"step {step}: {name} {'reused' if letter == 'B' else 'computed'}" in titles


def test_clips_that_decided_differently_are_told_once_with_how_many_ways():
    def record(name: str, digest: str, letters: str) -> dict:
        plan = {
            "digest": digest, "rules_digest": "r", "rules": {"foresight": {}}, "num_steps": 2, "total": {"spatial": 2},
            "broadcast": "foresight", "blocks": [["spatial_blocks.0", letters]],
        }  # fmt: skip
        plan["total"] = dict.fromkeys(("spatial", "temporal", "cross", "mlp"), 2)
        return {
            "clip_id": name,
            "plan": plan,
            "steps": {"pattern": ["stcm", "...."], "seconds": [1.0, float(len(name))]},
        }

    (told,) = distinct_plans([record("a", "d1", "CB"), record("bcd", "d2", "CC"), record("ef", "d1", "CB")])
    assert (told["clips"], told["different"], told["clip_id"]) == (3, 2, "a")
    assert told["step_median_s"] == [1.0, 2.0]
