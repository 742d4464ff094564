"""Peers beside us: the same numbers where everything is computed, one count of operations, and what table and picture say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.peers_quality import main
from jobs.bench.library_subjects import make_subject
from jobs.bench.peers.clips import Clips, fullest_batch
from jobs.bench.peers.files import joined, rows_by_setting, untimed
from jobs.bench.peers.measured_rows import Rows, spread
from jobs.bench.peers.methods import Setting, cache_dit_is_here, mag_ratios, our_settings, peer_settings
from jobs.bench.peers.operations import OperationCounter
from jobs.bench.peers.work import Work
from jobs.reports.peers_svg import picture
from jobs.reports.peers_table import at_share, table
from pab.broadcast.rules import NO_BROADCAST
from pab.family import ClipRequest

NUM_STEPS = 8


@pytest.fixture(scope="module")
def clips() -> Clips:
    """A tiny Wan of two blocks, watched."""
    subject = make_subject("wan", "tiny", torch.device("cpu"))
    family = replace(subject.family, sites=subject.sites)
    clips = Clips(family=family, model=subject.model, precision="float32", device=torch.device("cpu"))
    with torch.inference_mode():
        clips.watch(replace(subject.requests[0], num_steps=1))
    return clips


@pytest.fixture(scope="module")
def requests() -> list[ClipRequest]:
    (clip,) = make_subject("wan", "tiny", torch.device("cpu")).requests
    return [replace(clip, prompt=f"clip {seed}", seed=seed, num_steps=NUM_STEPS) for seed in (1, 2)]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_with_nothing_over_it_the_librarys_transformer_makes_our_latents(
    clips: Clips, requests: list[ClipRequest]
) -> None:
    ours = clips.ours(NO_BROADCAST)(requests)
    assert torch.equal(clips.pipeline(None)(requests), ours)
    assert torch.allclose(clips.pipeline(None, one_pass=True)(requests), ours, atol=1e-4)
    # A batch is its clips, up to rounding.
    assert torch.allclose(clips.ours(NO_BROADCAST)(requests[1:]), ours[1:], atol=1e-4)


def test_the_loop_is_that_of_the_librarys_own_pipeline(clips: Clips, requests: list[ClipRequest]) -> None:
    from diffusers import WanPipeline

    from jobs.bench.library_subjects import plain_transformer
    from pab.parallel.mesh import SequenceParallel
    from pab.sampling.batch import noise_of

    sampler = clips.model.scheduler(requests[0], SequenceParallel())
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=sampler.scheduler,
        transformer=plain_transformer(clips.model, clips.device),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    (prompt,) = clips.prompts(requests[:1])
    latents = pipe(
        prompt_embeds=prompt.states("cond"), negative_prompt_embeds=prompt.states("uncond"), output_type="latent",
        latents=noise_of(requests[:1], clips.model.latent_shape(requests[0])), num_inference_steps=NUM_STEPS,
        guidance_scale=requests[0].guidance_scale, num_frames=requests[0].num_frames, height=32, width=32,
    ).frames  # fmt: skip
    assert torch.equal(clips.pipeline(None)(requests[:1]), latents)


def test_calls_of_parts_are_weighed_to_what_every_operation_adds_up_to(
    clips: Clips, requests: list[ClipRequest]
) -> None:
    with OperationCounter() as counter:
        clips.ours(NO_BROADCAST)(requests)
    for run in (clips.ours(NO_BROADCAST), clips.pipeline(None), clips.pipeline(None, one_pass=True)):
        assert clips.counted(run, requests)[1] == counter.operations


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_every_peer_leaves_work_out_and_forgets_a_clip_after_it(clips: Clips, requests: list[ClipRequest]) -> None:
    clips.ratios = mag_ratios(lambda put: clips.pipeline(put)(requests), NUM_STEPS)
    whole = clips.counted(clips.ours(NO_BROADCAST), requests)[1]
    last = {f"{each.side} {each.method}": each for each in peer_settings(NUM_STEPS, clips.num_blocks)}
    assert ("cache-dit cache-dit" in last) == cache_dit_is_here()
    for name, setting in last.items():
        run = clips.under(setting)
        latents, operations = clips.counted(run, requests)
        # Random weights change more from step to step than a threshold allows that is meant for trained ones.
        assert operations < whole or name == "diffusers FirstBlockCache", name
        assert latents.isfinite().all(), name
        again, same = clips.counted(run, requests)
        assert torch.equal(again, latents), name
        assert same == operations


def test_our_settings_leave_out_what_they_say(clips: Clips, requests: list[ClipRequest]) -> None:
    settings = our_settings(clips.family, NUM_STEPS, [("found", clips.family.presets["pab3-6"])])
    assert {setting.method for setting in settings} == {"PAB", "Foresight", "passes left out", "searched plans"}
    (every_second,) = [setting for setting in settings if setting.words.startswith("1 of 2")]
    whole = clips.counted(clips.ours(NO_BROADCAST), requests)[1]
    assert every_second.rules is not None
    passes = len(every_second.rules.to_dict()["steps"]["passes"])
    assert clips.counted(clips.under(every_second), requests)[1] == pytest.approx(whole * passes / NUM_STEPS)


def test_the_fullest_batch_is_one_of_those_asked_for(clips: Clips, requests: list[ClipRequest]) -> None:
    assert fullest_batch(lambda some: torch.zeros(len(some)), requests[:1], clips.device) == 1


def test_rows_that_are_timed_again_keep_their_quality(
    clips: Clips, requests: list[ClipRequest], tmp_path: Path
) -> None:
    setting = our_settings(clips.family, NUM_STEPS, [])[0]
    before = {**row(setting, 0.8, 40.0), "clip_s": 0.0}
    file = tmp_path / "peers.json"
    file.write_text(
        json.dumps({"models": [{"family": "mine", "rows": [before]}, {"family": "other", "rows": [before]}]})
    )
    with ThreadPoolExecutor(1) as pool:
        work = Work(family="wan", known=rows_by_setting(file, "mine"))
        rows = Rows(work=work, clips=clips, requests=requests, batch=requests, pool=pool)
        again = rows.row(setting)
    assert again.pop("clip_s") > 0
    assert again.pop("whole_clip_s") != before.pop("whole_clip_s")
    assert again == {name: value for name, value in before.items() if name != "clip_s"}


def row(setting: Setting, operations: float, *psnr: float | None) -> dict[str, object]:
    found = spread(psnr)
    return {
        "side": setting.side, "method": setting.method, "setting": setting.words, "why": None, "status": "measured",
        "operations": operations,
        "clip_s": operations, "whole_clip_s": 1.0, "psnr_db": found, "ssim": spread([0.9] * len(psnr)), "vmaf": found,
    }  # fmt: skip


FOUND = {
    "environment": {"device": "cpu"},
    "models": [
        {
            "family": "demo", "clips": 3, "batch": 4, "precision": "float32",
            "clip": {"num_frames": 16, "height": 64, "width": 64, "num_steps": 30},
            "rows": [
                row(Setting(side="ours", method="PAB", words="pab246"), 0.8, 40.0, 30.0, None),
                row(Setting(side="ours", method="PAB", words="pab357"), 0.4, 20.0, 30.0, 36.0),
                row(Setting(side="diffusers", method="MagCache", words="0.1"), 0.6, 25.0, 26.0, 27.0),
                {"side": "diffusers", "method": "SeaCache", "setting": "0.1", "why": "ValueError: no blocks"},
            ],
        }
    ],
}  # fmt: skip


def test_medians_and_worst_count_a_clip_that_is_the_same_as_the_best() -> None:
    assert spread([40.0, 30.0, None]) == {"median": 40.0, "worst": 30.0, "clips": [40.0, 30.0, None]}
    assert spread([None, None])["worst"] is None


def test_methods_are_compared_at_equal_operations() -> None:
    rows = [each for each in FOUND["models"][0]["rows"] if each["why"] is None]
    # MagCache has no setting below half.
    assert at_share(rows, 0.5) == {"ours PAB": pytest.approx(32.5)}


def test_the_table_says_who_is_best_at_half_and_what_did_not_run() -> None:
    (model,) = FOUND["models"]
    why = "cache-dit is not installed: pip install cache-dit"
    missing = {"side": "cache-dit", "method": "cache-dit", "setting": "-", "why": why, "status": "not run"}
    told = table({**FOUND, "models": [{**model, "rows": [missing, *model["rows"]]}]})
    assert "| ours | PAB | pab357 | 40.0% | 0.4000 | 2.50x | 30.0 (20.0) | 0.9000 (0.9000) | 30 (20) |" in told
    assert "| diffusers | SeaCache | 0.1 | ValueError: no blocks |" in told
    assert "At half of the operations, between the settings on both sides of it: ours PAB 32.5 dB." in told
    assert f"| cache-dit | cache-dit | - | {why} |" in told


def test_a_later_files_rows_replace_and_rows_that_it_lacks_keep_their_quality(tmp_path: Path) -> None:
    (model,) = FOUND["models"]
    known, *_ = model["rows"]
    faster = {**known, "clip_s": 0.1}
    later = {
        **FOUND,
        "environment": {"device": "H200"},
        "models": [{**model, "batch": 8, "rows": [faster]}, {**model, "family": "demo_wan"}],
    }
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, part in zip(files, (FOUND, later), strict=True):
        file.write_text(json.dumps(part))
    assert main(["--join", *map(str, files), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "peers.json").read_text())
    demo, other = found["models"]
    first, second, *_, failed = demo["rows"]
    assert (demo["batch"], demo["device"], first) == (8, "H200", faster)
    assert second == {**model["rows"][1], "clip_s": None, "whole_clip_s": None}
    assert failed == model["rows"][-1]
    assert other["rows"] == model["rows"]
    told = (tmp_path / "peers.md").read_text()
    assert "| ours | PAB | pab246 | 80.0% | 0.1000 | 10.00x |" in told
    assert "| ours | PAB | pab357 | 40.0% | - | - | 30.0 (20.0) |" in told
    assert "H200, seconds of a clip in a batch of 8." in told
    # Quality of another precision is another model's.
    assert len(joined([FOUND, {**FOUND, "models": [{**model, "precision": "bfloat16"}]}])["models"]) == 2


def test_a_call_that_times_again_keeps_rows_that_it_does_not_reach(tmp_path: Path) -> None:
    (model,) = FOUND["models"]
    known, *others = model["rows"]
    clip = {"num_frames": 16, "height": 16, "width": 16, "num_steps": 1}
    file = tmp_path / "before.json"
    file.write_text(json.dumps({**FOUND, "models": [{**model, "clip": clip}, {**model, "family": "wan"}]}))
    asked = ["--families", "demo", "--only", "pab246", "--clips", "1", "--steps", "1", "--max-batch", "1"]
    assert main([*asked, "--size", "16x16x16", "--again", str(file), "--out", str(tmp_path)]) == 0
    demo, other = json.loads((tmp_path / "peers.json").read_text())["models"]
    first, *rest = demo["rows"]
    assert first["clip_s"] not in (None, known["clip_s"])
    assert first["psnr_db"] == known["psnr_db"]
    assert rest == untimed(FOUND)["models"][0]["rows"][1:]
    assert [row["clip_s"] for row in rest[:-1]] == [None, None]
    assert rest[-1] == others[-1]
    assert other["rows"] == untimed(FOUND)["models"][0]["rows"]


def test_the_picture_has_a_point_with_its_worst_clip_for_every_setting() -> None:
    svg = ElementTree.fromstring(picture(FOUND["models"]))
    told = [each.text or "" for each in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert "ours PAB: pab357: 40%, 30.0 dB, worst 20.0 dB" in told
    assert sum("worst" in each for each in told) == 3
    words = [each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ours PAB", "diffusers MagCache", "2x", "50%", "demo, 30 steps, 3 clips"} <= set(words)


def test_no_two_methods_of_the_picture_look_alike() -> None:
    row = FOUND["models"][0]["rows"][0]
    rows = [
        {**row, "side": side, "method": f"method {n}"} for side in ("ours", "diffusers", "cache-dit") for n in range(6)
    ]
    svg = ElementTree.fromstring(picture([{**FOUND["models"][0], "rows": rows}]))
    legend = [each for each in svg if each.tag.endswith("}g") and "transform" not in each.attrib]
    looks = {(each.get("fill"), each.get("stroke"), each[0].tag, len(each[0].get("d", ""))) for each in legend}
    assert len(looks) == len(legend) == 18


def test_what_could_not_run_is_left_out_where_another_call_ran_it() -> None:
    (model,) = FOUND["models"]
    missing = [
        {
            "side": "diffusers",
            "method": method,
            "setting": "-",
            "why": "diffusers is not installed",
            "status": "not run",
        }
        for method in ("MagCache", "FasterCache")
    ]
    without = {**FOUND, "models": [{**model, "batch": None, "rows": missing}]}
    for parts in ([without, FOUND], [FOUND, without]):
        (both,) = joined(parts)["models"]
        assert both["batch"] == 4
        assert [row["method"] for row in both["rows"] if row["why"] == "diffusers is not installed"] == ["FasterCache"]
