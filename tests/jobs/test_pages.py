"""The pages of reports: nobody's text becomes part of them, they know what they miss, and they are installed whole."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from jobs.reports.bench_html import bench_page
from jobs.reports.calibration_svg import curves, plan_grid
from jobs.reports.page import page
from jobs.reports.report_gallery import CLIPS_PER_FILE, COLUMNS, GalleryIndex, data_file, joined_versions, model_facts
from jobs.reports.report_svg import bar_chart, block_picture, plan_picture
from jobs.reports.run_html import run_page
from jobs.reports.step_patterns import LEGEND, look_of
from tests.jobs.hostile import HOSTILE, assert_harmless, poisoned, tree

ROOT = Path(__file__).parents[2]
TEMPLATES = (
    "bars.svg", "base.html", "bench.html", "blocks.svg", "calibration.html", "curves.svg", "grid.svg", "job.html",
    "marks.svg", "parts.html", "peers.svg", "run.html",
)  # fmt: skip


def run_document(**changes: Any) -> dict[str, Any]:
    speedup = {"pab_factor": 1.234, "clips": 1}
    job = {
        "job": "job-00000", "mesh": "dp=1,cfg=1,sp=1", "clips": 3000, "rendered": 2, "failed": 1, "left": 0,
        "measured_pab_factor": 1.234, "derived_pab_factor": None, "clips_per_gpu_hour": 56.789, "device_busy_share": 0.5,
        "wall_s": 185.0, "starts": 1,
    }  # fmt: skip
    return {
        "run_id": "r1", "output": "s3://videos/run1", "made_at": "2026-01-01", "num_clips": 3000,
        "outcomes": {"rendered": 2, "failed": 1}, "seconds": {"elapsed": 5.0, "denoise": 7620.0},
        "speedup": {"measured": speedup, "derived": {"pab_factor": 2.0, "clips": 1500}},
        "throughput": {"clips_per_gpu_hour": 56.789, "device_busy_share": 0.5},
        "all_to_alls": {"counted": 1, "without_broadcast": 4}, "jobs": [job],
        "failures": [{"clip_id": "b", "stage": "denoise", "error": "ValueError", "message": "no such word"}],
    } | changes  # fmt: skip


def bench_document() -> dict[str, Any]:
    run = {
        "gpus": 0, "device": "cpu", "cores": 2, "load": 0.5, "torch": "2", "triton": None, "diffusers": "0.39",
        "cache-dit": None, "python": "3.11", "size": "tiny", "backend": "eager", "began": "now", "command": "bench",
    }  # fmt: skip
    measured = {
        "group": "wan", "side": "ours", "words": "eager none", "status": "measured", "seconds": 2.0, "spread": None,
        "clips_per_gpu_hour": 1800.0, "computed_share": 1.0, "quality": None, "to_eager": {"relative_rms": 1.5e-6},
        "peak_gb": None, "kept_gb": 0.25, "warm_up_s": 1.0, "graphs": 0, "graphs_after_warm_up": 0,
        "exposed_s": 0.125, "hidden_s": None, "sent_gb": 1.5,
        "step_ms": {"stcm": 2.0, "...m": 1.0}, "block_parameters": 2_500_000, "weights": "random", "precision": "float32",
        "clip": {"height": 8, "width": 16, "num_frames": 5, "num_steps": 4, "guidance_scale": 7.5},
    }  # fmt: skip
    reused = {"quality": {"identical": False, "psnr_db": 30.46, "ssim": 0.99, "of": "video"}, "to_eager": None}
    factor = {"group": "wan", "side": "ours", "of": "pab", "factor": 1.5, "from": "eager none", "to": "eager pab"}
    return {
        "runs": [run], "groups": {"wan": "Wan 2.1", "latte": "Latte-1"}, "factors": [factor],
        "rows": [
            measured, measured | reused | {"side": "diffusers", "words": "eager pab", "seconds": 1.0},
            {"group": "wan", "side": "cache-dit", "words": "eager none", "status": "failed", "why": "it broke"},
        ],
        "not_here": [{"what": "VideoSys", "why": "no package"}],
    }  # fmt: skip


def cells(page: str) -> list[list[str]]:
    return [["".join(cell.itertext()).strip() for cell in row if cell.tag == "td"] for row in tree(page).iter("tr")]


def clip_row(**changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS) | {
        "clip_id": "a", "digest": "0a", "outcome": "rendered", "prompt": "a red circle", "model": "demo", "num_frames": 16,
        "height": 64, "width": 48, "broadcast": "pab", "identical": False, "alarms": [], "video": "renders/a.0a.12.mp4",
    }  # fmt: skip
    return row | changes


def gallery(*rows: dict[str, Any]) -> GalleryIndex:
    index = GalleryIndex(files=["gallery/00000.js"])
    for row in rows:
        index.add(row)
    return index


def index_of(page: str) -> dict[str, Any]:
    (section,) = (each for each in tree(page).iter("section") if each.get("id") == "gallery")
    found: dict[str, Any] = json.loads(section.get("data-index", ""))
    return found


def test_the_page_of_a_run_tells_its_figures() -> None:
    found = run_page(run_document(), gallery())
    told = {div[0].text: div[1].text for div in tree(found).iter("div") if len(div) and div[0].tag == "dt"}
    assert told == {
        "clips per GPU-hour": "56.79", "devices busy, clip to clip": "50.0%", "clips": "3,000", "failed": "1",
        "rendered": "2", "speedup, measured": "1.23x", "speedup, derived": "2.00x", "denoising": "2 h 7 min",
        "all-to-alls left": "25%", "worst PSNR": "-", "median PSNR": "-",
        "clips with an alarm": "-",
    }  # fmt: skip
    assert "No clip was looked at." in found
    assert "Not measured: no clip was rendered with and without reuse." in found
    assert [
        "job-00000",
        "dp=1,cfg=1,sp=1",
        "3,000",
        "2",
        "1",
        "0",
        "1.23x",
        "-",
        "-",
        "-",
        "-",
        "56.79",
        "50.0%",
        "3 min 5 s",
        "1",
    ] in (cells(found))
    assert ["b", "denoise", "ValueError: no such word"] in cells(found)
    nothing = run_page(
        run_document(speedup={"measured": None, "derived": None}, failures=[], jobs=[], outcomes={}), gallery()
    )
    assert "No clip of this run reuses anything" in nothing
    assert "Failed clips" not in nothing


def judged_document() -> dict[str, Any]:
    quality = {
        "clips": 2, "identical": 0, "worst_clip_id": "b", "worst_broadcast": "pab",
        "psnr_db": {"worst": 21.3, "median": 30.0},
        "ssim": {"worst": 0.7, "median": 0.9}, "vmaf": {"worst": None, "median": None, "clips": 0},
        "no_vmaf": ["too small for VMAF: 32x32"],
    }  # fmt: skip
    first = [{"clip_id": "b", "alarms": ["blank"], "video": "renders/b.0a.12.mp4"}]
    alarms = {"looked_at": 30, "clips": 2, "by_kind": {"blank": 2}, "first": first}
    document = run_document(quality=quality, alarms=alarms)
    document["speedup"]["difference"] = "1.23x measured is of 1 clip, 2.00x derived of 1,500"
    document["jobs"] = [job | {"quality": quality, "alarms": alarms} for job in document["jobs"]]
    return document


def test_the_page_of_a_run_has_quality_beside_the_speedup_and_links_to_clips_with_an_alarm() -> None:
    found = run_page(judged_document(), gallery())
    told = {div[0].text: div[1].text for div in tree(found).iter("div") if len(div) and div[0].tag == "dt"}
    assert (told["worst PSNR"], told["clips with an alarm"]) == ("21.3 dB", "2")
    assert ["PSNR", "21.3 dB", "30.0 dB", "2"] in cells(found)
    assert ["VMAF", "-", "-", "0"] in cells(found)
    assert "Without VMAF: too small for VMAF: 32x32." in found
    assert "The worst clip is b (broadcast pab)." in found
    assert "1.23x measured is of 1 clip, 2.00x derived of 1,500" in found
    assert "2 of 30 clips have an alarm: 2 blank (nearly all frames are of one colour)" in " ".join(found.split())
    assert [link.text for link in tree(found).iter("a") if link.get("href") == "../renders/b.0a.12.mp4"] == ["b"]
    (job,) = [row for row in cells(found) if row[:1] == ["job-00000"]]
    assert job[6:11] == ["1.23x", "-", "21.3 dB", "30.0 dB", "2"]


def record(weights: str | None) -> dict[str, Any]:
    lora = {"place": "styles/ink.safetensors", "strength": 0.8, "component": "transformer", "digest": "0a"}
    return {"clip": {"model": "wan"}, "weights": weights, "loras": [lora]}


def test_pages_name_models_weights_and_versions() -> None:
    document = run_document(
        models=[{"model": "wan", "weights": "Wan-AI/Wan2.1@0a1b", "digest": "77", "loras": "none"}],
        versions=joined_versions([{"versions": {"torch": "2.11"}}, {"versions": {"torch": "2.12"}}, {}]),
    )
    found = run_page(document, gallery())
    assert "wan, weights Wan-AI/Wan2.1@0a1b" in found
    assert "torch 2.11 and 2.12" in found
    assert model_facts([record("w"), record("w"), record(None)]) == [
        {"model": "wan", "weights": "", "loras": "styles/ink.safetensors:0.8", "clips": 1},
        {"model": "wan", "weights": "w", "loras": "styles/ink.safetensors:0.8", "clips": 2},
    ]


def test_the_gallery_finds_its_files_and_offers_what_its_clips_have() -> None:
    rows = [
        clip_row(),
        clip_row(outcome="failed", without_reuse="samples/a.0a.12.mp4", alarms=None),
        clip_row(height=8),
    ]
    found = run_page(run_document(), gallery(*rows))
    index = index_of(found)
    assert (index["clips"], index["perFile"], index["files"]) == (3, CLIPS_PER_FILE, ["gallery/00000.js"])
    assert index["columns"] == list(COLUMNS)
    offered = {
        each.get("name"): [option.text for option in each] for each in tree(found).iter("select")
    }  # fmt: skip
    assert offered["outcome"] == ["any status", "rendered (2)", "failed (1)"]
    assert offered["size"] == ["any size", "16 x 64 x 48 (2)", "16 x 8 x 48 (1)"]
    assert offered.keys() == {"outcome", "size", "sort", "shown"}, "one model and one broadcast leave no choice"
    assert "side by side only (1)" in found


def test_a_step_pattern_has_the_same_colour_on_every_page_and_in_every_plan() -> None:
    patterns = ["stcm", "s..m", "...m", "....", "sTcm"]
    assert [look_of(pattern).classes for pattern in patterns] == ["c0", "c7", "c6", "c6 paler", "c0 dashed"]
    for order in (patterns, patterns[::-1]):
        chart = tree(str(bar_chart(order, [1.0] * len(order))))
        drawn = [rect.get("class") for rect in chart.iter("rect")]
        assert drawn == [look_of(pattern).classes for pattern in order]
    assert look_of("scm").classes == look_of("stcm").classes, "a kind that a model lacks is never reused"
    assert look_of("..m", ("spatial", "cross", "mlp")).classes == look_of(".t.m").classes
    assert look_of("StCm 40%").classes == look_of("StCm 70%").classes == "c0 dashed"
    page = bench_page(bench_document())
    assert LEGEND in page
    assert f'<i class="swatch {look_of("...m").classes}"></i><code>...m</code>' in page


def test_the_table_of_a_benchmark_has_a_bar_for_what_was_measured_and_a_reason_for_the_rest() -> None:
    found = bench_page(bench_document())
    ours, theirs, broken = cells(found)[1:4]
    assert ours == [
        "ours", "eager none", "2.000", "-", "", "1,800", "100%", "-", "-", "-", "-", "-", "1.5e-06", "-",
        "0.25", "1.0", "0", "0", "0.125", "-", "1.50", "-",
    ]  # fmt: skip
    assert theirs[7:13] == ["30.5 dB", "-", "0.9900", "-", "video", "-"]
    assert broken == ["cache-dit", "eager none", "failed: it broke"]
    assert [div.get("style") for div in tree(found).iter("div") if div.get("style")] == [
        "width: 100.0%",
        "width: 50.0%",
    ]
    assert ["ours", "pab", "1.50x", "-", "eager none → eager pab"] in cells(found)
    assert [title.text for title in tree(found).iter("h2")] == ["Wan 2.1", "Not in the table"]
    assert "2.5 million random weights in blocks" in found


def test_hostile_text_is_told_and_does_nothing_on_the_page_of_a_run() -> None:
    found = run_page(
        poisoned(
            judged_document() | {"models": model_facts([record("w")]), "versions": {"torch": ["2"]}},
            names=["outcomes", "by_kind", "versions"],
        ),
        gallery(clip_row(outcome=HOSTILE, model=HOSTILE, alarms=[HOSTILE]), clip_row()),
    )
    assert_harmless(found, shown=27, script="gallery/gallery.js")
    assert 'href="javascript%3Aalert' in found


def test_hostile_text_of_a_clip_stays_text_in_the_files_of_the_gallery() -> None:
    """The files are programs, so they must hold data alone; the page's program writes it as text."""
    lines = HOSTILE + "\u2028\u2029\n\x00"
    data = data_file(3, [clip_row(**dict.fromkeys(COLUMNS, lines))]).decode("ascii")
    assert re.fullmatch(r"pabClips\(3, \[\[.*\]\]\);\n", data)
    assert "<" not in data
    assert "\n" not in data[:-1]
    assert json.loads(data.removeprefix("pabClips(3, ").removesuffix(");\n")) == [[lines] * len(COLUMNS)]
    script = (ROOT / "jobs/reports/gallery.js").read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|setAttribute\((?!\"aria-label\")", script
    )
    made = re.findall(r"\.(?:href|src|poster) = (.*?);", script)
    assert made == [
        "index.files[number]",
        "link(one[at.poster])",
        "link(one[at.video])",
        "link(path)",
        "link(one[path])",
    ]


def test_hostile_text_is_told_and_does_nothing_on_the_page_of_a_benchmark() -> None:
    assert_harmless(bench_page(poisoned(bench_document(), keep=["group"], names=["step_ms"])), shown=25)


@pytest.mark.parametrize(
    "picture",
    [
        plan_picture([HOSTILE], ["s", "."]),
        block_picture([(HOSTILE, "CB")]),
        bar_chart([HOSTILE, HOSTILE, "s"], [1.0, 2.0, 3.0]),
        curves([HOSTILE], [[0.5, 0.1]], first_step=0, what=HOSTILE),
        plan_grid([HOSTILE], [[True, False]]),
    ],
    ids=["plan", "blocks", "bars", "curves", "grid"],
)
def test_hostile_labels_do_nothing_in_pictures(picture: str) -> None:
    assert_harmless(str(picture), shown=2)


def test_a_value_that_a_template_misses_is_an_error_and_no_gap() -> None:
    with pytest.raises(UndefinedError, match="'document' is undefined"):
        page("run.html", links_end=None, shown=[])
    document = run_document()
    del document["jobs"][0]["mesh"]
    with pytest.raises(UndefinedError, match=r"no attribute 'mesh'"):
        run_page(document, gallery())


def test_every_template_and_the_stylesheet_are_installed() -> None:
    folder = files("jobs.reports")
    assert sorted(each.name for each in (folder / "templates").iterdir()) == sorted(TEMPLATES)
    for name in TEMPLATES:
        assert (folder / "templates" / name).read_text()
    assert ":root" in (folder / "report.css").read_text()
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for name in (*TEMPLATES, "report.css"):
        assert any(fnmatch(name, pattern) for pattern in installed), name


def test_the_dashboards_page_has_the_colours_of_the_reports() -> None:
    ours = (ROOT / "jobs/reports/report.css").read_text()
    theirs = (ROOT / "cluster/run_page.html").read_text()
    light, dark = colours(ours)
    for own, mode in zip(colours(theirs), (light, dark), strict=True):
        shared = own.keys() & mode.keys()
        assert shared == {"ink", "quiet", "paper", "tile", "rule", "good", "bad", "computed"}
        assert {name: own[name] for name in shared} == {name: mode[name] for name in shared}


def colours(style: str) -> list[dict[str, str]]:
    """The named colours of a style, light and dark."""
    return [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]


def test_the_dashboards_page_writes_what_it_is_told_as_text() -> None:
    script = (ROOT / "cluster/run_page.html").read_text()
    assert "textContent" in script
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|setAttribute|href =", script)
