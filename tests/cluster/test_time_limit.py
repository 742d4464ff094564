"""SLURM's own time limit strikes: what jobs that reach it leave, and what comes of their clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job import JobRequest
from cluster.slurm import SlurmCluster
from cluster.slurm_queue import read_queue
from cluster.slurm_settings import SlurmSettings
from jobs.store import layout
from pipeline.run.display import open_display
from pipeline.run.driven import ShardJob
from pipeline.run.driver import Driver
from pipeline.run.jobs_file import new_submit
from pipeline.screen import Screen
from tests.cluster.daemons.slurm import Slurm
from tests.jobs.test_ends import assert_whole
from tests.jobs.world import clip, render_job, write_shard

pytestmark = pytest.mark.cluster


def shard_job(output: Path, shard: int, *, limit_min: int, deadline_s: float | None = None) -> ShardJob:
    call = replace(render_job(str(output), baseline=False, deadline_s=deadline_s), shard=shard)
    request = JobRequest(
        name=layout.job_name(shard), call=call, num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=limit_min
    )
    return ShardJob(shard=shard, num_clips=3, request=request, again=replace(request, call=replace(call, again=True)))


def test_jobs_that_meet_their_limit_lose_no_clip_and_do_none_twice(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, waits, deaf = tmp_path / "out", tmp_path / "waits", tmp_path / "deaf"
    prompts = [
        # Told before its limit of a minute, this job puts itself back into the queue.
        ["a circle", f"pause {waits}", "a square"],
        # This one hears nothing in its main thread, and is killed when the minute is over.
        ["a circle", f"deaf {deaf}", "a square"],
        # And this one knows its time: it begins no clip that would not end in it.
        ["rest 9", "rest 9", "rest 9"],
    ]
    shards = [[clip(3 * at + k, prompt=text) for k, text in enumerate(texts)] for at, texts in enumerate(prompts)]
    for at, clips in enumerate(shards):
        bucket = write_shard(str(output), clips, shard=at)
    waits.touch()
    deaf.touch()
    cluster = SlurmCluster(
        tmp_path / "jobs", SlurmSettings(), run_id="0123456789ab", queue_interval_s=1.0, result_grace_s=2.0
    )
    keys = frozenset(item.key for clips in shards for item in clips)
    driver = Driver(cluster, bucket, screen=Screen(), submit=new_submit("slurm", str(tmp_path)), keys=keys)
    asked = [shard_job(output, 0, limit_min=1), shard_job(output, 1, limit_min=1)]
    driver.start([*asked, shard_job(output, 2, limit_min=2, deadline_s=25.0)])
    jobs, mark = driver.jobs, output / layout.attempt(shards[0][1].key, 1)

    def open_gates() -> None:
        if deaf.with_suffix(".reached").exists():
            deaf.unlink(missing_ok=True)
        if waits.with_suffix(".reached").exists() and not mark.exists():
            waits.unlink(missing_ok=True)

    driver.run(open_display(), planned_s=0.0, keep_alive=open_gates)
    said = capsys.readouterr().err
    assert "job-00001: started again, 2 of its clips are left: SLURM's last state: TIMEOUT" in said
    assert "job-00002: started again, 1 of its clips are left: it ended with clips left" in said
    assert "job-00000" not in said
    assert read_queue()[jobs[0].id].restarts == 1
    assert_whole(bucket, output, [item for clips in shards for item in clips])
    assert bucket.attempts() == {item.key: [1] for clips in shards for item in clips}
