"""Jobs on a real SLURM: two nodes with two ranks each, and all that can go wrong with them."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.dashboard import Dashboard
from cluster.dask_progress import DaskProgress
from cluster.job import ClusterError, JobState
from cluster.slurm import SlurmCluster
from cluster.slurm_clients import slurm_is_configured
from cluster.slurm_queue import read_nodes
from cluster.slurm_settings import SlurmSettings
from tests.cluster.daemons.slurm import Slurm
from tests.cluster.rank_calls import EndWithoutResult, Fall, Say, SecondStart, ShowClips, note
from tests.cluster.slurm_jobs import RUN_ID, request, seen, slurm_cluster
from tests.cluster.waiting import is_alive, wait_over, wait_until

pytestmark = pytest.mark.cluster


def unreadable_conf(folder: Path) -> Path:
    path = folder / "unreadable.conf"
    path.write_text("Nonsense=1\n")
    return path


def test_an_array_runs_two_ranks_on_each_of_two_nodes_and_never_more_jobs_than_allowed(
    slurm: Slurm, tmp_path: Path
) -> None:
    cluster = slurm_cluster(tmp_path, max_parallel_jobs=2)
    jobs = cluster.submit(
        [request(Say(folder=tmp_path, tag=f"{k}", value=k, sleep_s=0.5), f"job-{k}", gpus=2) for k in range(4)]
    )
    array = jobs[0].id.split("_")[0]
    assert [job.id for job in jobs] == [f"{array}_{k}" for k in range(4)]
    wait_over(cluster, jobs, 60)
    assert [(job.state, job.result(), job.error()) for job in jobs] == [
        (JobState.ENDED, (k, 0), None) for k in range(4)
    ]
    views = {(k, rank): seen(tmp_path, f"{k}-{rank}") for k in range(4) for rank in range(4)}
    assert all((view["world"], view["rank"]) == (4, rank) for (_, rank), view in views.items())
    assert all(len({views[k, rank]["SLURMD_NODENAME"] for rank in range(4)}) == 2 for k in range(4))
    assert all(str(view["CUDA_VISIBLE_DEVICES"]).count(",") == 1 for view in views.values())
    starts = [(views[k, 0]["start"], views[k, 0]["end"]) for k in range(4)]
    assert max(sum(begin <= start < end for begin, end in starts) for start, _ in starts) <= 2


def test_more_jobs_than_an_array_holds_keep_their_order_and_their_bound(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path, max_parallel_jobs=6)
    calls = [Say(folder=tmp_path, tag=f"{k}", value=k) for k in range(14)]
    jobs = cluster.submit([request(call, f"job-{call.tag}", nodes=1, ranks=1) for call in calls])
    assert len({job.id.split("_")[0] for job in jobs}) == 2
    wait_over(cluster, jobs, 90)
    assert [job.result() for job in jobs] == [(k, 0) for k in range(14)]
    first_array_end = max(seen(tmp_path, f"{k}-0")["end"] for k in range(12))
    assert all(seen(tmp_path, f"{k}-0")["start"] > first_array_end for k in (12, 13))


@pytest.mark.parametrize(("how", "reason"), [("killed", "task 3: Killed"), ("raises", "the number of frames is odd")])
def test_a_fallen_rank_ends_its_group_in_bounded_time(slurm: Slurm, tmp_path: Path, how: str, reason: str) -> None:
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(Fall(folder=tmp_path, how=how, falling_rank=3))])
    wait_until((tmp_path / "fell").exists, 30)
    ranks = [int(path.read_text().split()[0]) for path in tmp_path.glob("pid-*")]
    assert len(ranks) == 4
    wait_until(lambda: not any(map(is_alive, ranks)), 15)  # KillWait is 5 s on this cluster, 30 s by default
    wait_over(cluster, [job], 30)
    assert (job.state, job.result()) == (JobState.LOST, None)
    assert reason in str(job.error())


def test_a_completed_job_without_a_result_is_lost(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(EndWithoutResult())])
    wait_over(cluster, [job])
    assert job.state is JobState.LOST
    assert str(job.error()).startswith("SLURM's last state: COMPLETED")


def test_a_requeued_job_brings_the_result_of_its_last_start_only(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(SecondStart(folder=tmp_path, early=True))])
    stale = wait_until(lambda: list((tmp_path / "jobs").glob("*/*_0_result.pkl")))
    slurm.run("scontrol", "requeue", job.id)
    while not (tmp_path / "start-1-3").exists():
        cluster.poll()
        assert (job.state in (JobState.WAITING, JobState.RUNNING), job.result()) == (True, None)
        time.sleep(0.1)
    wait_over(cluster, [job], 60)
    assert (job.state, job.result()) == (JobState.ENDED, 1)
    assert stale[0].exists()


def test_a_job_told_of_its_end_requeues_itself(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(SecondStart(folder=tmp_path, early=False))])
    wait_until(lambda: len(list(tmp_path.glob("start-0-*"))) == 4)
    slurm.run("scancel", "--signal=USR2", job.id)
    wait_over(cluster, [job], 60)
    assert (job.state, job.result()) == (JobState.ENDED, 1)


def test_a_job_preempted_by_a_more_urgent_one_runs_again(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path, extra={"exclusive": True})
    (job,) = cluster.submit([request(SecondStart(folder=tmp_path, early=False), nodes=4, ranks=1)])
    wait_until(lambda: len(list(tmp_path.glob("start-0-*"))) == 4)
    urgent = slurm_cluster(tmp_path / "urgent", partition="urgent", extra={"exclusive": True})
    (other,) = urgent.submit([request(Say(folder=tmp_path, value="urgent"), nodes=4, ranks=1)])
    wait_over(urgent, [other], 60)
    assert other.result() == ("urgent", 0)
    wait_over(cluster, [job], 60)
    assert (job.state, job.result()) == (JobState.ENDED, 1)


def test_a_job_that_was_requeued_often_enough_is_lost_and_says_so(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path, max_requeues=0)
    (job,) = cluster.submit([request(SecondStart(folder=tmp_path, early=False))])
    wait_until(lambda: len(list(tmp_path.glob("start-0-*"))) == 4)
    slurm.run("scancel", "--signal=USR2", job.id)
    wait_over(cluster, [job], 60)
    assert job.state is JobState.LOST
    assert "started 1 times, not requeued again" in str(job.error())


def test_a_job_whose_node_is_lost_runs_again_on_another(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(SecondStart(folder=tmp_path, early=False))])
    wait_until(lambda: len(list(tmp_path.glob("start-0-*"))) == 4)
    node = slurm.run("scontrol", "show", "hostnames", (tmp_path / "start-0-0").read_text()).split()[1]
    slurm.kill_node(node)
    try:
        wait_over(cluster, [job], 120)
    finally:
        slurm.start_node(node)
    assert (job.state, job.result()) == (JobState.ENDED, 1)
    assert node not in slurm.run("scontrol", "show", "hostnames", (tmp_path / "start-1-0").read_text()).split()


def test_jobs_outlive_a_killed_controller_and_their_driver_waits_for_the_next(
    slurm: Slurm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(Say(folder=tmp_path, value="done", sleep_s=12))])
    wait_until(lambda: cluster.poll() or job.state is JobState.RUNNING)
    time.sleep(6)  # the controller saves what it knows every five seconds
    slurm.kill_controller()
    try:
        wait_until(lambda: cluster.poll() or "the queue cannot be read" in caplog.text)
        assert job.state is JobState.RUNNING
    finally:
        slurm.start_controller()
    wait_over(cluster, [job])
    assert (job.state, job.result()) == (JobState.ENDED, ("done", 0))


def test_cancelled_jobs_are_cancelled_whether_they_run_or_wait(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path, max_parallel_jobs=1)
    jobs = cluster.submit([request(Fall(folder=tmp_path, how="waits"), f"job-{k}") for k in range(3)])
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 4)
    ranks = [int(path.read_text().split()[0]) for path in tmp_path.glob("pid-*")]
    cluster.cancel(jobs)
    wait_over(cluster, jobs, 30)
    assert [job.state for job in jobs] == [JobState.CANCELLED] * 3
    assert not any(map(is_alive, ranks))
    cluster.cancel(jobs)


def test_a_later_driver_finds_and_cancels_the_jobs_of_an_earlier_one(slurm: Slurm, tmp_path: Path) -> None:
    earlier = slurm_cluster(tmp_path)
    calls = [Say(folder=tmp_path, value="done"), Fall(folder=tmp_path, how="waits")]
    names = [job.id for job in earlier.submit([request(call, f"job-{k}") for k, call in enumerate(calls)])]
    later = slurm_cluster(tmp_path)
    jobs = later.submitted()
    assert later.submitted() == []
    assert [(job.name, job.id) for job in jobs] == [("job-0", names[0]), ("job-1", names[1])]
    wait_over(later, jobs[:1])
    later.cancel(jobs)
    wait_over(later, jobs)
    assert [job.state for job in jobs] == [JobState.ENDED, JobState.CANCELLED]
    assert jobs[0].result() == ("done", 0)


def test_a_job_shows_its_clips_on_the_dashboard_and_keeps_its_log_clean(slurm: Slurm, tmp_path: Path) -> None:
    cluster = slurm_cluster(tmp_path)
    with Dashboard(tmp_path / "dask") as dashboard:
        call = ShowClips(folder=tmp_path, progress=DaskProgress(scheduler_file=str(dashboard.scheduler_file)))
        (job,) = cluster.submit([request(call)])
        page = dashboard.url.replace("/status", "/json/counts.json")
        wait_until(lambda: json.load(urllib.request.urlopen(page, timeout=10))["processing"] >= 3, 40)
        note(tmp_path, "stop")
        wait_over(cluster, [job])
    assert str(job.result()).startswith("clip-")
    logs = [path.read_text() for path in (tmp_path / "jobs").rglob("*.err")]
    assert logs == [""] * 4
    assert not [
        path for path in (tmp_path / "jobs").rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]


def test_a_queue_that_cannot_be_read_leaves_the_states_and_warns_once(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(Fall(folder=tmp_path, how="waits"))])
    wait_until(lambda: cluster.poll() or job.state is JobState.RUNNING)
    with monkeypatch.context() as broken:
        broken.setenv("SLURM_CONF", str(unreadable_conf(tmp_path)))
        for _ in range(3):
            time.sleep(0.35)
            cluster.poll()
    assert job.state is JobState.RUNNING
    assert [record.message[:24] for record in caplog.records] == ["the queue cannot be read"]
    cluster.cancel([job])
    wait_over(cluster, [job])
    assert job.state is JobState.CANCELLED


def test_a_held_job_is_told_once(slurm: Slurm, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = slurm_cluster(tmp_path, extra={"begin": "now+1hour"})
    (job,) = cluster.submit([request(Say(folder=tmp_path))])
    slurm.run("scontrol", "hold", job.id)
    for _ in range(3):
        cluster.poll()
        time.sleep(0.35)
    assert job.state is JobState.WAITING
    assert [record.getMessage() for record in caplog.records] == [
        f"job-00000 ({job.id}) will not start by itself: JobHeldAdmin"
    ]
    cluster.cancel([job])
    wait_over(cluster, [job])


def test_a_job_of_more_nodes_than_are_usable_is_told_with_the_reason_of_each(slurm: Slurm, tmp_path: Path) -> None:
    _, excluded, *drained = sorted(node.name for node in read_nodes("batch"))
    cluster = slurm_cluster(tmp_path, extra={"exclude": excluded})
    place = f"NodeName={','.join(drained)}"
    slurm.run("scontrol", "update", place, "State=drain", "Reason=two bad disks")
    try:
        (job,) = cluster.submit([request(Say(folder=tmp_path))])
        told = cluster.shortage([job], 2)
        assert told is not None
        assert told.startswith("job-00000 waits for 2 nodes, 1 is usable: ")
        assert f"{excluded} excluded by --slurm exclude" in told
        assert told.count("(two bad disks)") == len(drained) == 2
        assert cluster.shortage([job], 2) == told, "nodes are not asked for again at once"
        cluster.cancel([job])
    finally:
        slurm.run("scontrol", "update", place, "State=resume")


def test_a_job_gets_nodes_back_where_its_clips_failed_when_others_have_left_the_cluster(
    slurm: Slurm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drained, first, second, _ = sorted(node.name for node in read_nodes("batch"))
    place = f"NodeName={drained}"
    slurm.run("scontrol", "update", place, "State=drain", "Reason=duplicate job")
    try:
        cluster = slurm_cluster(tmp_path)
        asked = replace(request(Say(folder=tmp_path)), avoid_nodes=frozenset({first, second}))
        (job,) = cluster.submit([asked])
        cluster.poll()
        assert job.state is JobState.WAITING
        assert cluster.shortage([job], 2) is None
        wait_over(cluster, [job])
        assert job.state is JobState.ENDED
        assert [record.getMessage() for record in caplog.records] == [
            f"job-00000 ({job.id}): too few other nodes are left, so it may start again where its clips failed: {first}"
        ]
    finally:
        slurm.run("scontrol", "update", place, "State=resume")


def test_slurm_is_found_where_it_is_configured(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm_is_configured()
    monkeypatch.setenv("SLURM_CONF", str(unreadable_conf(tmp_path)))
    assert not slurm_is_configured()
    with pytest.raises(ClusterError, match="`sbatch --help` failed: "):
        SlurmCluster(tmp_path, SlurmSettings(), run_id=RUN_ID)


@pytest.mark.parametrize("by", ["its driver", "the next driver"])
def test_a_job_that_its_node_could_not_start_is_let_go_again(
    slurm: Slurm, tmp_path: Path, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    cluster = slurm_cluster(tmp_path, extra={"begin": "now+3"})
    (job,) = cluster.submit([request(Say(folder=tmp_path, value="ran"), nodes=1, ranks=1)])
    # A file lies where the node makes the job's folder: SLURM calls that a failed launch, and holds the job.
    in_the_way = [spool / f"job{int(job.id):05d}" for spool in (slurm.root / "spool").iterdir()]
    for path in in_the_way:
        path.touch()
    watching = cluster
    if by == "the next driver":
        watching = slurm_cluster(tmp_path)
        assert [other.id for other in watching.submitted()] == [job.id]
    try:
        wait_until(lambda: watching.poll() or "released" in caplog.text, 60)
    finally:
        for path in in_the_way:
            path.unlink(missing_ok=True)
        for spool in (slurm.root / "spool").iterdir():
            # Only the node that tried is drained.
            slurm.daemons.run("scontrol", "update", f"nodename={spool.name}", "state=resume", check=False)
    wait_over(cluster, [job], 90)
    assert (job.state, job.result()) == (JobState.ENDED, ("ran", 0))
