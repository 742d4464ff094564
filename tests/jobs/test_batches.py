"""Jobs that render clips together: the same videos, true records and reports, and what goes wrong stays one clip's."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.outcome import Failed, Rendered, Skipped
from jobs.rendering.guarded_plans import drawn
from jobs.settings import Mesh
from jobs.store import layout
from pab.broadcast.rules import KINDS
from tests.jobs.listening import NotedProgress
from tests.jobs.machines import outcome_of, run_on_forked_ranks, start_process
from tests.jobs.videos import read_video
from tests.jobs.world import clip, render_job, write_shard

PROMPTS = ("a red circle", "one two three four five", "a", "a blue square far away", "b c", "zyx", "d e f")


def clips(count: int = 7, **changes):
    return [clip(number, prompt=PROMPTS[number], **changes) for number in range(count)]


def frames(root, item) -> np.ndarray:
    return read_video(root / layout.video(item.clip_id), item.width, item.height)


def sizes(bucket, items) -> list[int]:
    return [bucket.read_json(layout.record(item.key))["batch"]["size"] for item in items]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The same clips in batches of four and one by one."""
    roots = [tmp_path_factory.mktemp(name) for name in ("batches", "alone")]
    items = clips()
    buckets = [write_shard(str(root), items) for root in roots]
    outcomes = [render_job(str(root), baseline=False, batch=batch)() for root, batch in zip(roots, (4, 1), strict=True)]
    return items, roots, buckets, outcomes


def test_a_job_renders_in_batches_what_it_renders_alone(jobs):
    items, roots, buckets, outcomes = jobs
    assert [type(item) for item in outcomes[0].clips] == [Rendered] * 7
    assert sizes(buckets[0], items) == [4, 4, 4, 4, 2, 2, 1]
    assert sizes(buckets[1], items) == [1] * 7
    for item in items:
        together, alone = (frames(root, item).astype(int) for root in roots)
        # A level that another order of sums rounds otherwise may look a little different to the video encoder.
        assert np.abs(together - alone).max() <= 6, item.clip_id
        assert np.abs(together - alone).mean() < 0.1, item.clip_id


def test_the_record_of_a_clip_in_a_batch_names_its_company_and_has_its_share(jobs):
    items, _, buckets, _ = jobs
    records = [buckets[0].read_json(layout.record(item.key)) for item in items]
    assert records[1]["batch"] == {"size": 4, "clips": [f"clip.{n}" for n in range(4)]}
    assert records[6]["batch"] == {"size": 1, "clips": []}
    assert records[0]["steps"]["seconds"] == records[3]["steps"]["seconds"]
    for record in records:
        assert sum(record["steps"]["seconds"]) <= record["seconds"]["denoise"] <= record["elapsed_s"]
        for kind in KINDS:
            assert record["counted"]["computed"][kind] == record["planned"]["computed"][kind]
    assert records[5]["warnings"] == ["unknown word: zyx"]


def test_the_report_counts_every_clip_once_and_its_clips_per_gpu_hour_are_those_of_the_wall(jobs):
    items, _, buckets, _ = jobs
    report = buckets[0].read_json(layout.job_report(7))
    assert [(each["size"], each["clips"]) for each in report["batches"]] == [(1, 1), (2, 2), (4, 4)]
    assert [row["batch"] for row in report["clips"]] == [4, 4, 4, 4, 2, 2, 1]
    assert report["calls"]["agree"]
    (start,) = report["starts"]
    throughput = report["throughput"]
    assert throughput["gpu_seconds"] < start["wall_s"]
    assert throughput["clips_per_gpu_hour"] == pytest.approx(len(items) / throughput["gpu_seconds"] * 3600, rel=1e-3)
    assert start["device_busy"]["clips"] == 2  # two batches after the first one
    assert start["device_busy"]["busy_s"] <= start["device_busy"]["window_s"]
    assert "clips rendered together" in buckets[0].read(layout.job_report(7, "html")).decode()


