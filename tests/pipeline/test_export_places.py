"""`export` knows its run's own files by any name, and tells other people's files from those of an earlier export."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from jobs.store.bucket import Bucket
from pipeline.commands.export_places import lies_in
from tests.jobs.s3_with_faults import FaultyS3
from tests.pipeline.command import Command
from tests.pipeline.runs_to_export import files_in, video_file, video_of, write_index, write_run

IDS = [f"c{number:02d}" for number in range(20)]
"""More than are copied at once."""


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("{run}/../out", "is in the run's own output"),
        ("{run}/../out/set", "is in the run's own output"),
        ("file://{run}", "is in the run's own output"),
        ("local://{run}/videos", "is in the run's own output"),
        ("simplecache::file://{run}", "is in the run's own output"),
        ("{link}", "is in the run's own output"),
        ("{link}/new/set", "is in the run's own output"),
        ("{run}/..", "holds the run's own output"),
        ("file://{run}/../", "holds the run's own output"),
        ("{linked}", "leads into the run's own output"),
    ],
)
def test_the_run_is_known_by_any_of_its_names(command: Command, tmp_path: Path, target: str, why: str) -> None:
    run = write_run(tmp_path / "runs/out", ["a"])
    (run / "videos").mkdir()
    (run / "videos/a.mp4").write_bytes(b"plain")
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/videos").symlink_to(run / "videos")
    before = files_in(tmp_path / "runs")
    place = target.format(run=run, link=tmp_path / "link", linked=tmp_path / "linked")
    ran = command.run("export", run, place, "--format", "csv", "--overwrite")
    assert ran.returncode == 2, ran.stderr
    assert why in ran.stderr
    assert "name another folder" in ran.stderr
    assert files_in(tmp_path / "runs") == before


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("s3://b/run", "s3a://b/run/", True),
        ("s3://b//run/./x", "s3://b/run", True),
        ("s3://b/other/../run", "s3://b/run", True),
        ("simplecache::s3://b/run/x", "s3://b/run", True),
        ("s3://b/run", "s3://b", True),
        ("s3://b/run2", "s3://b/run", False),
        ("s3://c/run", "s3://b/run", False),
        ("memory:///run/x", "memory://run", True),
        ("/b/run", "s3://b/run", False),
    ],
)
def test_remote_places_are_compared_as_normalized_urls(inner: str, outer: str, *, expected: bool) -> None:
    assert lies_in(Bucket(inner), Bucket(outer)) is expected


@pytest.mark.parametrize("form", ["webdataset", "huggingface", "csv"])
def test_an_overwrite_leaves_nothing_of_the_earlier_export(command: Command, tmp_path: Path, form: str) -> None:
    run, target = write_run(tmp_path / "out", IDS), tmp_path / "set"
    words = ("--format", form, "--shard-mb", "1")
    assert command.json("export", run, target, *words)[1]["clips"] == 20
    (target / "README.md").write_text("mine")
    write_index(run, IDS[:3])
    code, document = command.json("export", run, target, *words, "--overwrite")
    assert (code, document["clips"], document["not_ours"]) == (0, 3, [])
    assert command.json("export", run, tmp_path / "fresh", *words)[0] == 0
    assert files_in(target) == {**files_in(tmp_path / "fresh"), "README.md": b"mine"}


@pytest.mark.parametrize(
    ("form", "own"), [("webdataset", "clips-mine.tar"), ("huggingface", "train/mine.mp4"), ("csv", "videos/c19.mp4")]
)
def test_a_file_of_the_user_stays_and_is_told(command: Command, tmp_path: Path, form: str, own: str) -> None:
    run, target = write_run(tmp_path / "out", IDS[:3]), tmp_path / "set"
    (target / own).parent.mkdir(parents=True)
    (target / own).write_bytes(b"mine")
    ran = command.run("export", run, target, "--format", form)
    assert ran.returncode == 0
    assert f"1 file of no export in {target}, such as {own}: left as found" in ran.stderr
    assert command.json("export", run, target, "--format", form, "--overwrite")[1]["not_ours"] == [own]
    assert (target / own).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("form", "own"),
    [
        ("webdataset", "clips-000000.tar"),
        ("webdataset", "clips-000009.tar"),
        ("huggingface", "train/c01.mp4"),
        ("huggingface", "train/metadata.jsonl"),
        ("csv", "videos/c02.mp4"),
        ("csv", "clips.csv"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_file_of_the_user_is_never_written_over(
    command: Command, tmp_path: Path, form: str, own: str, flags: tuple[str, ...]
) -> None:
    run, target = write_run(tmp_path / "out", IDS[:3]), tmp_path / "set"
    (target / own).parent.mkdir(parents=True)
    (target / own).write_bytes(b"mine")
    ran = command.run("export", run, target, "--format", form, *flags)
    assert ran.returncode == 2
    assert f"{target}/{own}: in the way" in ran.stderr
    assert "move it away, or name another folder" in ran.stderr
    assert files_in(target) == {own: b"mine"}


@pytest.mark.parametrize(
    ("form", "last"),
    [("webdataset", "clips-000000.tar"), ("huggingface", "train/metadata.jsonl"), ("csv", "clips.csv")],
)
@pytest.mark.parametrize("over", [False, True])
def test_an_interrupted_export_never_looks_done(
    command: Command, tmp_path: Path, form: str, last: str, *, over: bool
) -> None:
    run, target = write_run(tmp_path / "out", IDS), tmp_path / "set"
    words = ("export", run, target, "--format", form, "--shard-mb", "1")
    if over:
        assert command.run(*words).returncode == 0
    # Cannot be read: the export ends in its second part.
    video_file(run, "c18").unlink()
    video_file(run, "c18").mkdir()
    assert command.run(*words, *(["--overwrite"] if over else [])).returncode not in (0, 2)
    assert not (target / last).exists()
    assert len(files_in(target)) > 2
    video_file(run, "c18").rmdir()
    write_index(run, IDS[:2])
    ran = command.run(*words)
    assert ran.returncode == 2
    assert f"{target} has an unfinished export (.export-{form}.json); add --overwrite to write it anew" in ran.stderr
    assert command.json(*words, "--overwrite")[1]["clips"] == 2
    assert command.run("export", run, tmp_path / "fresh", *words[3:]).returncode == 0
    assert files_in(target) == files_in(tmp_path / "fresh")


def test_an_overwrite_by_nothing_leaves_nothing_that_looks_like_a_set(command: Command, tmp_path: Path) -> None:
    run, target = write_run(tmp_path / "out", IDS[:3]), tmp_path / "set"
    assert command.run("export", run, target, "--format", "webdataset").returncode == 0
    write_index(run, [])
    assert command.run("export", run, target, "--format", "webdataset", "--overwrite").returncode == 0
    assert files_in(target) == {}


def test_the_place_of_a_missing_video_is_not_taken_for_the_exports(command: Command, tmp_path: Path) -> None:
    run, target = write_run(tmp_path / "out", IDS[:3]), tmp_path / "set"
    video_file(run, "c01").unlink()
    assert command.json("export", run, target, "--format", "csv")[1]["missing"] == ["c01"]
    (target / "videos/c01.mp4").write_bytes(b"mine")
    write_index(run, IDS[:1])
    assert command.run("export", run, target, "--format", "csv", "--overwrite").returncode == 0
    assert (target / "videos/c01.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("form", "listed"),
    [
        ("csv", {"clips": ["../../precious"]}),
        ("csv", {"clips": "c00"}),
        ("webdataset", {"tar_files": "2"}),
        ("webdataset", {"tar_files": 10**12}),
        ("webdataset", {}),
    ],
)
def test_a_list_that_names_what_no_export_writes_removes_nothing(
    command: Command, tmp_path: Path, form: str, listed: dict[str, object]
) -> None:
    run, target = write_run(tmp_path / "out", IDS[:1]), tmp_path / "a/set"
    target.mkdir(parents=True)
    (tmp_path / "a/precious.mp4").write_bytes(b"mine")
    (target / f".export-{form}.json").write_text(json.dumps(listed))
    before = files_in(tmp_path / "a")
    ran = command.run("export", run, target, "--format", form, "--overwrite")
    assert ran.returncode == 2
    assert f".export-{form}.json: " in ran.stderr
    assert "empty the folder yourself, or name another one" in ran.stderr
    assert files_in(tmp_path / "a") == before


def test_an_id_that_leads_out_of_the_folder_is_refused(command: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "out", IDS[:1])
    write_index(run, ["../a"])
    ran = command.run("export", run, tmp_path / "set", "--format", "csv")
    assert ran.returncode == 2
    assert "reports/index.parquet: clip_id '../a' is no id; write it anew: python -m pipeline report" in ran.stderr
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("place", ["s3://runs", "s3://runs/set"])
def test_object_storage_is_treated_alike(command: Command, tmp_path: Path, faulty_s3: FaultyS3, place: str) -> None:
    run, prefix = write_run(tmp_path / "out", IDS[:4]), place.removeprefix("s3://runs").strip("/")
    prefix = prefix and f"{prefix}/"
    words = ("export", run, place, "--format", "webdataset", "--shard-mb", "0.1")
    faulty_s3.put(f"{prefix}clips-000002.tar", b"mine")
    ran = command.run(*words)
    assert ran.returncode == 2
    assert f"{place}/clips-000002.tar: in the way" in ran.stderr
    del faulty_s3.objects[f"{prefix}clips-000002.tar"], faulty_s3.stored_at[f"{prefix}clips-000002.tar"]
    # At the root of a store the file is found while the set is written, so an unfinished one is there.
    assert command.json(*words, "--overwrite")[1]["files"] == 4
    write_index(run, IDS[:1])
    assert command.json(*words, "--overwrite")[1]["files"] == 1
    assert sorted(faulty_s3.objects) == [f"{prefix}.export-webdataset.json", f"{prefix}clips-000000.tar"]
    (tmp_path / "one.tar").write_bytes(faulty_s3.objects[f"{prefix}clips-000000.tar"])
    with tarfile.open(tmp_path / "one.tar") as tar:
        video = tar.extractfile("000000000.mp4")
        assert video is not None
        assert video.read() == video_of("c00")
