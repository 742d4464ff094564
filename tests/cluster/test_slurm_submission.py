"""What is given to a real sbatch: options, the script, and no secret."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cluster.job import ClusterError, JobRequest
from cluster.slurm_plan import expected_start, planned_script
from cluster.slurm_record import read_records
from cluster.slurm_settings import SlurmSettings
from tests.cluster.daemons.slurm import Slurm
from tests.cluster.rank_calls import Fall, Say
from tests.cluster.slurm_jobs import RUN_ID, request, slurm_cluster
from tests.cluster.waiting import wait_over, wait_until

pytestmark = pytest.mark.cluster


def test_an_option_that_sbatch_does_not_know_is_named_with_the_nearest(slurm: Slurm, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="sbatch has no option 'constrant'; did you mean 'constraint'"):
        slurm_cluster(tmp_path, extra={"constrant": "a100"})
    with pytest.raises(ClusterError, match="sbatch option 'time' cannot be set by hand: use --job-minutes"):
        slurm_cluster(tmp_path, extra={"time": "60"})


def test_what_sbatch_refuses_is_told_in_its_words_and_leaves_nothing_queued(
    slurm: Slurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = slurm_cluster(tmp_path, partition="nowhere")
    with pytest.raises(ClusterError, match=r"sbatch refused job-00000: (?s:.*)invalid partition specified: nowhere"):
        cluster.submit([request(Say(folder=tmp_path))])
    # The second array cannot be had: the first one is taken back.
    cluster = slurm_cluster(tmp_path)
    good, bad = request(Fall(folder=tmp_path, how="waits"), "job-0"), request(Say(folder=tmp_path), "job-1")
    with pytest.raises(ClusterError, match=r"sbatch refused job-1: (?s:.*)Invalid --signal specification"):
        cluster.submit([good, replace(bad, timeout_min=-7)])
    wait_until(lambda: not slurm.run("squeue", "--noheader").strip(), 30)
    assert capfd.readouterr() == ("", "")


def test_the_script_says_what_would_be_submitted_and_when_it_would_start(slurm: Slurm, tmp_path: Path) -> None:
    settings = SlurmSettings(
        partition="small", cpus_per_task=2, mem="500M", max_parallel_jobs=3, account="film"
    )  # fmt: skip

    def planned(asked: JobRequest, num_jobs: int = 1) -> str:
        return planned_script(settings, asked, folder=tmp_path / "jobs", run_id=RUN_ID, num_jobs=num_jobs)

    script = planned(request(Say(folder=tmp_path), gpus=2), 7)
    expected = ["array=0-6%3", "partition=small", "account=film", "nodes=2", "ntasks-per-node=2", "gpus-per-node=2"]
    expected += ["cpus-per-task=2", "mem=500M", "time=60", "signal=USR2@60", "requeue"]
    assert [line for line in expected if f"#SBATCH --{line}" not in script.splitlines()] == []
    assert "wckey" not in script
    (srun,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1 --wait=300 --cpus-per-task=2" in srun
    start = expected_start(settings, planned(request(Say(folder=tmp_path))))
    assert start
    assert abs(start - datetime.now().astimezone()) < timedelta(minutes=5)
    with pytest.raises(ClusterError, match="Requested node configuration is not available"):
        expected_start(settings, planned(request(Say(folder=tmp_path), ranks=99)))
    assert not (tmp_path / "jobs").exists()
    # It is the script of a real submit, but for the word in the names of folder and jobs.
    (job,) = slurm_cluster(tmp_path).submit([request(Fall(folder=tmp_path, how="waits"))])
    (record,) = read_records(tmp_path / "jobs", RUN_ID)
    sent = (record.folder / "array.sh").read_text().replace(record.job_name.rpartition("-")[2], "dry-run")
    settings = SlurmSettings()
    assert planned(request(Say(folder=tmp_path))) == sent
    slurm.run("scancel", job.id)


def test_no_secret_of_the_environment_lies_in_the_folder_and_a_surrounding_job_is_not_passed_on(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhushhush")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
    monkeypatch.setenv("SLURM_NTASKS", "9")
    cluster = slurm_cluster(tmp_path)
    (job,) = cluster.submit([request(Say(folder=tmp_path, value=1))])
    assert os.environ["SLURM_NTASKS"] == "9"
    wait_over(cluster, [job])
    assert job.result() == (1, 0)
    folders = [tmp_path / "jobs", *(tmp_path / "jobs").iterdir()]
    assert [oct(path.stat().st_mode & 0o777) for path in folders] == ["0o700"] * len(folders)
    files = [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if b"hushhushhush" in path.read_bytes()]
