"""Jobs on this machine."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.devices import has_gpu, threads_per_rank, torch_without_gpus, visible_gpus
from cluster.job import ClusterError, JobRequest, JobState
from cluster.local import LocalCluster
from tests.cluster.rank_calls import Fall, Say, Unwind
from tests.cluster.torch_build import write_torch
from tests.cluster.waiting import is_alive, wait_over, wait_until


def request(call: Callable[[], object], name: str = "job-00000", *, ranks: int = 2, gpus: int = 0) -> JobRequest:
    return JobRequest(name=name, call=call, num_nodes=1, ranks_per_node=ranks, gpus_per_node=gpus, timeout_min=5)


def noted_pids(folder: Path) -> list[int]:
    return [int(pid) for path in folder.glob("pid-*") for pid in path.read_text().split()]


def test_every_rank_runs_and_rank_zero_gives_the_result(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 1)
    call = Say(folder=tmp_path, value="done")
    (job,) = cluster.submit(
        [JobRequest(name="a", call=call, num_nodes=2, ranks_per_node=2, gpus_per_node=0, timeout_min=5)]
    )
    assert (job.state, job.result(), job.error()) == (JobState.RUNNING, None, None)
    wait_over(cluster, [job])
    assert (job.state, job.result(), job.error()) == (JobState.ENDED, ("done", 0), None)
    seen = [ast.literal_eval((tmp_path / f"job-{rank}").read_text()) for rank in range(4)]
    assert [(each["rank"], each["local_rank"], each["world"]) for each in seen] == [
        (rank, rank, 4) for rank in range(4)
    ]


def test_no_more_jobs_run_than_allowed_and_the_waiting_ones_have_no_id(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 2)
    jobs = cluster.submit(
        [request(Say(folder=tmp_path, tag=f"{k}", sleep_s=0.3), f"job-{k}", ranks=1) for k in range(5)]
    )
    assert [job.state for job in jobs] == [JobState.RUNNING] * 2 + [JobState.WAITING] * 3
    assert [bool(job.id) for job in jobs] == [True] * 2 + [False] * 3
    wait_over(cluster, jobs)
    spans = [ast.literal_eval((tmp_path / f"{k}-0").read_text()) for k in range(5)]
    most = max(sum(other["start"] <= span["start"] < other["end"] for other in spans) for span in spans)
    assert most <= 2
    assert [job.state for job in jobs] == [JobState.ENDED] * 5


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("killed", "rank 1 was killed by SIGKILL"),
        ("exits", "rank 1 ended with exit code 7"),
        ("raises", "the number of frames is odd"),
    ],
)
def test_a_fallen_rank_ends_its_group_within_five_seconds(tmp_path: Path, how: str, reason: str) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 1)
    (job,) = cluster.submit([request(Fall(folder=tmp_path, how=how), ranks=3)])
    wait_over(cluster, [job])
    assert time.time() - float((tmp_path / "fell").read_text()) < 5
    assert (job.state, job.result()) == (JobState.LOST, None)
    assert reason in str(job.error())
    pids = noted_pids(tmp_path)
    assert len(pids) == 6
    wait_until(lambda: not any(map(is_alive, pids)), 2)


def test_cancel_ends_the_ranks_and_their_children_and_starts_no_waiting_job(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 1)
    jobs = cluster.submit([request(Fall(folder=tmp_path, how="waits")), request(Say(folder=tmp_path), "job-00001")])
    wait_until(lambda: len(noted_pids(tmp_path)) == 4)
    start = time.monotonic()
    cluster.cancel(jobs)
    assert time.monotonic() - start < 10  # children heed no signal, and are waited for
    cluster.poll()
    assert [job.state for job in jobs] == [JobState.CANCELLED] * 2
    assert not any(map(is_alive, noted_pids(tmp_path)))
    assert not (tmp_path / "job-0").exists()


def test_cancel_leaves_an_ended_job_its_result(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 1)
    (job,) = cluster.submit([request(Say(folder=tmp_path, value=3), ranks=1)])
    wait_until(lambda: not is_alive(int(job.id)))
    cluster.cancel([job])
    assert (job.state, job.result()) == (JobState.ENDED, (3, 0))


def test_the_death_of_the_group_process_leaves_no_orphan(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 1)
    (job,) = cluster.submit([request(Fall(folder=tmp_path, how="waits"))])
    wait_until(lambda: len(noted_pids(tmp_path)) == 4)
    os.kill(int(job.id), signal.SIGKILL)
    wait_over(cluster, [job], 2)
    assert job.state is JobState.LOST
    wait_until(lambda: not any(map(is_alive, noted_pids(tmp_path))), 5)


def test_a_killed_driver_takes_its_jobs_along_and_the_next_driver_runs_anew(tmp_path: Path) -> None:
    driver = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from cluster.job import JobRequest
        from cluster.local import LocalCluster
        from tests.cluster.rank_calls import Fall
        cluster = LocalCluster(Path({str(tmp_path / "jobs")!r}), 1)
        call = Fall(folder=Path({str(tmp_path)!r}), how="waits")
        cluster.submit([JobRequest(name="a", call=call, num_nodes=1, ranks_per_node=2, gpus_per_node=0, timeout_min=5)])
        time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", driver])
    wait_until(lambda: len(noted_pids(tmp_path)) == 4)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, noted_pids(tmp_path))), 5)
    cluster = LocalCluster(tmp_path / "jobs", 1)
    (job,) = cluster.submit([request(Say(folder=tmp_path, value="again"))])
    wait_over(cluster, [job])
    assert job.result() == ("again", 0)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_ends_on_a_signal_that_its_launcher_ignores(tmp_path: Path, signum: signal.Signals) -> None:
    # submitit has SIGTERM do nothing. In SLURM the end would come later, by SIGKILL, in the middle of a clip.
    cluster = LocalCluster(tmp_path / "jobs", 1)
    (job,) = cluster.submit([request(Unwind(folder=tmp_path))])
    wait_until(lambda: len(noted_pids(tmp_path)) == 2)
    os.kill(int((tmp_path / "pid-1").read_text()), signum)
    wait_over(cluster, [job])
    assert job.state is JobState.LOST
    assert f"rank 1 was killed by {signum.name}" in str(job.error())


def test_a_killed_rank_is_told_of_also_when_another_one_ends_within_the_same_moment(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 1)
    (job,) = cluster.submit([request(Unwind(folder=tmp_path))])
    wait_until(lambda: len(noted_pids(tmp_path)) == 2)
    os.kill(int(job.id), signal.SIGSTOP)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    os.kill(int((tmp_path / "pid-0").read_text()), signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, noted_pids(tmp_path))))
    os.kill(int(job.id), signal.SIGCONT)
    wait_over(cluster, [job])
    assert "rank 0 was killed by SIGTERM, rank 1 was killed by SIGKILL; the other ranks" in str(job.error())


def test_ranks_end_in_an_orderly_way_whatever_signals_the_driver_ignores_or_blocks(tmp_path: Path) -> None:
    driver = textwrap.dedent(f"""
        import signal, time
        from pathlib import Path
        from cluster.job import JobRequest
        from cluster.local import LocalCluster
        from tests.cluster.rank_calls import Unwind
        signals = (signal.SIGINT, signal.SIGTERM)
        for signum in signals:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        folder = Path({str(tmp_path)!r})
        cluster = LocalCluster(folder / "jobs", 1)
        jobs = cluster.submit([JobRequest(
            name="a", call=Unwind(folder=folder), num_nodes=1, ranks_per_node=2, gpus_per_node=0, timeout_min=5
        )])
        while len(list(folder.glob("pid-*"))) < 2:
            time.sleep(0.02)
        cluster.cancel(jobs)
    """)
    subprocess.run([sys.executable, "-c", driver], check=True, timeout=120)
    assert sorted(path.name for path in tmp_path.glob("unwound-*")) == ["unwound-0", "unwound-1"]
    assert not any(map(is_alive, noted_pids(tmp_path)))


def test_parallel_jobs_never_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,9")
    cluster = LocalCluster(tmp_path / "jobs", 8)
    calls = [Say(folder=tmp_path, tag=f"{k}", sleep_s=0.3) for k in range(3)]
    jobs = cluster.submit([request(call, call.tag, ranks=1, gpus=2) for call in calls])
    assert [job.state for job in jobs] == [JobState.RUNNING, JobState.RUNNING, JobState.WAITING]
    wait_over(cluster, jobs)
    seen = [ast.literal_eval((tmp_path / f"{k}-0").read_text())["CUDA_VISIBLE_DEVICES"] for k in range(3)]
    assert seen[:2] == ["4,5", "6,7"]
    assert seen[2] in ("4,5", "6,7", "4,9", "6,9", "5,9", "7,9")


def test_more_gpus_than_the_machine_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ClusterError, match=r"job-00000 asks for 4 GPUs, this machine offers 2 \(0,1\)"):
        LocalCluster(tmp_path, 1).submit([request(Say(folder=tmp_path), gpus=4)])
    with pytest.raises(ClusterError, match="max_parallel_jobs=0"):
        LocalCluster(tmp_path, 0)


def test_gpus_are_those_named_else_those_in_the_device_folder(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({}, devices=tmp_path) == ("0", "1")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3,MIG-4"}, devices=tmp_path) == ("3", "MIG-4")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, devices=tmp_path) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, devices=tmp_path) == ()


def test_a_gpu_that_is_named_and_not_there_is_none(tmp_path: Path) -> None:
    named, hidden = {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": ""}
    (tmp_path / "nvidiactl").touch()
    assert not has_gpu(named, devices=tmp_path)
    (tmp_path / "dxg").touch()
    assert has_gpu(named, devices=tmp_path)
    assert not has_gpu({}, devices=tmp_path), "nobody counts those of Windows"
    (tmp_path / "nvidia0").touch()
    assert has_gpu({}, devices=tmp_path)
    assert not has_gpu(hidden, devices=tmp_path)


@pytest.mark.parametrize(
    ("built", "without"),
    [({}, "2.13.0+any"), ({"cuda": "'13.0'"}, None), ({"hip": "'7.0'"}, None), ({"cuda": "Other"}, None)],
)
def test_what_torch_is_built_for_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: dict[str, str], without: str | None
) -> None:
    write_torch(tmp_path, **built)
    monkeypatch.syspath_prepend(tmp_path)
    assert torch_without_gpus() == without


def test_what_is_read_of_the_torch_here_is_what_it_says() -> None:
    says = torch.version
    assert torch_without_gpus() == (torch.__version__ if says.cuda is None and says.hip is None else None)


def test_ranks_share_the_cores_unless_the_user_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, expected in ((None, str(threads_per_rank(1, num_jobs=1))), ("3", "3")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if setting:
            monkeypatch.setenv("OMP_NUM_THREADS", setting)
        cluster = LocalCluster(tmp_path / "jobs", 1)
        (job,) = cluster.submit([request(Say(folder=tmp_path), ranks=1)])
        wait_over(cluster, [job])
        seen = ast.literal_eval((tmp_path / "job-0").read_text())
        assert seen["OMP_NUM_THREADS"] == expected
        assert seen["OMP_WAIT_POLICY"] == os.environ.get("OMP_WAIT_POLICY", "passive")
    assert threads_per_rank(10_000, num_jobs=3) == 1


def test_no_secret_of_the_environment_lies_in_the_folder_and_nobody_else_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhushhush")
    cluster = LocalCluster(tmp_path / "jobs", 1)
    (job,) = cluster.submit([request(Say(folder=tmp_path), ranks=1)])
    wait_over(cluster, [job])
    assert cluster.folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hushhushhush" in path.read_bytes()]
    assert capfd.readouterr() == ("", "")


def test_a_job_that_the_system_does_not_let_start_waits_and_its_neighbours_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = LocalCluster(tmp_path / "jobs", 2)
    (running,) = cluster.submit([request(Say(folder=tmp_path, value=1, sleep_s=1), ranks=1)])
    # As on a full disk nothing can be written where the job's files would lie.
    hidden = tmp_path / "hidden"
    cluster.folder.rename(hidden)
    cluster.folder.write_text("no folder here")
    (waiting,) = cluster.submit([request(Say(folder=tmp_path, value=2, tag="second"), "job-2", ranks=1)])
    cluster.poll()
    assert (running.state, waiting.state) == (JobState.RUNNING, JobState.WAITING)
    assert caplog.text.count("job-2 waits, it cannot be started in") == 1
    cluster.folder.unlink()
    hidden.rename(cluster.folder)
    wait_over(cluster, [running, waiting])
    assert [job.result() for job in (running, waiting)] == [(1, 0), (2, 0)]
