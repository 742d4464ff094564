"""What a video promises: the frames, in the right colours, tagged, playable while it loads; or an error."""

import json
import os
import re

import numpy as np
import pytest

from jobs.media.encode import EncodeError, check, describe, encode, pad_to_even
from jobs.media.sound import SoundTrack
from tests.jobs.videos import read_video

CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
TAGS = {"clip_id": "a clip", "seed": 3, "model": "tiny", "run_id": "run-1"}
COLOURS = {
    "red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 210), "white": (250, 250, 250), "black": (5, 5, 5),
    "skin": (224, 172, 140),
}  # fmt: skip


def moving_frames(num_frames=6, height=48, width=64) -> np.ndarray:
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    planes = [127 + 100 * np.sin((x + 5 * t) / 9), 127 + 100 * np.cos((y - 3 * t) / 7), 40 + 2 * x]
    return np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)


def written(tmp_path, frames, **changes):
    path = tmp_path / "clip.mp4"
    encode(frames, path, **({"fps": 8, "crf": 18, "tags": TAGS} | changes))
    return path


@pytest.mark.parametrize("size", [(6, 48, 64), (1, 48, 64), (5, 33, 47), (2, 1, 1), (3, 2, 5)], ids=str)
def test_frames_come_back_in_number_size_and_likeness(tmp_path, size):
    frames = moving_frames(*size)
    path = written(tmp_path, frames)
    video = check(frames, path, fps=8, crf=18)
    height, width = size[1] + size[1] % 2, size[2] + size[2] % 2
    assert (video.num_frames, video.height, video.width) == (size[0], height, width)
    assert video.padding == (width - size[2], height - size[1])
    assert video.psnr_db > 35
    assert video.size_bytes == path.stat().st_size
    assert read_video(path, width, height).shape == (size[0], height, width, 3)


def tone(seconds=0.75, rate=24000, loudness=0.5) -> SoundTrack:
    t = np.arange(int(seconds * rate)) / rate
    wave = loudness * np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 660 * t)])
    return SoundTrack(samples=wave.astype(np.float32), rate=rate)


def test_sound_is_in_the_file_and_another_one_or_none_is_refused(tmp_path):
    frames = moving_frames()
    path = written(tmp_path, frames, sound=tone())
    assert "Audio: aac" in describe(path)
    assert check(frames, path, fps=8, crf=18, sound=tone()).sound is not None
    assert [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]
    for other, message in (
        (tone(seconds=0.5), r"sound is 0\.\d+ s long, needs 0\.50 s"),
        (tone(rate=16000), "needs 16000 Hz"),
        (tone(loudness=5.0), "sound has a loudness of"),
    ):
        with pytest.raises(EncodeError, match=message):
            check(frames, path, fps=8, crf=18, sound=other)
    silent = written(tmp_path, frames)
    assert check(frames, silent, fps=8, crf=18).sound is None
    with pytest.raises(EncodeError, match="sound is not there, needs 24000 Hz"):
        check(frames, silent, fps=8, crf=18, sound=tone())


@pytest.mark.parametrize("name", COLOURS)
def test_a_player_that_believes_the_tags_shows_the_right_colours(tmp_path, name):
    frames = np.full((3, 32, 32, 3), COLOURS[name], np.uint8)
    shown = read_video(written(tmp_path, frames), 32, 32)
    assert np.abs(shown.astype(int) - COLOURS[name]).max() <= 3


def test_colours_are_tagged_and_the_clip_is_named(tmp_path):
    text = describe(written(tmp_path, moving_frames()))
    assert "yuv420p(tv, bt709, progressive)" in text
    assert "h264 (High)" in text
    assert re.search(r"title\s*: a clip\n", text)
    comment = re.search(r"comment\s*: (\{.*\})", text)
    assert comment is not None
    assert json.loads(comment[1]) == TAGS


def test_the_index_stands_before_the_pictures(tmp_path):
    data = written(tmp_path, moving_frames()).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU alone, or the system binds no process to some")
def test_a_video_does_not_depend_on_how_many_cpus_its_process_may_use(tmp_path):
    """x264 would take more threads, and cut its work in another way."""
    moving = np.random.default_rng(1).normal(128, 60, (32, 128, 160, 3)).clip(0, 255).astype(np.uint8)
    files = []
    try:
        for cpus in (CPUS, {min(CPUS)}):
            os.sched_setaffinity(0, cpus)
            encode(moving, tmp_path / "clip.mp4", fps=8, crf=18, tags={"clip_id": "a"})
            files.append((tmp_path / "clip.mp4").read_bytes())
    finally:
        os.sched_setaffinity(0, CPUS)
    assert files[0] == files[1]


def test_padding_repeats_the_last_row_and_column():
    frames = moving_frames(2, 3, 5)
    even = pad_to_even(frames)
    assert even.shape == (2, 4, 6, 3)
    assert np.array_equal(even[:, :3, :5], frames)
    assert np.array_equal(even[:, 3], even[:, 2])
    assert np.array_equal(even[:, :, 5], even[:, :, 4])


def test_a_video_of_other_frames_is_refused(tmp_path):
    frames = moving_frames()
    path = written(tmp_path, frames)
    with pytest.raises(EncodeError, match=r"clip.mp4: 6 frames, needs 7"):
        check(np.concatenate([frames, frames[:1]]), path, fps=8, crf=18)
    with pytest.raises(EncodeError, match=r"more than 5 frames"):
        check(frames[:5], path, fps=8, crf=18)
    with pytest.raises(EncodeError, match=r"video of \(64, 48\) at 8 fps, needs \(64, 48\) at 9"):
        check(frames, path, fps=9, crf=18)
    with pytest.raises(EncodeError, match=r"dB PSNR against its frames, needs 25"):
        check(frames[:, ::-1], path, fps=8, crf=18)


def test_a_video_with_red_and_blue_changed_is_refused(tmp_path):
    frames = np.full((2, 32, 32, 3), (120, 110, 140), np.uint8)
    path = written(tmp_path, frames[..., ::-1])
    with pytest.raises(EncodeError, match=r"frame 0: mean [UV] is"):
        check(frames, path, fps=8, crf=18)


def test_a_cut_file_is_refused(tmp_path):
    frames = moving_frames(24, 128, 128)
    path = written(tmp_path, frames)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(EncodeError, match=r"clip\.mp4"):
        check(frames, path, fps=8, crf=18)


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_frames_of_another_form_are_refused(tmp_path, frames):
    with pytest.raises(EncodeError, match=r"need uint8 \[T, H, W, 3\] with no dim empty"):
        written(tmp_path, frames)
