"""References of a job's clips: fetched, compared with their digests, decoded; a bad one is its clip's failure alone."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.media.encode import encode
from jobs.media.picture import png
from jobs.media.reference_access import ReferenceAccess, UnusableReferenceError
from jobs.media.reference_files import Reference, decode_frames, fetch_reference
from jobs.outcome import Failed, Rendered
from jobs.settings import Mesh
from jobs.store import layout
from jobs.store.retry import RetryPolicy
from tests.jobs.machines import run_on_forked_ranks
from tests.jobs.videos import read_video
from tests.jobs.world import clip, render_job, write_shard

SHORT = RetryPolicy(total_s=0.2, operation_s=5, first_wait_s=0.05)


def below(folder: Path) -> ReferenceAccess:
    """Allows the files of a folder."""
    return ReferenceAccess(roots=(str(folder),))


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth colours, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    colours = [y * 160 / height + 40, x * 160 / width + 40, np.full((height, width), 90)]
    return np.stack(colours, axis=-1).round().astype(np.uint8)


def write_picture(path: Path, frame: np.ndarray) -> str:
    path.write_bytes(png(frame))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_reference(number: int, path: Path, sha256: str, **changes):
    values = {"references": (str(path),), "reference_digests": (sha256,), "mask_strategy": "0"} | changes
    return clip(number, **values)


def test_images_and_videos_are_told_by_what_they_hold(tmp_path):
    write_picture(tmp_path / "image.bin", picture())
    found = fetch_reference(str(tmp_path / "image.bin"), below(tmp_path), SHORT)
    assert (found.still, found.num_frames) == (True, 1)
    assert found.sha256 == hashlib.sha256((tmp_path / "image.bin").read_bytes()).hexdigest()
    (frame,) = decode_frames(found, range(1))
    assert np.array_equal(frame, picture())
    frames = np.stack([np.roll(picture(), 2 * t, axis=1) for t in range(7)])
    encode(frames, tmp_path / "video.png", fps=8, crf=4, tags={})
    video = fetch_reference(f"file://{tmp_path}/video.png", below(tmp_path), SHORT)
    assert (video.still, video.num_frames) == (False, 7)
    some = np.stack(list(decode_frames(video, range(3, 6))))
    assert np.abs(some.astype(int) - frames[3:6]).mean() < 3
    with pytest.raises(UnusableReferenceError, match="frames 5 to 8 are wanted, 2 of them decode"):
        list(decode_frames(video, range(5, 9)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "neither an image"),
        (b"a prompt, not a picture", "neither an image"),
        (png(picture())[:-40], "the beginning of an image"),
        (b"\xff\xd8\xff\xe0 half a photograph", "the beginning of an image"),
    ],
)
def test_a_file_that_is_no_reference_is_told(tmp_path, data, told):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UnusableReferenceError, match=told):
        fetch_reference(str(tmp_path / "x.png"), below(tmp_path), SHORT)


def test_a_reference_that_cannot_be_fetched_is_told_and_whether_its_store_is_away(tmp_path):
    for url, told, away in (
        (str(tmp_path / "gone.png"), "the file does not exist", False),
        (str(tmp_path), "it is a folder", False),
        ("nosuch://x/y.png", "protocol 'nosuch' is not allowed", False),
        ("https://me:secret@host/x.png", "may not hold credentials", False),
        ("http://127.0.0.1:9/x.png", "it cannot be read", True),
    ):
        with pytest.raises(UnusableReferenceError, match=told) as caught:
            fetch_reference(url, replace(below(tmp_path), private=True), SHORT)
        assert caught.value.away == away, url


def test_a_broken_image_does_not_decode():
    data = bytearray(png(picture()))
    data[60:160] = bytes(100)
    reference = Reference(data=bytes(data), sha256="", still=True, num_frames=1)
    with pytest.raises(UnusableReferenceError, match=r"does not decode|0 of them decode"):
        list(decode_frames(reference, range(1)))


@pytest.mark.parametrize("mesh", [None, Mesh(sp=2)], ids=str)
def test_a_clip_begins_with_its_reference_and_a_changed_one_fails_alone(tmp_path, mesh):
    allowed, elsewhere = tmp_path / "allowed", tmp_path / "elsewhere"
    for folder in (allowed, elsewhere):
        folder.mkdir()
        sha256 = write_picture(folder / "a.png", picture(64, 96))
    clips = [
        with_reference(0, allowed / "a.png", sha256),
        with_reference(1, allowed / "a.png", "0" * 64),
        with_reference(2, allowed / "gone.png", sha256),
        clip(3),
        with_reference(4, elsewhere / "a.png", sha256),
    ]
    bucket = write_shard(str(tmp_path / "out"), clips)
    roots = (str(allowed),)
    job = render_job(
        str(tmp_path / "out"), mesh=mesh, baseline=mesh is None, upload_timeout_s=0.2, reference_roots=roots
    )
    outcome = job() if mesh is None else run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)[0]
    assert [type(item) for item in outcome.clips] == [Rendered, Failed, Failed, Rendered, Failed]
    record = bucket.read_json(layout.record(clips[0].key))
    assert record["references"] == [{"url": str(allowed / "a.png"), "sha256": sha256}]
    assert record["seconds"]["read_references"] > 0
    assert bucket.read_json(layout.record(clips[3].key))["references"] == []
    frames = read_video(tmp_path / "out" / layout.video(clips[0].clip_id), 48, 32).astype(float)
    unguided = read_video(tmp_path / "out" / layout.video(clips[3].clip_id), 48, 32).astype(float)
    assert np.abs(frames[0] - picture()).mean() < 6
    assert np.abs(unguided[0] - picture()).mean() > 20
    changed, gone, outside = (outcome.clips[at] for at in (1, 2, 4))
    assert (changed.stage, changed.error) == ("read_references", "UnusableReferenceError")
    assert "a.png has changed since the clip was submitted: its SHA-256 is" in changed.message
    assert "gone.png: it cannot be read (the file does not exist)" in gone.message
    assert "a file outside of the folders that references may be read from" in outside.message
    if mesh is None:
        report = bucket.read_json(layout.job_report(7))
        assert report["baseline"]["clip_id"] == clips[0].clip_id
        assert report["baseline"]["psnr_db"] is None or report["baseline"]["psnr_db"] > 15
