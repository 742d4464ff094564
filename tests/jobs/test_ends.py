"""How jobs end that do not end well: killed, interrupted, with a bucket that is away; and what the next start makes of it."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.outcome import Failed, Rendered, Skipped
from jobs.rendering.finish import write_record
from jobs.rendering.hang import HUNG_EXIT
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from jobs.store.damage import content_fault
from tests.jobs.machines import outcome_of, start_process
from tests.jobs.stores import FlakyFileSystem
from tests.jobs.videos import read_video
from tests.jobs.world import clip, render_job, write_shard

WAIT_S = 60


def wait_for(condition) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def assert_whole(bucket: Bucket, folder: Path, items) -> None:
    """Every clip exactly once: a record for each, each with its playable video, and no video besides."""
    assert bucket.recorded_keys() == {item.key for item in items}
    assert set(bucket.names("videos")) == {f"{item.clip_id}.mp4" for item in items}
    for item in items:
        assert len(read_video(folder / layout.video(item.clip_id), item.width, item.height)) == item.num_frames


@pytest.mark.parametrize("after_records", [0, 1, 2])
def test_after_a_kill_the_next_start_renders_each_clip_exactly_once(tmp_path, after_records):
    gate = tmp_path / "gate"
    items = [clip(0), clip(1), clip(2), clip(3)]
    items[after_records] = clip(after_records, prompt=f"pause {gate}")
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), baseline=False)
    gate.touch()
    process = start_process(job, tmp_path / "job")
    wait_for(gate.with_suffix(".reached").exists)
    # Clips before the one that waits are still being encoded: some are recorded, some only rendered.
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = {name: (tmp_path / "out/records" / name).stat().st_mtime_ns for name in bucket.names("records")}
    for name in first:
        record = bucket.read_json(f"records/{name}")
        assert len(bucket.read(record["video"]["path"])) == record["video"]["size_bytes"]
    gate.unlink()
    process = start_process(job, tmp_path / "job")
    assert process.wait(WAIT_S) == 0
    assert len(outcome_of(tmp_path / "job").clips) == 4
    assert_whole(bucket, tmp_path / "out", items)
    assert {name: (tmp_path / "out/records" / name).stat().st_mtime_ns for name in first} == first
    assert bucket.attempts()[items[after_records].key] == [1, 2]


def test_a_clip_that_killed_its_group_twice_is_failed_and_the_others_do_not_wait_for_it(tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    items = [clip(0, prompt=f"kill {gate}"), clip(1)]
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), baseline=False)
    recorded = []
    for _ in range(2):
        assert start_process(job, tmp_path / "job").wait(WAIT_S) == -signal.SIGKILL
        recorded.append(bucket.recorded_keys())
    # In the second start it came last, and when no other clip was in hand.
    assert recorded == [set(), {items[1].key}]
    assert start_process(job, tmp_path / "job").wait(WAIT_S) == 0
    failed, rendered = outcome_of(tmp_path / "job").clips
    assert isinstance(failed, Failed)
    assert (failed.stage, failed.error, failed.message) == (
        "quarantine", "GroupKilledError", "killed its group 2 times"
    )  # fmt: skip
    assert isinstance(rendered, Skipped)
    assert bucket.failures() == {items[0].key: [3]}
    assert bucket.attempts() == {items[0].key: [1, 2], items[1].key: [1]}


def test_a_prompt_that_kills_its_group_while_all_are_encoded_is_found_and_only_its_clip_is_given_up(tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    items = [clip(0), clip(1, prompt=f"kill-encoding {gate}"), clip(2)]
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), baseline=False)
    seen = []
    for _ in range(3):
        assert start_process(job, tmp_path / "job").wait(WAIT_S) == -signal.SIGKILL
        seen.append((bucket.recorded_keys(), bucket.attempts().get(items[1].key)))
    # Nobody could say which prompt it was; then each clip has encoded its own, the suspected one last.
    assert seen == [(set(), None), ({items[0].key}, [1]), ({items[0].key, items[2].key}, [1, 2])]
    assert start_process(job, tmp_path / "job").wait(WAIT_S) == 0
    failed = outcome_of(tmp_path / "job").clips[1]
    assert isinstance(failed, Failed)
    assert (failed.stage, failed.message) == ("quarantine", "killed its group 2 times")
    assert_whole(bucket, tmp_path / "out", [items[0], items[2]])


def test_prompts_that_hang_end_the_process_and_the_next_start_encodes_them_one_by_one(tmp_path):
    items = [clip(0), clip(1, prompt="hang-encoding")]
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), baseline=False, hang_s=3.0)
    assert start_process(job, tmp_path / "first").wait(WAIT_S) == HUNG_EXIT
    assert bucket.attempts() == {}
    assert start_process(job, tmp_path / "second").wait(WAIT_S) == HUNG_EXIT
    assert (bucket.recorded_keys(), bucket.attempts()[items[1].key]) == ({items[0].key}, [1])
    logs = [bucket.read(f"logs/{name}").decode() for name in bucket.names("logs")]
    assert [("event=prompts_hung" in log, "event=clip_hung clip=clip.1" in log) for log in logs].count(
        (True, False)
    ) == 1


def test_an_end_from_outside_while_prompts_are_encoded_does_not_count_against_them(tmp_path):
    bucket = write_shard(str(tmp_path / "out"), [clip(0), clip(1, prompt="hang-encoding")])
    process = start_process(render_job(str(tmp_path / "out"), baseline=False), tmp_path / "job")
    # A whole file: not one that is just being written.
    wait_for(lambda: list((tmp_path / "out").glob("encoding/[!.]*")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) not in (0, -signal.SIGKILL)
    assert list((tmp_path / "out/encoding").iterdir()) == []
    assert bucket.attempts() == {}


def test_a_clip_that_hangs_ends_its_process_and_the_next_start_removes_what_killed_ones_left(tmp_path, monkeypatch):
    scratch, gate = tmp_path / "scratch", tmp_path / "gate"
    scratch.mkdir()
    gate.touch()
    monkeypatch.setenv("TMPDIR", str(scratch))
    items = [clip(0), clip(1, prompt=f"pause {gate}"), clip(2)]
    bucket = write_shard(str(tmp_path / "out"), items)
    process = start_process(render_job(str(tmp_path / "out"), baseline=False), tmp_path / "killed")
    wait_for(gate.with_suffix(".reached").exists)
    (kept,) = scratch.glob("pab-pipeline-*/work/*")
    process.kill()
    process.wait()
    assert kept.is_dir()
    job = render_job(str(tmp_path / "out"), baseline=False, hang_s=2.0)
    assert start_process(job, tmp_path / "hung").wait(WAIT_S) == HUNG_EXIT
    assert list(scratch.glob("pab-pipeline-*/work/*")) == []
    # What was rendered before and beside it is brought home, and the log of the hung process too.
    assert bucket.recorded_keys() == {items[0].key, items[2].key}
    assert bucket.attempts()[items[1].key] == [1, 2]
    (log,) = bucket.names("logs")
    assert "event=left_over_removed folders=1" in bucket.read(f"logs/{log}").decode()
    assert "event=clip_hung clip=clip.1 limit_s=2.000" in bucket.read(f"logs/{log}").decode()
    assert "world.py" in (tmp_path / "hung/stderr").read_text()  # where it hung


def test_a_clip_that_another_job_records_meanwhile_is_not_rendered_again(tmp_path):
    gate, folder = tmp_path / "gate", tmp_path / "out"
    items = [clip(0, prompt=f"pause {gate}"), clip(1)]
    bucket = write_shard(str(folder), items)
    job = render_job(str(folder), baseline=False)
    job()
    records = [bucket.read(layout.record(item.key)) for item in items]
    for item in items:
        bucket.remove(layout.record(item.key))
        bucket.remove(layout.attempt(item.key, 1))
    before = [(folder / layout.video(item.clip_id)).stat().st_mtime_ns for item in items]
    gate.touch()
    process = start_process(job, tmp_path / "job")
    wait_for(gate.with_suffix(".reached").exists)
    # Another submit's job has the same clips: it records the one in work here, and the one that is next.
    for item, record in zip(items, records, strict=True):
        bucket.write(layout.record(item.key), record)
    gate.unlink()
    assert process.wait(WAIT_S) == 0
    assert [type(each) for each in outcome_of(tmp_path / "job").clips] == [Skipped, Skipped]
    assert [bucket.read(layout.record(item.key)) for item in items] == records
    assert [(folder / layout.video(item.clip_id)).stat().st_mtime_ns for item in items] == before
    assert bucket.attempts() == {items[0].key: [1]}


def a_record(data: bytes) -> dict:
    item, sha256 = clip(), hashlib.sha256(data).hexdigest()
    video = {"path": layout.render(item.key, sha256), "sha256": sha256, "size_bytes": len(data)}
    parts = {"plan": {}, "steps": {}, "seconds": {}, "elapsed_s": 1.0, "job": {}}
    return {"clip_id": item.clip_id, "digest": item.digest, "video": video, **parts}


def test_of_two_records_the_first_stays_and_names_a_video_that_no_other_attempt_writes_over(tmp_path):
    bucket = Bucket(str(tmp_path / "out"))
    first, second = a_record(b"first"), a_record(b"second")
    for record, data in ((first, b"first"), (second, b"second")):
        bucket.write(record["video"]["path"], data)
    assert write_record(bucket, clip(), first)
    kept = bucket.read(layout.record(clip().key))
    assert not write_record(bucket, clip(), second)
    # A killed sender's upload arrives late, as often as it likes.
    bucket.write(second["video"]["path"], b"second")
    assert bucket.read(layout.record(clip().key)) == kept
    assert content_fault(first, bucket.read(first["video"]["path"])) is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"not JSON", b"[]", b'{"clip_id": "another"}'])
def test_a_damaged_record_is_replaced_by_the_next_attempts(tmp_path, damage):
    bucket = Bucket(str(tmp_path / "out"))
    bucket.write(layout.record(clip().key), damage)
    assert write_record(bucket, clip(), a_record(b"video"))
    assert bucket.record(clip().key)["video"]["size_bytes"] == 5


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_an_interrupted_start_does_not_count_against_its_clip(tmp_path, signum):
    gate = tmp_path / "gate"
    gate.touch()
    items = [clip(0), clip(1, prompt=f"pause {gate}")]
    bucket = write_shard(str(tmp_path / "out"), items)
    process = start_process(render_job(str(tmp_path / "out"), baseline=False), tmp_path / "job")
    wait_for(gate.with_suffix(".reached").exists)
    process.send_signal(signum)
    assert process.wait(WAIT_S) not in (0, -signal.SIGKILL)
    assert items[1].key not in bucket.attempts()
    assert bucket.failures() == {}
    # The clip before was in the encoder's hands: what is rendered is still brought home.
    assert bucket.recorded_keys() == {items[0].key}


DEAF = """
import ctypes, sys
from jobs.rendering.attempts import OpenAttempts, interruptible
from jobs.store.bucket import Bucket

