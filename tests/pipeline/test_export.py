"""`export` writes every rendered clip once, with its caption, in each of its forms."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.command import Command

PROMPT = 'a "red" circle,\nround'
VIDEOS = {"a.b": b"A" * 600_000, "c": b"C" * 600_000, "d": b"D" * 600_000}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of four clips: one has failed, and one of the others has an alarm."""
    output = tmp_path / "out"
    (output / "renders").mkdir(parents=True)
    (output / "reports").mkdir()
    run = {"format": 1, "run_id": "0" * 12, "manifest_digest": "d", "num_clips": 4, "pixels": {}, "weights": {}}
    (output / "run.json").write_text(json.dumps(run))
    for name, data in VIDEOS.items():
        (output / f"renders/{name}.0a.12.mp4").write_bytes(data)
    rows = [
        {
            "clip_id": name, "prompt": PROMPT, "seed": 2**62 + 1, "source": "film", "outcome": outcome, "error": None,
            "video_url": f"s3://elsewhere/run/renders/{name}.0a.12.mp4" if outcome == "rendered" else None,
            "alarms": ["blank"] if name == "d" else [], "psnr_db": None,
        }
        for name, outcome in (("a.b", "rendered"), ("x", "failed"), ("c", "rendered"), ("d", "rendered"))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), output / "reports/index.parquet")
    return output


def test_a_web_data_set_has_each_clip_with_caption_and_facts_in_tar_files(
    command: Command, run_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "set"
    code, document = command.json("export", run_folder, target, "--format", "webdataset", "--shard-mb", "1.3")
    assert (code, document["clips"], document["files"], document["missing"]) == (0, 3, 2, [])
    found = {}
    for file in sorted(target.glob("*.tar")):
        with tarfile.open(file) as tar:
            members = {member.name: tar.extractfile(member) for member in tar}
            found |= {name: data.read() for name, data in members.items() if data is not None}
    assert [found[f"{number:09d}.mp4"] for number in range(3)] == list(VIDEOS.values())
    assert found["000000000.txt"].decode() == PROMPT
    facts = json.loads(found["000000000.json"])
    assert facts == {"caption": PROMPT, "clip_id": "a.b", "seed": 2**62 + 1, "source": "film", "alarms": []}
    again = command.run("export", run_folder, target, "--format", "webdataset")
    assert again.returncode == 2
    assert "clips-000000.tar exists; name another folder, or add --overwrite" in again.stderr


def test_the_other_forms_have_videos_and_a_list_of_them(command: Command, run_folder: Path, tmp_path: Path) -> None:
    code, document = command.json("export", run_folder, tmp_path / "hf", "--format", "huggingface", "--without-alarms")
    assert (code, document["clips"]) == (0, 2)
    lines = [json.loads(line) for line in (tmp_path / "hf/train/metadata.jsonl").read_text().splitlines()]
    assert [(line["file_name"], line["caption"]) for line in lines] == [("a.b.mp4", PROMPT), ("c.mp4", PROMPT)]
    assert (tmp_path / "hf/train/c.mp4").read_bytes() == VIDEOS["c"]
    (run_folder / "renders/c.0a.12.mp4").unlink()
    code, document = command.json("export", run_folder, tmp_path / "csv", "--format", "csv")
    assert (code, document["clips"], document["missing"]) == (1, 2, ["c"])
    with (tmp_path / "csv/clips.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(row["file_name"], row["caption"], row["alarms"]) for row in cells] == [
        ("videos/a.b.mp4", PROMPT, ""), ("videos/d.mp4", PROMPT, "blank"),
    ]  # fmt: skip
    assert (tmp_path / "csv/videos/d.mp4").read_bytes() == VIDEOS["d"]


@pytest.mark.parametrize("place", ["", "videos", "a/set"])
def test_a_data_set_is_never_written_into_the_run_itself(command: Command, run_folder: Path, place: str) -> None:
    before = sorted(run_folder.rglob("*"))
    ran = command.run("export", run_folder, run_folder / place, "--format", "csv", "--overwrite")
    assert ran.returncode == 2
    assert "is in the run's own output, whose videos would be written over; name another folder" in ran.stderr
    assert sorted(run_folder.rglob("*")) == before


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1"])
def test_a_size_of_tar_files_that_is_no_size_is_refused(
    command: Command, run_folder: Path, tmp_path: Path, size: str
) -> None:
    ran = command.run("export", run_folder, tmp_path / "set", "--format", "webdataset", f"--shard-mb={size}")
    assert ran.returncode == 2
    assert f"{size}, needs more than 0 MB, and 1,000,000 at most" in ran.stderr


def test_a_run_without_a_report_is_told_what_comes_first(command: Command, run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "reports/index.parquet").unlink()
    ran = command.run("export", run_folder, tmp_path / "set", "--format", "csv")
    assert ran.returncode == 2
    assert "has no reports/index.parquet; first: python -m pipeline report" in ran.stderr
