"""Damaged objects of a run are named by `status --check`, noticed by `submit`, and their clips are rendered again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.store.bucket import Bucket
from pipeline.run.damage import check_all, look_for_damage, put_aside
from pipeline.run.state import clip_id
from tests.pipeline.command import Command, assert_whole, records
from tests.pipeline.conftest import SubmittedTwice

CLIPS = ["c0", "c1", "c2"]
Harm = Callable[[Path], None]


def the_record(output: Path) -> Path:
    return next((output / "records").glob("c1.*.json"))


def the_video(output: Path) -> Path:
    return output / records(output)["c1"]["video"]["path"]


def other_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


HARMS: dict[str, Harm] = {
    "an empty record": lambda output: the_record(output).write_bytes(b""),
    "a cut record": lambda output: the_record(output).write_bytes(the_record(output).read_bytes()[:100]),
    "a record of another shape": lambda output: the_record(output).write_bytes(b"{}"),
    "the record of another clip": lambda output: shutil.copy(
        next((output / "records").glob("c0.*.json")), the_record(output)
    ),
    "an empty video": lambda output: the_video(output).write_bytes(b""),
    "a cut video": lambda output: the_video(output).write_bytes(b"mp4"),
    "no video": lambda output: the_video(output).unlink(),
}


@pytest.fixture
def copied(submitted_twice: SubmittedTwice, tmp_path: Path) -> Path:
    """A finished run of c0, c1, c2, whose files nobody else has."""
    return shutil.copytree(submitted_twice.output, tmp_path / "out")


def keys_of(output: Path) -> list[str]:
    return [path.stem for path in (output / "records").glob("*.json")]


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_noticed_and_names_its_clip(copied: Path, harm: str) -> None:
    keys, bucket = keys_of(copied), Bucket(str(copied))
    assert look_for_damage(bucket, keys, plain_videos=True).damages == ()
    assert check_all(bucket, keys, tell=lambda *_: None) == []
    HARMS[harm](copied)
    for damages in (
        look_for_damage(bucket, keys, plain_videos=True).damages,
        check_all(bucket, keys, tell=lambda *_: None),
    ):
        assert [damage.path for damage in damages] == [f"records/{the_record(copied).name}"]
        assert [clip_id(damage.key) for damage in damages] == ["c1"]
    assert put_aside(bucket, damages) == {the_key for the_key in keys if the_key.startswith("c1.")}
    assert bucket.histories(keys)[damages[0].key].next_attempt == 1, "an attempt that was good does not count"
    assert len(list((copied / "history").iterdir())) == 1


def test_other_bytes_of_the_same_length_are_found_by_a_check(copied: Path) -> None:
    other_bytes(the_video(copied))
    (damage,) = check_all(Bucket(str(copied)), keys_of(copied), tell=lambda *_: None)
    assert "has other bytes than the record says" in damage.what


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        ("renders", lambda _sizes: {}),
        ("renders", lambda sizes: dict.fromkeys(sizes, 3)),
        ("records", lambda sizes: dict.fromkeys(sizes, 0)),
    ],
    ids=["videos missing", "videos of another size", "records empty"],
)
def test_a_listing_that_is_late_makes_no_good_clip_a_damaged_one(
    copied: Path, folder: str, shown: Callable[[dict[str, int]], dict[str, int]]
) -> None:
    class Late(Bucket):
        def listing(self, name: str) -> dict[str, int]:
            sizes = super().listing(name)
            return shown(sizes) if name == folder else sizes

    bucket, keys = Late(str(copied)), keys_of(copied)
    assert look_for_damage(bucket, keys, plain_videos=True).damages == ()
    the_video(copied).unlink()
    (damage,) = look_for_damage(bucket, keys, plain_videos=True).damages
    assert clip_id(damage.key) == "c1"


def test_a_plain_name_of_another_video_is_found_by_a_check(copied: Path) -> None:
    plain = copied / "videos/c1.mp4"
    data = plain.read_bytes()
    plain.unlink()
    plain.write_bytes(data[:-1] + b"?")
    (damage,) = check_all(Bucket(str(copied)), keys_of(copied), tell=lambda *_: None)
    assert (damage.path, damage.key) == ("videos/c1.mp4", "")


def test_submit_says_what_is_damaged_and_renders_it_again(
    command: Command, submitted_twice: SubmittedTwice, copied: Path
) -> None:
    HARMS["an empty record"](copied)
    (copied / records_video(copied, "c0")).write_bytes(b"")
    (copied / "videos/c2.mp4").unlink()
    (copied / "manifest.parquet").write_bytes(b"")
    (copied / "reports/job-00000.json").write_text("{}")
    (copied / "records/stray.0123456789abcdef.json").write_text("{}")
    assert command.run("status", copied).returncode == 5
    ran = command.run(*command.submit_words(submitted_twice.manifest, copied))
    assert ran.returncode == 0, ran.stderr
    for said in (
        "3 objects damaged, 2 clips to render again", "c1.", "it is empty", "has 0 bytes", "reports/job-00000.json",
        "manifest.parquet in the bucket has 0 bytes", "1 video had no right plain name",
    ):  # fmt: skip
        assert said in ran.stderr
    assert "3 of 3 clips rendered (2 now, 1 recorded before)" in ran.stdout
    (copied / "records/stray.0123456789abcdef.json").unlink()
    assert_whole(copied, CLIPS)
    assert command.run("status", copied, "--check").returncode == 0


def test_what_is_not_of_the_manifest_hides_no_missing_clip(command: Command, copied: Path) -> None:
    shutil.copy(the_record(copied), copied / "records/other.0123456789abcdef.json")
    the_record(copied).unlink()
    code, document = command.json("status", copied)
    assert (code, document["rendered"], document["remaining"]) == (1, 2, 1)


def records_video(output: Path, name: str) -> str:
    record = next((output / "records").glob(f"{name}.*.json"))
    return str(Bucket(str(output)).record(record.stem)["video"]["path"])
