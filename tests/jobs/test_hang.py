"""Whatever stands still ends: ffmpeg by its deadline, which fails the clip, and any stage of a job by the hang limit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import imageio_ffmpeg
import numpy as np
import pytest

from jobs.media.encode import EncodeError, check, encode
from jobs.media.ffmpeg import FfmpegError, deadline_s, ffmpeg_version, run
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.deadline import Deadline
from jobs.rendering.finish import Finisher
from jobs.rendering.hang import HUNG_EXIT, HangWatch, batch_limit_s
from tests.forked import start_forked
from tests.jobs.world import clip

FRAMES = np.full((3, 32, 32, 3), 90, np.uint8)
ENCODES, DECODES, DESCRIBES = "*libx264*", "*rawvideo*pipe:1*", '"-hide_banner -i "*'


def frozen_ffmpeg(folder: Path, words: str) -> dict[str, str]:
    """Returns the variables with which ffmpeg stops itself, by SIGSTOP, when its arguments match `words`."""
    wrapper = folder / "ffmpeg"
    real = imageio_ffmpeg.get_ffmpeg_exe()
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in {words}) kill -STOP $$;; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    return {"IMAGEIO_FFMPEG_EXE": str(wrapper)}


def encode_and_check(folder: Path) -> None:
    path, start = folder / "clip.mp4", time.monotonic()
    try:
        encode(FRAMES, path, fps=8, crf=18, tags={}, limit_s=None if (folder / "no-limit").exists() else 0.6)
        (folder / "encoded").touch()
        check(FRAMES, path, fps=8, crf=18, limit_s=0.6)
    except EncodeError as error:
        (folder / "error").write_text(f"{time.monotonic() - start:.1f} {error}")


@pytest.mark.parametrize(
    ("words", "encoded", "told"),
    [
        (ENCODES, False, "ffmpeg did not end within 1 s and was killed"),
        (DECODES, True, "clip.mp4: does not decode: ffmpeg did not end within 1 s and was killed"),
        (DESCRIBES, True, "clip.mp4: ffmpeg did not end within 1 s and was killed"),
    ],
    ids=["encoding", "decoding", "describing"],
)
def test_an_ffmpeg_that_stands_still_is_killed_and_makes_an_error(
    tmp_path: Path, words: str, encoded: bool, told: str
) -> None:
    if encoded:
        (tmp_path / "no-limit").touch()
    variables = frozen_ffmpeg(tmp_path, words)
    assert start_forked(encode_and_check, tmp_path, environment=variables).wait(30) == 0
    elapsed_s, error = (tmp_path / "error").read_text().split(" ", maxsplit=1)
    assert error == told
    assert (tmp_path / "encoded").exists() == encoded
    assert float(elapsed_s) < 10
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path / "ffmpeg") in _read(path)]
    assert left == []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_the_version_of_ffmpeg_is_asked_for_with_a_limit() -> None:
    assert ffmpeg_version() == imageio_ffmpeg.get_ffmpeg_version()
    with pytest.raises(FfmpegError, match="did not end within 0 s and was killed"):
        run(["-f", "lavfi", "-i", "testsrc=duration=600", "-f", "null", "-"], limit_s=0.05)


def test_ffmpegs_deadline_grows_with_the_video() -> None:
    assert deadline_s(1, 2, 2) == pytest.approx(60, abs=0.1)
    # A clip of 1080p and 5 seconds: 251 million pixels, of which one slow core does 2 million a second.
    assert 251 / 2 < deadline_s(121, 1080, 1920) < 1200


def hang_in(stage: Callable[[HangWatch], AbstractContextManager[None]], note: Path) -> None:
    watch = HangWatch(0.2, last_words=lambda: note.write_text("last words"))
    thread = threading.Thread(target=_hang, args=(stage(watch),), daemon=True)
    thread.start()
    thread.join()


def _hang(watched: AbstractContextManager[None]) -> None:
    with watched:
        time.sleep(60)


def a_stage(watch: HangWatch) -> AbstractContextManager[None]:
    return watch.over_stage("load", extra_s=0.1)


def a_clip(watch: HangWatch) -> AbstractContextManager[None]:
    return watch.over("clip.0")


@pytest.mark.parametrize("stage", [a_stage, a_clip])
def test_a_stage_that_hangs_in_any_thread_ends_the_process_after_its_last_words(tmp_path: Path, stage: Any) -> None:
    process = start_forked(hang_in, stage, tmp_path / "note", stderr=tmp_path / "stderr")
    assert process.wait(20) == HUNG_EXIT
    assert (tmp_path / "note").read_text() == "last words"
    assert "_hang" in (tmp_path / "stderr").read_text()  # where it hung


def finish_for_ever(folder: Path) -> None:
    watch = HangWatch(0.2, last_words=lambda: None)

    class Frozen:
        def __getattr__(self, name: str) -> Any:
            time.sleep(60)

    attempt, context = Attempt(clip=clip(0), number=1), cast(Any, Frozen())
    finisher = Finisher(
        context,
        lambda *_: None,
        watching=lambda each: watch.over_stage("finish", clip_id=each.clip.clip_id),
    )
    finisher.submit([attempt])
    finisher.close()
    os._exit(0)


def test_a_finisher_that_hangs_ends_the_process_though_the_main_thread_only_waits(tmp_path: Path) -> None:
    process = start_forked(finish_for_ever, tmp_path, stderr=tmp_path / "stderr")
    assert process.wait(20) == HUNG_EXIT
    assert "in _run" in (tmp_path / "stderr").read_text()


class LostBucketError(Exception):
    """What ends a finisher's threads."""


def test_two_clips_are_finished_at_once_and_an_error_of_one_ends_both_threads() -> None:
    both = threading.Barrier(2)

    def meet_and_fail(_: Attempt) -> AbstractContextManager[None]:
        both.wait(20)
        raise LostBucketError

    finisher = Finisher(cast(Any, None), lambda *_: None, watching=meet_and_fail)
    finisher.submit([Attempt(clip=clip(0), number=1)])
    finisher.submit([Attempt(clip=clip(1), number=1)])
    with pytest.raises(LostBucketError):
        finisher.wait()
    with pytest.raises(LostBucketError):
        finisher.close()


def test_what_ends_in_time_ends_nothing() -> None:
    ended: list[str] = []
    watch = HangWatch(0.05, last_words=lambda: ended.append("ended"))
    with watch.over("a", clips=2), watch.over_stage("b"):
        pass
    time.sleep(0.2)
    assert ended == []


def test_a_batchs_limit_follows_what_was_measured_and_is_bounded() -> None:
    hour = 3600.0
    assert batch_limit_s(hour, clips=1, expected_s=0) == hour
    assert batch_limit_s(hour, clips=8, expected_s=40) == hour
    assert batch_limit_s(hour, clips=8, expected_s=2000) == 8000
    assert batch_limit_s(hour, clips=8, expected_s=90_000) == 4 * hour
    # Nothing is measured: a clip is planned to take a quarter of the limit at most.
    assert batch_limit_s(hour, clips=4, expected_s=0) == 1.75 * hour
    assert batch_limit_s(hour, clips=64, expected_s=0) == 4 * hour


def test_what_a_batch_is_expected_to_take_comes_from_the_slowest_clip_so_far() -> None:
    deadline = Deadline(started=0.0, deadline_s=None)
    assert deadline.expected_s(100.0) == 0
    deadline.measured(10.0, 5.0)
    deadline.measured(10.0, 2.0)
    assert deadline.expected_s(100.0) == 50
