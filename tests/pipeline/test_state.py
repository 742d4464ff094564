"""How far a run is, from the files in its bucket alone."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.store import layout
from jobs.store.bucket import Bucket
from pipeline.run.jobs_file import new_submit
from pipeline.run.quarantine import write_quarantined
from pipeline.run.state import failed_clips, read_progress


def leave(bucket: Bucket, clip_id: str, *, marks: tuple[int, ...] = (), failures: tuple[int, ...] = ()) -> str:
    key = f"{clip_id}.0a"
    for number in marks:
        bucket.write(layout.attempt(key, number), b"{}")
    for number in failures:
        bucket.write_json(layout.failure(key, number), {"stage": "denoise", "error": "RuntimeError", "message": "no"})
    return key


def test_a_clip_is_given_up_after_two_attempts_however_they_ended(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    done = leave(bucket, "done", marks=(1, 2), failures=(1,))
    bucket.write(layout.record(done), b"{}")
    runs, once = leave(bucket, "runs", marks=(1,)), leave(bucket, "once", marks=(1,), failures=(1,))
    twice = leave(bucket, "twice", marks=(1, 2), failures=(1, 2))
    final = leave(bucket, "final", marks=(1,), failures=(2,))
    killed_then_failed = leave(bucket, "kf", marks=(1, 2), failures=(2,))
    second = leave(bucket, "second", marks=(1, 2), failures=(1,))
    killed = leave(bucket, "killed", marks=(1, 2))
    told = leave(bucket, "told", marks=(1, 2), failures=(3,))
    progress = read_progress(bucket, None)
    assert progress.recorded == {done}
    assert progress.failed == {twice, final, killed_then_failed}
    assert progress.quarantined == {told}
    assert progress.again == {once, second}
    # In its last attempt: it runs, or nobody has said yet that its group died with it.
    assert progress.started == {runs, second, killed}
    assert [clip.clip_id for clip in failed_clips(bucket, progress)] == ["final", "kf", "twice", "told"]


def test_the_latest_submit_says_how_often_a_clip_is_tried(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    twice = leave(bucket, "twice", marks=(1, 2), failures=(1, 2))
    assert read_progress(bucket, None).failed == {twice}
    new_submit("slurm", "work", max_attempts=3).write(bucket)
    progress = read_progress(bucket, None)
    assert (progress.failed, progress.again, dict(progress.tries)) == (set(), {twice}, {twice: 2})
    (path,) = (tmp_path / "logs").iterdir()
    before = json.loads(path.read_text())
    del before["max_attempts"]
    path.write_text(json.dumps(before))
    assert read_progress(bucket, None).failed == {twice}, "submits from before there was a choice allowed two"


def test_clips_whose_last_attempt_left_nothing_are_told_as_failed_and_no_others(tmp_path: Path) -> None:
    bucket = Bucket(str(tmp_path))
    killed, second = leave(bucket, "killed", marks=(1, 2)), leave(bucket, "second", marks=(1, 2), failures=(1,))
    others = [leave(bucket, "once", marks=(1,), failures=(1,)), leave(bucket, "runs", marks=(1,))]
    others += [leave(bucket, "told", marks=(1, 2), failures=(3,)), leave(bucket, "final", marks=(1,), failures=(2,))]
    before = bucket.failures()
    assert write_quarantined(bucket, [killed, second, *others], 2) == {killed, second}
    assert bucket.failures() == {**before, killed: [3], second: [1, 3]}
    failure = bucket.read_json(layout.failure(killed, 3))
    assert (failure["attempt"], failure["stage"], failure["message"]) == (2, "quarantine", "killed its group 2 times")
    assert bucket.read_json(layout.failure(second, 3))["message"] == "killed its group 1 time"
    progress = read_progress(bucket, None)
    assert (killed in progress.quarantined, second in progress.failed) == (True, True)
