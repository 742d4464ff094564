"""Which jobs are the run's, on a real SLURM: strangers under the same id, answers that never came, nodes that kill."""

from __future__ import annotations

import io
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.job import CancelledError, ClusterError, JobRequest, JobState, UnansweredError
from cluster.slurm import SlurmCluster
from cluster.slurm_queue import read_queue
from cluster.slurm_record import read_records
from cluster.slurm_settings import SlurmSettings
from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.schema import CLIP_SCHEMA, accepted_schema
from pipeline.run.at_work import AtWork, wait_for_others
from pipeline.run.claims import driving
from pipeline.run.display import open_display
from pipeline.run.driven import ShardJob
from pipeline.run.driver import Driver
from pipeline.run.jobs_file import new_submit
from pipeline.screen import Screen
from tests.cluster.daemons.slurm import Slurm
from tests.cluster.rank_calls import DieOn, Say
from tests.cluster.slurm_jobs import RUN_ID, request
from tests.cluster.waiting import wait_over, wait_until

pytestmark = pytest.mark.cluster
REAL_SBATCH = f'{shutil.which("sbatch")} "$@"'
EVIL = "evil\n7|RUNNING|0|None|pab-1"


def cluster_in(folder: Path, *, settle_s: float = 60.0, **settings: object) -> SlurmCluster:
    chosen = SlurmSettings(**settings)
    return SlurmCluster(
        folder / "jobs", chosen, run_id=RUN_ID, queue_interval_s=0.3, result_grace_s=1, settle_s=settle_s
    )  # fmt: skip


def sleeper(slurm: Slurm, name: str) -> str:
    return slurm.run("sbatch", "--parsable", f"--job-name={name}", "--output=/dev/null", "--wrap=sleep 60").strip()


def waits(folder: Path, name: str, sleep_s: float = 60) -> JobRequest:
    return request(Say(folder=folder, sleep_s=sleep_s), name, nodes=1, ranks=1)


def replace_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    """Puts a script before the real sbatch, that does more when it is asked to submit."""
    path = folder / "bin" / "sbatch"
    path.parent.mkdir()
    path.write_text("\n".join(["#!/bin/sh", f'[ "$1" = --help ] && exec {REAL_SBATCH}', *lines]))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def alive(*ids: str) -> list[bool]:
    rows = read_queue()
    return [job_id in rows and rows[job_id].live_state is not None for job_id in ids]


def test_cancel_ends_the_runs_jobs_and_no_stranger_whatever_its_name_or_id(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "virt")
    monkeypatch.setenv("SQUEUE_PARTITION", "urgent")
    evil = sleeper(slurm, EVIL)
    cluster = cluster_in(tmp_path)
    jobs = cluster.submit([waits(tmp_path, f"job-{k}") for k in range(3)])
    (record,) = read_records(tmp_path / "jobs", RUN_ID)
    assert record.job_name.startswith(f"pab-{RUN_ID}-")
    wait_until(lambda: cluster.poll() or all(job.state is JobState.RUNNING for job in jobs))
    # Ids that were given to other jobs since: one of another name, one of the same name that came later.
    time.sleep(1.1)
    other, later = sleeper(slurm, "training"), sleeper(slurm, record.job_name)
    replace(record, ids=(record.ids[0], other, later)).write()
    ended = cluster_in(tmp_path).cancel_run()
    assert [job.id for job in ended] == [jobs[0].id]
    assert alive(evil, other, later) == [True, True, True]
    assert caplog.text.count("names another job by now") == 2
    # An empty record: the jobs are found by their name, in which the run and the array are.
    (record.folder / "submitted.json").write_bytes(b"")
    slurm.run("scancel", later)
    wait_until(lambda: alive(later, jobs[0].id) == [False, False])
    ended = cluster_in(tmp_path).cancel_run()
    assert {job.id for job in ended} == {jobs[1].id, jobs[2].id}
    assert "submitted.json is damaged and counts as absent" in caplog.text
    assert alive(evil, other) == [True, True]
    wait_over(cluster, jobs)
    assert [job.state for job in jobs] == [JobState.CANCELLED] * 3


