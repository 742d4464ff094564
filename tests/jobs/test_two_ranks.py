"""Jobs of two ranks: the same pixels, the planned traffic, clips side by side, an end for all."""

import os
import signal
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.job import Job, JobRequest, JobState
from cluster.local import LocalCluster
from jobs.outcome import Rendered
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_work import render_clip
from jobs.rendering.group import Place, open_job, open_store
from jobs.rendering.loaded_family import load_family
from jobs.rendering.shard_run import run_shard
from jobs.settings import Mesh
from jobs.store import layout
from pab.parallel.mesh import NodeGroup
from tests.jobs.listening import NotedProgress
from tests.jobs.machines import RankError, run_on_forked_ranks, run_with_submitit
from tests.jobs.nvml import counting
from tests.jobs.videos import read_video
from tests.jobs.world import TINY, clip, render_job, write_shard
from tests.sockets import listening, listening_elsewhere

BOUND = 1e-5
"""Of latents in float32: what another order of sums may change."""


def latents_on_this_rank(job, item):
    with open_job(job.settings) as ranks:
        loaded = load_family(TINY, job.settings, torch.device("cpu"))
        rendered = Attempt(clip=item, number=1)
        render_clip(loaded, rendered, settings=job.settings, group=ranks.node)
        told = ranks.all_gather(("rank", ranks.place.rank), tuple[str, int])
        return (
            rendered.denoised.latents,
            rendered.denoised.traffic,
            told,
            ranks.broadcast_in_clip(f"from {ranks.place.rank}", str),
        )


def test_ranks_of_one_machine_meet_on_loopback_only():
    place = Place(rank=0, world=2, local_rank=0, num_nodes=1, job_id="7", start=0, folder=None)
    store = open_store(place, timedelta(seconds=5))
    store.set("a", "1")
    assert f"0100007F:{store.port:04X}" in listening(os.getpid())
    assert listening_elsewhere(os.getpid()) == []


@pytest.mark.parametrize("mesh", [Mesh(sp=2), Mesh(cfg=2)], ids=str)
def test_two_ranks_give_one_ranks_latents_and_agree_on_plain_values(tmp_path, mesh):
    item = clip(3, num_frames=10)
    results = run_on_forked_ranks(
        partial(latents_on_this_rank, render_job(str(tmp_path), mesh=mesh), item), tmp_path / "jobs", ranks=2
    )
    job = render_job(str(tmp_path))
    attempt = Attempt(clip=item, number=1)
    loaded = load_family(TINY, job.settings, torch.device("cpu"))
    render_clip(loaded, attempt, settings=job.settings, group=NodeGroup())
    alone = attempt.denoised
    for latents, traffic, told, agreed in results:
        assert (latents - alone.latents).abs().max() <= BOUND
        assert traffic.all_to_alls == (2 * alone.plan.computed("temporal") if mesh.sp == 2 else 0)
        assert told == [("rank", 0), ("rank", 1)]
        assert agreed == "from 0"


def test_a_job_of_two_ranks_renders_and_counts_what_the_plan_foretold(tmp_path):
    items = [clip(0), clip(1, broadcast="none")]
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), mesh=Mesh(sp=2))
    counted = partial(run_shard, job, counter_of=counting)
    outcome, _ = run_with_submitit(counted, tmp_path / "jobs", ranks=2)
    assert [type(item) for item in outcome.clips] == [Rendered, Rendered]
    for item, temporal in zip(items, (6, 16), strict=True):
        record = bucket.read_json(layout.record(item.key))
        assert record["counted"]["all_to_alls"] == record["planned"]["all_to_alls"] == 2 * temporal
        assert record["planned"]["all_to_alls_without_broadcast"] == 32
        assert record["counted"]["computed"] == record["planned"]["computed"]
        # Rows of both guidance branches, 2 frames here, 24 patches, 32 channels of float32; half of it leaves the rank.
        assert record["counted"]["all_to_all_bytes"] == 2 * temporal * (2 * 2 * 24 * 32 * 4) // 2
        assert record["job"]["mesh"] == "dp=1,cfg=1,sp=2"
        # Of both ranks. A look costs 10 J, and the next clip's beginning may come before this one's end.
        assert (record["energy"]["gpus"], 20 <= record["energy"]["joules"] <= 40) == (2, True)
    assert sorted(name.rsplit(".", 2)[1] for name in bucket.names("logs")) == ["rank0", "rank1"]


