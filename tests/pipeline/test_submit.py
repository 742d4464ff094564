"""Whole runs through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.settings import Mesh
from pab.broadcast.rules import KINDS, pyramid
from pab.families import FAMILIES, find_family
from pab.families.tiny_weights import write_tiny_weights
from pab.family import ClipRequest
from pab.sampling.denoise import plan_for
from pab.tiny_weights.__main__ import main as write_tiny
from tests.jobs.machines import run_on_forked_ranks
from tests.jobs.world import clip, render_job, write_shard
from tests.pipeline.command import FAST, Command, assert_whole, records
from tests.pipeline.conftest import SubmittedTwice

Manifest = Callable[..., Path]
TOO_MANY_WORDS = "a red circle moving left on a black background " * 6


def second_of_three_fails(folder: Path) -> dict[str, list[Any]]:
    """Returns columns of three clips; the second one is given an image that looks whole and does not decode."""
    Image.effect_noise((40, 40), 99).save(folder / "broken.png")
    broken = bytearray((folder / "broken.png").read_bytes())
    broken[60:-20] = bytes(len(broken) - 80)
    (folder / "broken.png").write_bytes(broken)
    return {"references": [None, ["broken.png"], None], "mask_strategy": [None, "0", None]}


def test_a_run_renders_every_clip_and_submitting_again_renders_none(submitted_twice: SubmittedTwice) -> None:
    output = submitted_twice.output
    code, document = submitted_twice.first
    assert (code, document["exit_code"]) == (0, 0)
    counts = ("num_clips", "rendered", "rendered_now", "recorded_before", "failed", "remaining")
    assert [document[name] for name in counts] == [3, 3, 3, 0, 0, 0]
    assert_whole(output, ["c0", "c1", "c2"])
    code, document = submitted_twice.second
    assert code == 0
    assert [document[name] for name in counts] == [3, 3, 0, 3, 0, 0]
    assert {path: path.stat().st_mtime_ns for path in (output / "videos").iterdir()} == submitted_twice.modified
    assert [path.name for path in (output / "shards").iterdir()] == ["00000.parquet"]


def test_run_json_holds_settings_versions_and_the_manifest_digest(
    command: Command, submitted_twice: SubmittedTwice
) -> None:
    url, run = submitted_twice.manifest, submitted_twice.run
    _, validated = command.json("manifest", "validate", url, "--weights", command.weights, "--precision", "float32")
    assert run["manifest_digest"] == validated["digest"]
    assert run["num_clips"] == 3
    assert run["settings"]["machines"]["job_minutes"] == 30
    assert run["settings"]["render"]["precision"] == "float32"
    assert run["versions"]["torch"].startswith("2.")
    assert all(record["job"]["run_id"] == run["run_id"] for record in records(submitted_twice.output).values())


def test_other_pixels_into_the_same_output_are_refused_by_name(
    command: Command, manifest: Manifest, submitted_twice: SubmittedTwice
) -> None:
    output, url = submitted_twice.output, submitted_twice.manifest
    code, document = command.submit(url, output, "--precision", "bfloat16")
    assert code == 2
    assert "--precision was float32, now bfloat16" in document["error"]["message"]
    assert "another --output" in document["error"]["message"]
    assert "--force-new-settings renders" in document["error"]["message"]
    before = sorted(path.relative_to(output) for path in output.rglob("*"))
    code, document = command.submit(manifest(2, name="other"), output, "--precision", "bfloat16")
    assert (code, "--precision was float32" in document["error"]["message"]) == (2, True)
    assert sorted(path.relative_to(output) for path in output.rglob("*")) == before
    code, document = command.submit(url, output, "--job-minutes", "5", "--max-parallel-jobs", "2")
    assert (code, document["rendered_now"]) == (0, 0)


def test_a_failed_clip_is_told_and_the_others_are_rendered_and_retry_tries_it_again(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    url = manifest(**second_of_three_fails(tmp_path))
    code, document = command.submit(url, output, "--max-attempts", "1")
    assert (code, document["rendered"], document["failed"], document["remaining"]) == (3, 2, 1, 0)
    (failure,) = document["failures"]
    assert (failure["clip_id"], failure["error"], failure["attempt"]) == ("c1", "UnusableReferenceError", 1)
    assert "it does not decode" in failure["message"]
    assert sorted(records(output)) == ["c0", "c2"]

    code, document = command.submit(url, output, "--max-attempts", "1")
    assert (code, document["rendered_now"]) == (3, 0)
    assert len(list((output / "shards").iterdir())) == 1

    code, document = command.json("retry", output)
    assert (code, document["clips"]) == (0, ["c1"])
    (kept,) = (output / "history").iterdir()
    assert json.loads(kept.read_text())["message"] == failure["message"]
    assert command.json("status", output)[1]["remaining"] == 1
    code, document = command.submit(url, output, "--max-attempts", "1")
    assert (code, document["failed"], document["rendered"]) == (3, 1, 2)
    assert len(list((output / "shards").iterdir())) == 2


@pytest.mark.parametrize("model", ["demo", "demo_wan"])
def test_a_demo_prompt_of_too_many_words_is_told_before_and_rendered_without_its_end(
    command: Command, manifest: Manifest, tmp_path: Path, model: str
) -> None:
    told = (
        f"the text encoder of {model} reads 31 words that it knows and cuts the rest: 1 of the prompts are longer: row 1; "
        "shorten them"
    )
    url = manifest(2, prompt=["a red circle", TOO_MANY_WORDS], guidance_scale=[1.0, 1.0])
    code, checked = command.json("manifest", "validate", url, "--model", model)
    assert (code, checked["text_losses"], checked["warnings"]) == (0, {"cut": 1}, [told])
    if model == "demo_wan":
        write_tiny_weights(model, tmp_path / "weights")
        command = replace(command, weights=tmp_path / "weights")
    code, document = command.submit(url, tmp_path / "out", "--model", model)
    assert (code, document.get("rendered")) == (0, 2), document
    cut = "the prompt has 54 words that the demo model knows, the text encoder reads the first 31"
    assert cut in records(tmp_path / "out")["c1"]["warnings"]
    assert cut not in records(tmp_path / "out")["c0"]["warnings"]


def test_a_wrong_manifest_ends_with_4_and_writes_nothing(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    code, document = command.submit(manifest(num_frames=[8, 9, 8]), tmp_path / "out")
    assert code == 4
    assert "row 1: num_frames=9, demo needs 8n" in document["error"]["message"]
    assert not (tmp_path / "out").exists()
    assert "num_frames" in (command.folder / "tiny.errors.jsonl").read_text()


def test_a_bucket_that_refuses_ends_with_5(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    code, document = command.submit(manifest(), tmp_path / "file/out")
    assert (code, document["error"]["kind"]) == (5, "BucketError")


def test_wrong_usage_ends_with_2(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    for flags in (["--mesh", "sp=3"], ["--detach"], ["--no-such-flag"], ["--model", "sora"]):
        code, document = command.submit(manifest(), tmp_path / "out", *flags)
        assert (code, document["exit_code"], document["error"]["kind"]) == (2, 2, "UsageError")
    assert not (tmp_path / "out").exists()


def test_clips_are_rendered_together_and_what_they_took_plans_the_next_run(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    url, output = manifest(3), tmp_path / "out"
    code, _ = command.submit(url, output, "--batch", "2")
    assert code == 0
    assert sorted(record["batch"]["size"] for record in records(output).values()) == [1, 2, 2]
    report = json.loads((output / "reports/run.json").read_text())
    assert [(entry["batch"], entry["clips"]) for entry in report["measured"]] == [(2, 2), (1, 1)]
    least = min(entry["seconds_per_clip"] for entry in report["measured"])
    flags = ("--measured", str(output / "reports/run.json"), "--dry-run", "--gpus-per-node", "2")
    code, document = command.submit(url, tmp_path / "next", *flags)
    told = {facts["mesh"]: facts for facts in document["meshes"]}
    assert told["dp=2,cfg=1,sp=1"]["times"] == "measured"
    assert told["dp=1,cfg=2,sp=1"]["times"] == "scaled from measured"
    # Three clips on two ranks: one of them stands idle for the time of one clip.
    assert abs(told["dp=2,cfg=1,sp=1"]["clips_per_gpu_hour"] - 3 * 3600 / (4 * least)) < 1
    assert document["mesh_reason"].startswith(f"{document['mesh']} gives the most clips per GPU-hour")
    assert document["times"] == document["groups"][0]["times"] == told[document["mesh"]]["times"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    flags = ("--dry-run", "--gpus-per-node", "4", "--mesh", "cfg=2,sp=2")
    url = manifest(num_steps=[30, 30, 30])
    code, document = command.submit(url, tmp_path / "out", *flags)
    assert (code, document["to_render"], document["mesh"]) == (0, 3, "dp=1,cfg=2,sp=2")
    (group,) = document["groups"]
    assert group["num_clips"] == 3
    assert 0 < group["attention_calls_computed"] < group["attention_calls"]
    assert 0 < group["all_to_alls"] < group["all_to_alls_without_broadcast"]
    assert document["planned_speedup"] > 1
    assert document["mesh_reason"] == "dp=1,cfg=2,sp=2 was asked for with --mesh"
    assert [facts["mesh"] for facts in document["meshes"] if facts["picked"]] == [document["mesh"]]
    assert len(document["meshes"]) == 5
    text = command.run(*command.submit_words(url, tmp_path / "out", *flags)).stdout
    assert "nothing was started or written" in text
    assert document["times"] == "estimated"  # nobody measured the demo model's figures
    assert "planned (times estimated): longest job" in text
    assert "* dp=1,cfg=2,sp=2" in text
    assert "C compute, S compute and keep, B reuse" in text
    assert not (tmp_path / "out").exists()
    assert list(command.folder.iterdir()) == []


def test_ranks_share_the_passes_of_a_family_over_diffusers(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    write_tiny_weights("wan", tmp_path / "wan")
    wan = replace(command, weights=tmp_path / "wan")
    rules = pyramid(2, None, 6, window=(0, 1001)).to_dict()  # with a window that begins later, two steps reuse nothing
    (tmp_path / "early.json").write_text(json.dumps(rules))
    flags = ("--model", "wan", "--precision", "float32", "--gpus-per-node", "2", "--mesh", "sp=2", "--dry-run")
    flags += ("--broadcast", str(tmp_path / "early.json"))
    code, document = wan.submit(manifest(1, num_frames=[5], num_steps=[2]), tmp_path / "dry", *flags)
    (group,) = document["groups"]
    # two for each of 30 attentions in a pass; the second of two steps reuses
    assert (code, group["all_to_alls"], group["all_to_alls_without_broadcast"]) == (0, 60, 120)

    # What submit starts, with ranks that are forked: loading diffusers takes each longer than rendering.
    item = clip(
        0, model="wan", num_frames=5, width=32, num_steps=2, guidance_scale=5.0, broadcast=group["broadcast"]
    )  # fmt: skip
    write_shard(str(tmp_path / "out"), [item])
    job = render_job(str(tmp_path / "out"), mesh=Mesh(sp=2), baseline=False)
    settings = replace(job.settings, render=replace(job.settings.render, weights=str(tmp_path / "wan")))
    settings = replace(settings, broadcast_rules={group["broadcast"]: rules})
    job = replace(job, find_family=find_family, settings=settings)
    run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)
    assert_whole(tmp_path / "out", [item.clip_id])
    report = json.loads((tmp_path / "out/reports/job-00007.json").read_text())["all_to_alls"]
    # of two passes
    assert (report["planned"], report["counted"], report["without_broadcast"]) == (120, 120, 240)
    # a rank of two has 4 of 8 tokens, 24 channels: half of q, k, v and output goes to the other
    assert report["bytes"] == 60 * 4 * (4 * 24 // 2) * 4
    assert report["bytes_without_broadcast"] == 2 * report["bytes"]


def clip_request(clip: dict[str, Any]) -> ClipRequest:
    return ClipRequest(**{field.name: clip[field.name] for field in fields(ClipRequest)})


def test_one_manifest_mixes_families_and_sizes_each_with_its_own_weights(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    shapes = [
        ("demo", 8, 32, 32),
        ("demo_wan", 8, 32, 32),
        ("wan", 5, 32, 48),
        ("open_sora", 17, 112, 128),
        ("demo", 16, 32, 64),
        ("latte", 16, 256, 256),
        ("wan_14b_i2v_480p", 5, 32, 32),
        ("wan22_5b", 5, 64, 64),
        ("hunyuan_video", 5, 32, 32),
        ("cogvideox_2b", 9, 32, 32),
        ("ltx", 9, 64, 64),
        ("ltx2", 9, 64, 64),
    ]
    image = tmp_path / "first.png"
    Image.new("RGB", (32, 32), (200, 40, 20)).save(image)
    folders = {name: tmp_path / name for name, *_ in shapes} | {"demo": command.weights}
    for name, folder in folders.items():
        if name != "demo":
            # what `python -m pab.tiny_weights FAMILY DIR` does
            assert write_tiny([name, str(folder)]) == 0
    columns = dict(zip(("model", "num_frames", "height", "width"), map(list, zip(*shapes, strict=True)), strict=True))
    columns |= {"image": [image.name if name.startswith("wan_14b_i2v") else None for name, *_ in shapes]}
    steps = [10] * len(shapes)
    url, output = manifest(len(shapes), **columns, num_steps=steps), tmp_path / "out"
    given = [word for name, folder in folders.items() for word in ("--weights", f"{name}={folder}")]
    flags = (*FAST, "--max-parallel-jobs", "2", *given)
    # Latte stands for Open-Sora-Plan too, whose smallest video takes most of a minute: test_noise_families renders it.
    code, document = command.json("submit", url, "--output", output, *flags, timeout_s=900)
    assert (code, document["rendered"]) == (0, len(shapes)), document
    assert_whole(output, [f"c{number}" for number in range(len(shapes))])
    run = json.loads((output / "run.json").read_text())
    assert {name: weights["asked"] for name, weights in run["weights"].items()} == {
        name: str(folder) for name, folder in folders.items()
    }
    found = records(output)
    reports = [json.loads(path.read_text()) for path in (output / "reports").glob("job-*.json")]
    assert len(reports) == len(shapes), "jobs share neither a model nor a shape of latents with others"
    for report in reports:
        (row,) = report["clips"]
        record, (name, *size) = found[row["clip_id"]], shapes[int(row["clip_id"][1:])]
        assert (row["model"], record["weights"]) == (name, str(folders[name]))
        assert [record["clip"][field] for field in ("num_frames", "height", "width")] == size
        (start,), (plan,), (broadcast,) = report["starts"], report["plans"], report["broadcasts"]
        assert list(start["load_s"]) == [name]
        rules = FAMILIES[name].presets[FAMILIES[name].defaults.broadcast]
        planned = plan_for(FAMILIES[name], clip_request(record["clip"]), rules, "float32")
        assert (plan["digest"], row["plan"], row["size"]) == (planned.digest, planned.digest, "x".join(map(str, size)))
        assert plan["computed"] == {kind: planned.computed(kind) for kind in plan["computed"]}
        memory = FAMILIES[name].cost.memory
        passes = 2 if memory and memory.rows_per_pass == 1 and not FAMILIES[name].embedded_guidance else 1
        for kind, calls in report["calls"]["by_kind"].items():
            counts = [planned.computed(kind) * passes, planned.computed(kind) * passes, planned.total(kind) * passes]
            assert [calls["planned"], calls["counted"], calls["total"]] == counts, (name, kind)
        assert report["calls"]["agree"]
        totals = [sum(planned.total(kind) for kind in KINDS), sum(planned.computed(kind) for kind in KINDS)]
        assert broadcast["computed_share"] == round(totals[1] / totals[0], 5)
        # A preset that reuses over one step alone has nothing to reuse where each step is a longer stretch of noise, and the
        # demo's plan none that is short enough.
        assert (broadcast["computed_share"] < 1) == (name != "demo" and FAMILIES[name].defaults.broadcast != "pab2"), (
            name
        )
        assert broadcast["factor_derived"] > 0


def test_two_ranks_share_a_clip_by_sequence(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    """By guidance they do in test_faults, where one of them is killed."""
    output = tmp_path / "out"
    code, _ = command.submit(manifest(2), output, "--gpus-per-node", "2", "--mesh", "sp=2")
    assert code == 0
    assert_whole(output, ["c0", "c1"])
    for record in records(output).values():
        assert record["job"]["ranks"] == 2
        assert record["counted"]["all_to_alls"] > 0


def test_two_submits_at_once_do_each_other_no_harm(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    output = tmp_path / "out"
    url = manifest(4)
    both = [command.start(url, output, "--json") for _ in range(2)]
    documents = [json.loads(process.communicate(timeout=240)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [document["rendered"] for document in documents] == [4, 4]
    assert len(list((output / "attempts").iterdir())) == 4, "no clip is begun twice"
    assert list((output / "claims").iterdir()) == []
    assert_whole(output, ["c0", "c1", "c2", "c3"])