def test_left_to_measured_times_the_sample_is_alone_and_is_the_one_that_is_compared(tmp_path):
    items = clips()
    bucket = write_shard(str(tmp_path), items)
    outcome = render_job(str(tmp_path), batch=0)()
    assert [type(item) for item in outcome.clips] == [Rendered] * 7
    sample, *rest = sorted(items, key=lambda item: item != drawn(items)[0])
    assert sizes(bucket, [sample, *rest])[:3] == [1, 2, 2]
    report = bucket.read_json(layout.job_report(7))
    (baseline,) = report["baselines"]
    assert baseline["clip_id"] == sample.clip_id
    assert report["speedup"]["measured"]["pab_factor"] > 0


def test_clips_that_differ_in_more_than_prompt_and_seed_are_not_rendered_together(tmp_path):
    items = [
        clip(0), clip(1, num_steps=6), clip(2, num_steps=6), clip(3, guidance_scale=2.0), clip(4, broadcast="none"),
        clip(5, broadcast="foresight"), clip(6, broadcast="foresight"),
    ]  # fmt: skip
    bucket = write_shard(str(tmp_path), items)
    render_job(str(tmp_path), baseline=False, batch=4)()
    assert sizes(bucket, items) == [1, 2, 2, 1, 1, 1, 1]


def test_a_clip_that_is_not_finite_fails_alone_and_the_others_of_its_batch_are_recorded(tmp_path):
    items = clips(4)
    items[2] = replace(items[2], prompt="nan here")
    bucket = write_shard(str(tmp_path), items)
    first, second, third, fourth = render_job(str(tmp_path), baseline=False, batch=4)().clips
    assert isinstance(third, Failed)
    assert (third.stage, third.error) == ("denoise", "NotFiniteError")
    assert [type(each) for each in (first, second, fourth)] == [Rendered] * 3
    assert bucket.failures() == {items[2].key: [1]}
    assert sizes(bucket, [items[0], items[1], items[3]]) == [4, 4, 4]


def test_a_batch_that_raises_is_rendered_one_by_one_and_only_the_clip_at_fault_fails(tmp_path):
    items = [clip(0, prompt="fail now"), *clips(4)[1:]]
    bucket = write_shard(str(tmp_path), items)
    notes = tmp_path / "notes"
    outcome = render_job(str(tmp_path), baseline=False, batch=4, progress=NotedProgress(notes))()
    assert [type(each) for each in outcome.clips] == [Failed, Rendered, Rendered, Rendered]
    assert bucket.attempts() == {item.key: [1] for item in items}
    assert bucket.failures() == {items[0].key: [1]}
    assert sizes(bucket, items[1:]) == [1, 1, 1]
    heard = notes.read_text().splitlines()
    assert sum(line.startswith("started") for line in heard) == sum(line.startswith("finished") for line in heard) == 4


def test_a_batch_that_kills_its_group_loses_nothing_and_its_clips_come_alone_next_time(tmp_path):
    trap = tmp_path / "trap"
    trap.touch()
    items = [clip(0, prompt=f"kill {trap}"), *clips(3)[1:]]
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), baseline=False, batch=4)
    for start, code in enumerate((-9, 0)):
        process = start_process(job, tmp_path / f"start{start}")
        assert process.wait(120) == code
        if start == 0:
            assert bucket.attempts() == {item.key: [1] for item in items[:2]}
            assert bucket.recorded_keys() == set()
            trap.unlink()
    outcome = outcome_of(tmp_path / "start1")
    assert [type(each) for each in outcome.clips] == [Rendered] * 3
    assert bucket.attempts() == {items[0].key: [1, 2], items[1].key: [1, 2], items[2].key: [1]}
    assert sizes(bucket, items) == [1, 1, 1]