def test_replicas_take_clips_in_turn_and_report_together(tmp_path):
    items = [clip(number) for number in range(3)]
    bucket = write_shard(str(tmp_path / "out"), items)
    notes = tmp_path / "notes"
    job = render_job(str(tmp_path / "out"), mesh=Mesh(dp=2), progress=NotedProgress(notes))
    outcome, _ = run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)
    assert [(type(item), item.clip_id) for item in outcome.clips] == [(Rendered, item.clip_id) for item in items]
    assert [bucket.read_json(layout.record(item.key))["job"]["rank"] for item in items] == [0, 1, 0]
    heard = notes.read_text().splitlines()
    assert (heard[0], heard[-1]) == ("open job-00007 clip.0,clip.1,clip.2", "closed")
    wanted = [f"{word} clip.{n}{tail}" for n in range(3) for word, tail in (("started", ""), ("finished", " rendered"))]
    assert sorted(heard[1:-1]) == sorted(wanted)
    frames = read_video(tmp_path / "out" / layout.video("clip.1"), 48, 32)
    alone = write_shard(str(tmp_path / "alone"), [items[1]])
    render_job(str(tmp_path / "alone"))()
    assert alone.recorded_keys() == {items[1].key}
    assert np.array_equal(frames, read_video(tmp_path / "alone" / layout.video("clip.1"), 48, 32))


def test_an_error_in_shared_work_ends_the_group_and_the_next_start_goes_on(tmp_path):
    items = [clip(0), clip(1, prompt="fail now"), clip(2)]
    bucket = write_shard(str(tmp_path / "out"), items)
    job = render_job(str(tmp_path / "out"), mesh=Mesh(sp=2), baseline=False)
    with pytest.raises(RankError, match=r"clip clip\.1: ArithmeticError in denoise"):
        run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)
    assert bucket.recorded_keys() == {items[0].key}
    assert bucket.failures() == {items[1].key: [1]}
    outcome, _ = run_on_forked_ranks(job, tmp_path / "jobs", ranks=2)
    assert outcome.left == (items[1].clip_id,)
    assert bucket.recorded_keys() == {items[0].key, items[2].key}


def start_locally(job, folder) -> tuple[LocalCluster, Job]:
    """Starts a job of two ranks as a run on this machine does: when one rank dies, the other is told to end."""
    cluster = LocalCluster(folder, 1)
    (started,) = cluster.submit(
        [JobRequest(name="job", call=job, num_nodes=1, ranks_per_node=2, gpus_per_node=0, timeout_min=3)]
    )
    return cluster, started


def wait_for(condition) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_a_rank_that_is_killed_takes_the_group_along_and_counts_as_one_attempt(tmp_path):
    item = clip(0, prompt="kill-rank-1 now")
    bucket = write_shard(str(tmp_path / "out"), [item])
    cluster, job = start_locally(render_job(str(tmp_path / "out"), mesh=Mesh(sp=2)), tmp_path / "jobs")
    wait_for(lambda: (cluster.poll(), job.state)[1] is JobState.LOST)
    # The rank that was left behind tells of no failure: the clip may have been the victim of its machine.
    assert bucket.failures() == {}
    assert bucket.attempts() == {item.key: [1]}
    assert bucket.histories([item.key])[item.key].killed == 1


@pytest.mark.parametrize("stopped_s", [0.0, 2.5], ids=["at once", "a rank that the machine lets wait"])
def test_a_job_of_two_ranks_that_is_cancelled_does_not_count_against_its_clip(tmp_path, stopped_s):
    gate = tmp_path / "gate"
    gate.touch()
    item = clip(0, prompt=f"pause {gate}")
    bucket = write_shard(str(tmp_path / "out"), [item])
    cluster, job = start_locally(render_job(str(tmp_path / "out"), mesh=Mesh(sp=2)), tmp_path / "jobs")
    wait_for(gate.with_suffix(".reached").exists)
    assert bucket.attempts() == {item.key: [1]}
    last_rank = max(int(pid) for pid in Path(f"/proc/{job.id}/task/{job.id}/children").read_text().split())
    os.kill(last_rank, signal.SIGSTOP)
    goes_on = threading.Timer(stopped_s, os.kill, [last_rank, signal.SIGCONT])
    goes_on.start()
    cluster.cancel([job])
    goes_on.join()
    assert bucket.attempts() == bucket.failures() == {}