def test_a_job_that_a_frozen_controller_took_after_sbatch_gave_up_is_found_and_not_submitted_again(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = cluster_in(tmp_path, settle_s=0.0)
    cluster.poll()
    controller = slurm.daemons.pid("slurmctld")
    asked = [waits(tmp_path, "job-0", 3), waits(tmp_path, "job-1", 3)]
    # Frozen from the moment at which sbatch asks.
    replace_sbatch(tmp_path, monkeypatch, [f"kill -STOP {controller}", REAL_SBATCH])
    try:
        with pytest.raises(UnansweredError, match="sbatch did not say whether it took job-0"):
            cluster.submit(asked)
    finally:
        os.kill(controller, signal.SIGCONT)
    jobs = cluster.submit(asked)
    assert [job.name for job in jobs] == ["job-0", "job-1"]
    (record,) = read_records(tmp_path / "jobs", RUN_ID)
    assert (record.ids, read_queue(record.job_name).keys()) == (tuple(job.id for job in jobs), {job.id for job in jobs})
    assert "sbatch ended with an error, but SLURM took job-0" in caplog.text
    # They run as any others, and a later process knows them.
    assert {job.id for job in cluster_in(tmp_path).submitted()} == {job.id for job in jobs}
    wait_over(cluster, jobs)
    assert [job.state for job in jobs] == [JobState.ENDED] * 2


@pytest.mark.parametrize("when", ["before sbatch", "after sbatch"])
def test_a_cancel_during_a_submit_leaves_no_job_behind(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    wait = f"touch {tmp_path}/asking; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"
    replace_sbatch(tmp_path, monkeypatch, [wait, REAL_SBATCH] if when == "before sbatch" else [REAL_SBATCH, wait])
    cluster, raised = cluster_in(tmp_path), []

    def submit() -> None:
        try:
            cluster.submit([waits(tmp_path, "job-0")])
        except ClusterError as error:
            raised.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    wait_until((tmp_path / "asking").exists)
    canceller = cluster_in(tmp_path)
    ended = canceller.cancel_run()
    assert len(ended) == (0 if when == "before sbatch" else 1)
    assert [record.names for record in canceller.unanswered] == ([("job-0",)] if when == "before sbatch" else [])
    (tmp_path / "go").touch()
    thread.join(60)
    assert [type(error) for error in raised] == [CancelledError]
    wait_until(lambda: not slurm.run("squeue", "--noheader").strip(), 20)
    # The next submit begins anew.
    monkeypatch.undo()
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    assert len(cluster_in(tmp_path).submit([waits(tmp_path, "job-0")])) == 1


def test_a_submit_that_waits_for_another_does_not_bring_back_the_jobs_of_a_cancelled_run(
    slurm: Slurm, tmp_path: Path
) -> None:
    bucket, cluster = Bucket(str(tmp_path / "out")), cluster_in(tmp_path)
    (job,) = cluster.submit([waits(tmp_path, "job-0")])
    found = AtWork(orphans={}, left_to_others=frozenset({"c0"}), drivers=("process 1 on host",))
    canceller = threading.Timer(1.0, lambda: cluster_in(tmp_path).cancel_run())
    canceller.start()
    with driving(bucket, "submit-1"), pytest.raises(CancelledError, match="was cancelled meanwhile"):
        wait_for_others(bucket, frozenset({"c0"}), found, cluster, Screen(as_json=True))
    canceller.join()
    wait_over(cluster, [job])
    assert job.state is JobState.CANCELLED


def shard_of_one(bucket: Bucket, number: int, bad: str) -> ShardJob:
    clip = {
        "clip_id": f"c{number}", "digest": "0a", "prompt": "a circle", "seed": 1, "model": "demo", "num_frames": 8,
        "height": 32, "width": 32, "fps": 8, "num_steps": 4, "guidance_scale": 1.0, "broadcast": "none", "loops": 1,
    }  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([clip], schema=accepted_schema(CLIP_SCHEMA)), stream)
    bucket.write(layout.shard(number), stream.getvalue())
    call = DieOn(bucket=Path(bucket.url), key=f"c{number}.0a", node=bad)
    asked = request(call, layout.job_name(number), nodes=1, ranks=1)
    return ShardJob(shard=number, num_clips=1, request=asked, again=asked)


def test_a_node_that_kills_every_job_is_avoided_after_two_and_ends_no_other(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, num_shards = "127.0.0.11", 12
    (tmp_path / "out/records").mkdir(parents=True)
    bucket = Bucket(str(tmp_path / "out"))
    cluster = cluster_in(tmp_path, extra={"exclusive": True}, max_parallel_jobs=4)
    driver = Driver(
        cluster,
        bucket,
        screen=Screen(),
        submit=new_submit("slurm", str(tmp_path)),
        keys=frozenset(f"c{n}.0a" for n in range(num_shards)),
    )
    driver.start([shard_of_one(bucket, number, bad) for number in range(num_shards)])
    driver.run(open_display(), planned_s=0.0, keep_alive=lambda: None)
    assert bucket.recorded_keys() == {f"c{number}.0a" for number in range(num_shards)}
    said = capsys.readouterr().err
    assert said.count(f"{bad}: 2 jobs ended there without a clip, so later starts avoid it") == 1
    assert {job.state for job in driver.jobs} == {JobState.ENDED, JobState.LOST}
    # Of the last nodes none is avoided: jobs for two nodes at once leave two.
    cluster.submit([request(Say(folder=tmp_path), nodes=2, ranks=1)])
    nodes = frozenset(f"127.0.0.1{index}" for index in range(1, 5))
    assert len(nodes - cluster.avoid(nodes)) == 2
