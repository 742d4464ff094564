"""What a job on one rank leaves behind: videos, records, failures, marks and its outcome."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.outcome import Failed, Rendered, Skipped
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_work import render_clip
from jobs.rendering.deadline import Deadline
from jobs.rendering.group import GroupError
from jobs.rendering.loaded_family import load_family
from jobs.settings import Mesh
from jobs.store import layout
from jobs.store.bucket import Bucket, BucketError
from pab.broadcast.rules import KINDS
from pab.parallel.mesh import NodeGroup
from tests.jobs.listening import NotedProgress
from tests.jobs.videos import read_video
from tests.jobs.world import TINY, clip, render_job, write_shard


def fresh_frames(item, output: str) -> np.ndarray:
    settings = render_job(output).settings
    loaded = load_family(TINY, settings, torch.device("cpu"))
    attempt = Attempt(clip=item, number=1)
    render_clip(loaded, attempt, settings=settings, group=NodeGroup())
    frames = attempt.coming.fetch()
    assert frames is not None
    return frames


def test_every_clip_of_a_shard_gets_a_video_and_a_record(tmp_path):
    clips = [clip(0), clip(1, broadcast="none"), clip(2, num_frames=1, height=33, width=35)]
    bucket = write_shard(str(tmp_path), clips)
    outcome = render_job(str(tmp_path))()
    assert [type(item) for item in outcome.clips] == [Rendered] * 3
    assert (outcome.shard, outcome.attempt, outcome.left) == (7, 0, ())
    assert bucket.recorded_keys() == {item.key for item in clips}
    for item in clips:
        video = bucket.read_json(layout.record(item.key))["video"]
        data = bucket.read(layout.video(item.clip_id))
        assert video["sha256"] == hashlib.sha256(data).hexdigest()
        assert video["size_bytes"] == len(data)
        frames = read_video(tmp_path / layout.video(item.clip_id), video["width"], video["height"])
        assert len(frames) == video["num_frames"] == item.num_frames
    assert (video["width"], video["height"], video["padding"]) == (36, 34, {"columns": 1, "rows": 1})


def test_the_record_tells_plan_counts_seconds_and_warnings(tmp_path):
    item = clip(0, prompt="a zyx circle")
    bucket = write_shard(str(tmp_path), [item])
    render_job(str(tmp_path), baseline=False)()
    record = bucket.read_json(layout.record(item.key))
    assert record["schema"] == 1
    assert record["clip"]["prompt"] == "a zyx circle"
    assert record["warnings"] == ["unknown word: zyx"]
    assert record["attempt"] == 1
    for kind in KINDS:
        assert record["counted"]["computed"][kind] == record["planned"]["computed"][kind], kind
        assert record["counted"]["reused"][kind] == record["planned"]["reused"][kind], kind
    assert record["plan"]["computed"]["temporal"] < record["plan"]["total"]["temporal"] == 16
    assert len(record["steps"]["seconds"]) == len(record["steps"]["pattern"]) == 8
    assert sum(record["steps"]["seconds"]) <= record["seconds"]["denoise"]
    assert set(record["seconds"]) >= {"plan", "encode_prompt", "denoise", "decode", "encode", "check", "upload"}
    assert record["job"]["run_id"] == "run-1"
    assert record["kept_bytes_peak"] > 0
    assert record["versions"]["torch"] == torch.__version__


def test_a_family_is_loaded_from_what_submit_pinned_and_the_record_says_so(tmp_path):
    pinned, loaded = f"some/model@{'1' * 40}", []

    def load(request):
        loaded.append(request.weights)
        return TINY.load(request)

    bucket = write_shard(str(tmp_path), [clip(0)])
    job = render_job(str(tmp_path), baseline=False, pinned_weights={"tiny": pinned, "other": "elsewhere"})
    replace(job, find_family=lambda _: replace(TINY, load=load))()
    assert loaded == [pinned]
    assert bucket.read_json(layout.record(clip(0).key))["weights"] == pinned


def test_a_second_start_leaves_recorded_clips_out(tmp_path):
    clips = [clip(0), clip(1)]
    bucket = write_shard(str(tmp_path), clips)
    render_job(str(tmp_path), baseline=False)()
    before = {name: (tmp_path / "records" / name).stat().st_mtime_ns for name in bucket.names("records")}
    outcome = render_job(str(tmp_path))()
    assert [item.reason for item in outcome.clips if isinstance(item, Skipped)] == ["recorded", "recorded"]
    assert {name: (tmp_path / "records" / name).stat().st_mtime_ns for name in bucket.names("records")} == before
    assert bucket.attempts() == {item.key: [1] for item in clips}


def test_a_clip_that_raises_is_failed_and_the_next_one_comes_out_as_if_alone(tmp_path):
    clips = [clip(0, prompt="fail now"), clip(1)]
    bucket = write_shard(str(tmp_path), clips)
    outcome = render_job(str(tmp_path), baseline=False)()
    failed, rendered = outcome.clips
    assert isinstance(failed, Failed)
    assert isinstance(rendered, Rendered)
    assert (failed.stage, failed.error, failed.message) == ("denoise", "ArithmeticError", "this prompt always fails")
    failure = bucket.read_json(layout.failure(clips[0].key, 1))
    assert "this prompt always fails" in failure["traceback"]
    assert failure["job"]["host"]
    assert bucket.recorded_keys() == {clips[1].key}
    alone = tmp_path / "alone"
    write_shard(str(alone), [clips[1]])
    render_job(str(alone), baseline=False)()
    path = layout.video(clips[1].clip_id)
    assert (tmp_path / path).read_bytes() == (alone / path).read_bytes()
    assert np.array_equal(fresh_frames(clips[1], str(tmp_path)), fresh_frames(clips[1], str(tmp_path)))


def test_a_failed_clip_is_left_for_a_start_that_tries_again_and_then_stays_failed_until_it_is_forgotten(tmp_path):
    item = clip(0, prompt="fail now")
    bucket = write_shard(str(tmp_path), [item])
    job = render_job(str(tmp_path))
    job()
    outcome = job()
    assert (outcome.clips, outcome.left) == ((), (item.clip_id,))
    assert bucket.attempts() == {item.key: [1]}
    for _ in range(2):
        (failed,) = replace(job, again=True)().clips
        assert isinstance(failed, Failed)
        assert failed.message == "this prompt always fails"
    assert bucket.attempts() == bucket.failures() == {item.key: [1, 2]}
    assert bucket.read_json(layout.failure(item.key, 2))["job"]["node"]
    assert bucket.forget_failures() == [item.key]
    assert bucket.attempts() == bucket.failures() == {}
    job()
    assert bucket.failures() == {item.key: [1]}


def test_a_clip_whose_row_is_wrong_is_not_tried_again(tmp_path):
    item = clip(0, prompt="unreadable words")
    bucket = write_shard(str(tmp_path), [item])
    render_job(str(tmp_path))()
    (failed,) = replace(render_job(str(tmp_path)), again=True)().clips
    assert isinstance(failed, Failed)
    assert failed.error == "ValueError"
    assert bucket.attempts() == {item.key: [1]}
    assert bucket.failures() == {item.key: [2]}
    assert bucket.read_json(layout.failure(item.key, 2))["attempt"] == 1


def test_an_unknown_broadcast_fails_its_clip_and_names_what_there_is(tmp_path):
    write_shard(str(tmp_path), [clip(0, broadcast="pab999")])
    (failed,) = render_job(str(tmp_path), broadcast_rules={"mine": {}})().clips
    assert isinstance(failed, Failed)
    assert failed.message == "clip clip.0: broadcast='pab999', model tiny has mine, none, pab, foresight"


def test_rules_of_the_run_are_used_by_name(tmp_path):
    item = clip(0, broadcast="mine")
    bucket = write_shard(str(tmp_path), [item])
    rules = {"mine": {"temporal": {"range": 4, "window": [0, 1000]}}}
    render_job(str(tmp_path), broadcast_rules=rules, baseline=False)()
    plan = bucket.read_json(layout.record(item.key))["plan"]
    # Two sites compute at steps 0 and 4 of 8.
    assert plan["rules"] == rules["mine"]
    assert (plan["computed"]["temporal"], plan["computed"]["spatial"]) == (2 * 2, 16)


def test_clips_that_do_not_fit_into_the_time_are_left_for_the_next_start(tmp_path):
    clips = [clip(0), clip(1)]
    bucket = write_shard(str(tmp_path), clips)
    outcome = render_job(str(tmp_path), deadline_s=0.0)()
    assert outcome.clips == ()
    assert outcome.left == ("clip.0", "clip.1")
    assert bucket.attempts() == {}
    assert not render_job(str(tmp_path), deadline_s=1000.0)().left


def test_a_missing_shard_is_an_error_that_names_it(tmp_path):
    with pytest.raises(BucketError, match=r"shards/00007.parquet: there is no such file; submit the run again"):
        render_job(str(tmp_path))()


def test_a_mesh_that_does_not_fit_the_ranks_is_an_error(tmp_path):
    with pytest.raises(GroupError, match=r"mesh dp=1,cfg=1,sp=2 needs 2 ranks, job \w+ has 1"):
        render_job(str(tmp_path), mesh=Mesh(sp=2))()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_job_for_a_gpu_says_why_none_is_found(tmp_path):
    with pytest.raises(GroupError, match=r"rank 0 on .*: torch .* finds no GPU here: .*, or say --device cpu"):
        render_job(str(tmp_path), device="cuda")()


def test_the_log_goes_to_the_bucket_one_line_per_event(tmp_path):
    bucket = write_shard(str(tmp_path), [clip(0)])
    render_job(str(tmp_path), baseline=False)()
    (name,) = Bucket(str(tmp_path)).names("logs")
    lines = bucket.read(f"logs/{name}").decode().splitlines()
    (started,) = [line for line in lines if "event=clip_started" in line]
    for field in ("run=run-1", "job=job-00007", "rank=0", "clip=clip.0", "level=info"):
        assert field in started.split()
    assert Path(name).name.startswith("job-00007.")


def test_a_listener_hears_of_each_clip_to_render_once(tmp_path):
    write_shard(str(tmp_path / "out"), [clip(0)])
    render_job(str(tmp_path / "out"), baseline=False)()
    write_shard(str(tmp_path / "out"), [clip(0), clip(1, prompt="fail now"), clip(2)])
    notes = tmp_path / "notes"
    render_job(str(tmp_path / "out"), baseline=False, progress=NotedProgress(notes))()
    assert notes.read_text().splitlines() == [
        "open job-00007 clip.1,clip.2", "started clip.1", "finished clip.1 failed",
        "started clip.2", "finished clip.2 rendered", "closed",
    ]  # fmt: skip


def test_a_clip_does_not_begin_when_the_clips_before_it_say_that_it_would_not_end():
    deadline = Deadline(started=time.monotonic(), deadline_s=10.0)
    assert deadline.fits(1e9)
    deadline.measured(100, 2.0)
    deadline.measured(100, 1.0)
    assert deadline.fits(400)
    assert not deadline.fits(460)
    assert not Deadline(started=time.monotonic() - 11, deadline_s=10.0).fits(1)
    assert Deadline(started=0.0, deadline_s=None).fits(1e9)


def test_clips_of_a_prompt_batch_that_does_not_encode_fail_alone(tmp_path):
    items = [clip(0), clip(1, prompt="unreadable words"), clip(2)]
    write_shard(str(tmp_path), items)
    first, second, third = render_job(str(tmp_path), baseline=False)().clips
    assert isinstance(second, Failed)
    assert (second.stage, second.message) == ("encode_prompt", "these words cannot be read")
    assert isinstance(first, Rendered)
    assert isinstance(third, Rendered)


def test_a_clip_of_loops_is_one_video_and_record_and_report_count_all_of_them(tmp_path):
    looped = clip(
        0, prompt="|0| a red circle |2| a blue square", loops=3, condition_frame_length=2, condition_frame_edit=0.0
    )
    bucket = write_shard(str(tmp_path), [looped, clip(1)])
    outcome = render_job(str(tmp_path), baseline=True, quality_samples=2)()
    assert [type(item) for item in outcome.clips] == [Rendered, Rendered]
    record, plain = (bucket.read_json(layout.record(item.key)) for item in (looped, clip(1)))
    assert record["video"]["num_frames"] == 3 * 8 - 2 * 4
    assert record["warnings"] == []
    first, second, third = record["loops"]
    assert [loop["prompt"] for loop in record["loops"]] == ["a red circle", "a red circle", "a blue square"]
    assert [loop["given_latent_frames"] for loop in record["loops"]] == [0, 2, 2]
    assert first["seed"] == looped.seed != second["seed"] != third["seed"]
    assert first["plan"] == third["plan"] == record["plan"]["digest"] == plain["plan"]["digest"]
    for kind, total in plain["plan"]["total"].items():
        assert record["plan"]["total"][kind] == 3 * total
        assert record["counted"]["computed"][kind] == record["planned"]["computed"][kind] == 3 * first["computed"][kind]
    assert len(record["steps"]["seconds"]) == len(record["steps"]["pattern"]) == 3 * 8
    assert [loop["prompt"] for loop in plain["loops"]] == [clip(1).prompt]
    report = bucket.read_json(layout.job_report(7))
    (plan,) = report["plans"]
    assert (plan["clips"], len(plan["patterns"]), len(plan["step_median_s"])) == (2, 8, 8)
    assert report["calls"]["agree"]
    assert [row["size"] for row in report["clips"]] == ["8x32x48, 3 loops", "8x32x48"]
    baselines = {each["clip_id"]: each for each in report["baselines"]}
    assert {name: len(each["steps"]["seconds"]) for name, each in baselines.items()} == {"clip.0": 3 * 8, "clip.1": 8}


def test_foresight_decides_in_each_loop_anew_and_is_counted_as_decided(tmp_path):
    looped = clip(0, broadcast="foresight", loops=2, condition_frame_length=1, condition_frame_edit=0.5)
    bucket = write_shard(str(tmp_path), [looped])
    assert [type(item) for item in render_job(str(tmp_path), baseline=False)().clips] == [Rendered]
    record = bucket.read_json(layout.record(looped.key))
    assert record["video"]["num_frames"] == 2 * 8 - 2
    for kind in KINDS:
        assert record["counted"]["computed"][kind] == record["planned"]["computed"][kind]
        assert record["plan"]["computed"][kind] == sum(loop["computed"][kind] for loop in record["loops"])
    assert sum(record["counted"]["reused"].values()) > 0
    (plan,) = bucket.read_json(layout.job_report(7))["plans"]
    assert len(plan["step_median_s"]) == 8