attempts = OpenAttempts(Bucket(sys.argv[1]))
with interruptible(attempts.withdraw):
    attempts.begin("a.01", 1)
    lock = ctypes.create_string_buffer(64)  # a mutex taken twice waits for ever, and no signal wakes it
    ctypes.CDLL(None).pthread_mutex_lock(lock)
    ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


def test_a_mark_is_taken_back_even_while_the_main_thread_is_deaf_to_signals(tmp_path):
    bucket = Bucket(str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", DEAF, str(tmp_path)], cwd=Path(__file__).parents[2])
    try:
        wait_for(lambda: bucket.attempts() == {"a.01": [1]})
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: bucket.attempts() == {})
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_an_upload_that_fails_for_reasons_that_pass_does_not_fail_the_clip(tmp_path):
    FlakyFileSystem.troubles.clear()
    output = f"flaky://{tmp_path.name}"
    item = clip(0)
    bucket = write_shard(output, [item])
    FlakyFileSystem.troubles += [ConnectionResetError("gone"), TimeoutError("slow"), ConnectionResetError("gone")]
    (rendered,) = render_job(output, baseline=False)().clips
    assert isinstance(rendered, Rendered)
    assert FlakyFileSystem.troubles == []
    assert bucket.recorded_keys() == {item.key}


def test_a_bucket_that_refuses_ends_the_job_and_fails_no_clip(tmp_path):
    FlakyFileSystem.troubles.clear()
    output = f"flaky://{tmp_path.name}"
    bucket = write_shard(output, [clip(0), clip(1)])
    FlakyFileSystem.troubles += [PermissionError("policy changed")] * 50
    with pytest.raises(
        BucketError, match=r"encoding/job-00007.* \(PermissionError: policy changed\); check credentials"
    ):
        render_job(output, baseline=False)()
    FlakyFileSystem.troubles.clear()
    assert bucket.failures() == {}
    assert threading.active_count() < 50
