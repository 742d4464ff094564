"""A changed manifest in the same output: what is new or changed is rendered, the rest kept, and what left is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.store.bucket import Bucket
from pipeline.run.claims import driving
from pipeline.run.jobs_file import read_submits
from pipeline.run.run import Run, changed_pixels
from tests.cluster.torch_build import write_torch
from tests.pipeline.command import Command, assert_whole, records
from tests.pipeline.conftest import SubmittedTwice

Manifest = Callable[..., Path]
GPU = ("--device", "cuda", "--precision", "float32", "--compile", "off", "--decode", "published")
"""What means the same pixels as on a CPU; no job of it is started here."""


@pytest.fixture
def copied(submitted_twice: SubmittedTwice, tmp_path: Path) -> Path:
    """A finished run of c0, c1, c2."""
    return shutil.copytree(submitted_twice.output, tmp_path / "out")


def files(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.fixture
def grown_manifest(manifest: Manifest) -> Path:
    """c0 as it was, c1 with another seed, c3 is new, c2 left."""
    names, prompts = ["c0", "c1", "c3"], [f"a red circle moving left number {number}" for number in (0, 1, 3)]
    seeds = [None, 7, None]
    return manifest(3, name="grown", clip_id=names, prompt=prompts, seed=seeds)


def test_a_run_grows_and_goes_back_and_prune_removes_what_left(
    command: Command, submitted_twice: SubmittedTwice, grown_manifest: Path, copied: Path
) -> None:
    first, begun = records(copied), json.loads((copied / "run.json").read_text())
    old_video = (copied / "videos/c1.mp4").read_bytes()
    ran = command.run(*command.submit_words(grown_manifest, copied, "--dry-run"))
    told = "1 new clip, 1 clip (c1) changed, 1 as before; 1 clip (c2) left it: what is rendered of them stays"
    assert (ran.returncode, told in ran.stderr, "2 clips of 3 to render" in ran.stdout) == (0, True, True), ran.stderr
    assert json.loads((copied / "run.json").read_text()) == begun
    code, document = command.submit(grown_manifest, copied)
    assert (code, document["num_clips"], document["rendered"], document["rendered_now"]) == (0, 3, 3, 2)
    run = json.loads((copied / "run.json").read_text())
    assert (run["run_id"], run["num_clips"], run["manifest_digest"]) != (begun["run_id"], 3, begun["manifest_digest"])
    assert run["run_id"] == begun["run_id"]
    (change,) = run["changes"]
    assert [change[name] for name in ("new", "changed", "kept", "left")] == [1, 1, 1, 1]
    assert (copied / "videos/c1.mp4").read_bytes() != old_video
    assert (copied / "videos/c2.mp4").exists()
    assert command.json("status", copied)[1]["rendered"] == 3
    # Back to the rows that it began with: everything is there.
    code, document = command.submit(submitted_twice.manifest, copied)
    assert (code, document["rendered"], document["rendered_now"]) == (0, 3, 0)
    assert (copied / "videos/c1.mp4").read_bytes() == old_video
    ran = command.run(*command.submit_words(submitted_twice.manifest, copied, "--prune"))
    assert "pruned: 2 clips (c1, c3) in no row of the manifest" in ran.stderr
    assert {name: each["video"] for name, each in records(copied).items()} == {
        name: each["video"] for name, each in first.items()
    }
    assert_whole(copied, ["c0", "c1", "c2"])
    assert len(list((copied / "renders").iterdir())) == 3
    assert {path.name.split(".")[0] for path in (copied / "posters").iterdir()} == {"c0", "c1", "c2"}
    assert len(list((copied / "posters").iterdir())) == 3


def test_a_run_that_shrinks_says_what_it_removes_and_is_listed_with_what_it_has(
    command: Command, submitted_twice: SubmittedTwice, copied: Path
) -> None:
    words = command.submit_words(submitted_twice.manifest, copied, "--limit", "1")
    assert command.run(*words).returncode == 0
    document = command.json("runs", copied)[1]
    assert [(each["rendered"], each["num_clips"]) for each in document["runs"]] == [(1, 1)]
    assert command.run(*command.submit_words(submitted_twice.manifest, copied)).returncode == 0
    ran = command.run(*words, "--prune")
    told = "2 clips (c1, c2) left it: what is rendered of them is removed (--prune)"
    assert (told in ran.stderr, "stays" in ran.stderr) == (True, False), ran.stderr
    assert sorted(records(copied)) == ["c0"]


def test_new_settings_are_forced_and_the_run_says_so(
    command: Command, submitted_twice: SubmittedTwice, copied: Path
) -> None:
    code, document = command.submit(submitted_twice.manifest, copied, "--crf", "30", "--force-new-settings", "--prune")
    assert (code, document["rendered"], document["rendered_now"]) == (0, 3, 3)
    assert json.loads((copied / "run.json").read_text())["pixels"]["--crf"] == "30"
    assert_whole(copied, ["c0", "c1", "c2"])
    code, document = command.submit(submitted_twice.manifest, copied)
    assert (code, "--crf was 30, now 18" in document["error"]["message"]) == (2, True)


def test_a_manifest_does_not_change_while_somebody_is_at_work(
    command: Command, submitted_twice: SubmittedTwice, grown_manifest: Path
) -> None:
    output = submitted_twice.output
    bucket, before = Bucket(str(output)), files(output)
    submit = next(read_submits(bucket))
    with driving(bucket, submit.submit_id):
        code, document = command.submit(grown_manifest, output)
    message = document["error"]["message"]
    assert (code, "holds another run: the manifest has other rows" in message) == (2, True)
    assert f"since {submit.started}. A run can change when nobody is" in message
    assert files(output) == before


def test_a_growth_that_the_cluster_refuses_leaves_the_run_as_it_was(
    command: Command, grown_manifest: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    write_torch(tmp_path / "torch_of_gpus", cuda="'13.0'")
    monkeypatch.syspath_prepend(tmp_path / "torch_of_gpus")
    before = files(copied)
    assert command.submit(grown_manifest, copied, "--prune", "--gpus-per-node", "2", *GPU)[0] == 5
    assert {name: data for name, data in files(copied).items() if name in before} == before
    assert {name.partition("/")[0] for name in files(copied).keys() - before.keys()} <= {"logs"}


def test_rows_that_a_killed_submit_did_not_write_are_written(
    command: Command, manifest: Manifest, submitted_twice: SubmittedTwice, copied: Path
) -> None:
    command.submit(manifest(2, name="two"), copied)
    rows = (copied / "manifest.parquet").read_bytes()
    (copied / "manifest.parquet").write_bytes(bytes(len(rows)))
    code, document = command.submit(manifest(2, name="two"), copied)
    assert (code, document["rendered"]) == (0, 2)
    assert (copied / "manifest.parquet").read_bytes() == rows


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({}, {"weights of b": "2"}, []),
        ({"weights of b": "1"}, {}, []),
        ({"precision of a": "float32"}, {}, ["precision of a was float32, now as --precision"]),
        ({}, {"LoRAs of a": "x"}, ["LoRAs of a was none, now x"]),
        ({}, {"--crf": "20"}, ["--crf was 18, now 20"]),
    ],
)
def test_settings_of_a_family_that_comes_or_goes_are_no_change(
    before: dict[str, str], now: dict[str, str], told: list[str]
) -> None:
    weights: Any = {"a": None}
    run = Run(run_id="", manifest_digest="", num_clips=1, pixels=before, weights=weights)
    asked = Run(run_id="", manifest_digest="", num_clips=1, pixels=now, weights=weights | {"b": None})
    assert changed_pixels(run, asked) == told