def test_clips_that_another_job_recorded_meanwhile_are_left_out_of_the_batch(tmp_path):
    items = clips(4)
    elsewhere = write_shard(str(tmp_path / "elsewhere"), [items[1]])
    render_job(str(tmp_path / "elsewhere"), baseline=False)()
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), baseline=False, batch=4)

    def load(request):
        # By now this start has sorted its shard; another submit's job is faster.
        path = layout.record(items[1].key)
        bucket.create_json(path, elsewhere.read_json(path))
        return job.find_family("tiny").load(request)

    family = replace(job.find_family("tiny"), load=load)
    outcome = replace(job, find_family=lambda _: family)()
    assert [type(each) for each in outcome.clips] == [Rendered, Skipped, Rendered, Rendered]
    assert sizes(bucket, [items[0], items[2], items[3]]) == [2, 2, 1]


@pytest.mark.parametrize("mesh", [Mesh(sp=2), Mesh(cfg=2)], ids=str)
def test_two_ranks_render_batches_and_agree_on_their_size(tmp_path, mesh):
    items = clips(5)
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), mesh=mesh, batch=2, baseline=False)
    outcome, _ = run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)
    assert [type(item) for item in outcome.clips] == [Rendered] * 5
    assert sizes(bucket, items) == [2, 2, 2, 2, 1]
    records = [bucket.read_json(layout.record(item.key)) for item in items]
    for one, other in itertools.pairwise(records):
        # A clip's share of the bytes is what it sends alone.
        assert one["counted"]["all_to_all_bytes"] == other["counted"]["all_to_all_bytes"]
        assert one["counted"]["all_to_alls"] == one["planned"]["all_to_alls"]


def test_the_time_of_a_batch_decides_what_still_fits(tmp_path):
    items = clips(4)
    write_shard(str(tmp_path), items)
    start = time.monotonic()
    assert render_job(str(tmp_path), baseline=False, batch=4, deadline_s=0.0)().left == tuple(i.clip_id for i in items)
    assert time.monotonic() - start < 60


def test_each_size_of_batch_compiles_once_for_prompts_of_any_length(tmp_path):
    items = clips(7, num_steps=4)
    items[2], items[3] = replace(items[2], prompt="x y"), replace(items[3], prompt="v w")  # of one length
    bucket = write_shard(str(tmp_path), items)
    torch._dynamo.reset()
    job = render_job(
        str(tmp_path), baseline=False, batch=2, compile=True, compile_backend="eager", compile_cache=str(tmp_path)
    )
    assert [type(each) for each in job().clips] == [Rendered] * 7
    graphs = [bucket.read_json(layout.record(item.key))["execution"]["graphs"] for item in items]
    assert graphs[0] == graphs[1] > 0
    assert graphs[2:6] == [0, 0, 0, 0]
    assert graphs[6] > 0  # the last one is alone


def test_a_clip_whose_decoder_gives_nan_fails_alone_at_decode_and_has_no_record(tmp_path):
    items = clips(4)
    items[1] = replace(items[1], prompt="spoil this")
    bucket = write_shard(str(tmp_path), items)
    first, second, third, fourth = render_job(str(tmp_path), baseline=False, batch=4)().clips
    assert isinstance(second, Failed)
    assert (second.stage, second.error) == ("decode", "NotFiniteError")
    assert "1 of 36864 decoded values are NaN or infinite" in second.message
    assert [type(each) for each in (first, third, fourth)] == [Rendered] * 3
    assert bucket.failures() == {items[1].key: [1]}
    assert sizes(bucket, [items[0], items[2], items[3]]) == [4, 4, 4]
    assert not (tmp_path / layout.video("clip.1")).exists()


def test_a_clip_of_several_loops_fails_at_decode_and_is_not_compared_with_a_baseline(tmp_path):
    loops = {"loops": 2, "condition_frame_length": 2, "condition_frame_edit": 0.0}
    items = [clip(0, prompt="spoil this", **loops), clip(1, prompt="spoil that"), clip(2)]
    bucket = write_shard(str(tmp_path), items)
    outcomes = render_job(str(tmp_path))().clips
    assert [getattr(each, "stage", None) for each in outcomes] == ["decode", "decode", None]
    assert list(bucket.failures()) == [items[0].key, items[1].key]
    # The one that came out is compared instead.
    assert [each["clip_id"] for each in bucket.read_json(layout.job_report(7))["baselines"]] == ["clip.2"]
