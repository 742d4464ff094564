"""What a job on SLURM is taken to be, for answers of the queue that cannot be had on demand."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest

from cluster.job import ClusterError, JobState
from cluster.rank import rank_result
from cluster.slurm_clients import ask_slurm, asked_cluster
from cluster.slurm_job import SlurmJob, Submitted
from cluster.slurm_nodes import shortage
from cluster.slurm_queue import QueueRow
from cluster.slurm_settings import SlurmSettings, check_extra


def row(
    state: str, *, restarts: int = 0, reason: str = "None", job_name: str = "pab-1", submitted_at: int | None = None
) -> QueueRow:
    return QueueRow(state=state, restarts=restarts, reason=reason, job_name=job_name, submitted_at=submitted_at)


def leave_result(folder: Path, *, attempt: int) -> None:
    outcome = ("success", rank_result(attempt=attempt, value=f"start {attempt}"))
    (folder / "77_3_0_result.pkl").write_bytes(pickle.dumps(outcome))


@pytest.fixture
def job(tmp_path: Path) -> SlurmJob:
    return SlurmJob(Submitted(name="job-00003", id="77_3", num_ranks=2, job_name="pab-1", folder=tmp_path))


def after(job: SlurmJob, *answers: tuple[float, QueueRow | None]) -> JobState:
    for now_s, answer in answers:
        job.see(answer, now_s=now_s, grace_s=15)
    return job.state


def test_a_result_counts_only_when_the_job_has_left_the_queue(job: SlurmJob, tmp_path: Path) -> None:
    leave_result(tmp_path, attempt=0)
    assert after(job, (0, row("RUNNING"))) is JobState.RUNNING
    assert after(job, (1, row("COMPLETING"))) is JobState.RUNNING
    assert job.result() is None
    assert after(job, (2, row("COMPLETED"))) is JobState.ENDED
    assert job.result() == "start 0"


def test_the_result_of_an_earlier_start_is_not_the_jobs(job: SlurmJob, tmp_path: Path) -> None:
    leave_result(tmp_path, attempt=0)
    assert (
        after(job, (0, row("RUNNING", restarts=1)), (1, row("FAILED", restarts=1)), (17, None), (18, None))
        is JobState.LOST
    )
    leave_result(tmp_path, attempt=1)
    assert after(job, (19, row("COMPLETED", restarts=1))) is JobState.ENDED


def test_a_failed_node_is_not_the_end_until_slurm_has_had_its_time(job: SlurmJob) -> None:
    assert after(job, (0, row("RUNNING")), (5, row("NODE_FAIL"))) is JobState.WAITING
    assert after(job, (60, row("NODE_FAIL"))) is JobState.WAITING
    assert after(job, (61, row("PENDING", restarts=1)), (70, row("RUNNING", restarts=1))) is JobState.RUNNING
    assert after(job, (80, row("NODE_FAIL", restarts=1)), (141, row("NODE_FAIL", restarts=1))) is JobState.LOST
    assert after(job, (150, row("RUNNING", restarts=2))) is JobState.RUNNING


def test_a_result_may_become_visible_late(job: SlurmJob, tmp_path: Path) -> None:
    assert after(job, (0, row("RUNNING")), (1, row("COMPLETED")), (14, row("COMPLETED"))) is JobState.RUNNING
    leave_result(tmp_path, attempt=0)
    assert after(job, (15, row("COMPLETED"))) is JobState.ENDED


def test_one_answer_without_the_job_is_not_believed(job: SlurmJob) -> None:
    assert after(job, (0, row("RUNNING")), (1, None)) is JobState.RUNNING
    assert after(job, (2, row("RUNNING")), (3, None), (4, None), (18, None)) is JobState.RUNNING
    assert after(job, (20, None)) is JobState.LOST
    assert str(job.error()).startswith("SLURM's last state: RUNNING")


def test_a_strangers_job_under_the_same_id_is_not_ours(job: SlurmJob) -> None:
    strange = row("RUNNING", job_name="training")
    assert after(job, (0, row("PENDING")), (1, strange), (2, strange), (30, strange)) is JobState.LOST


def test_a_cancelled_job_that_had_ended_keeps_its_result(job: SlurmJob, tmp_path: Path) -> None:
    assert after(job, (0, row("CANCELLED"))) is JobState.CANCELLED
    leave_result(tmp_path, attempt=0)
    ended = SlurmJob(job.submitted)
    assert after(ended, (0, row("CANCELLED"))) is JobState.ENDED


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps(("success", 5))[:-3]])
def test_a_result_that_is_empty_or_damaged_counts_as_none_and_is_named(
    job: SlurmJob, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "77_3_0_result.pkl").write_bytes(data)
    assert after(job, (0, row("COMPLETED")), (16, row("COMPLETED"))) is JobState.LOST
    assert re.search(r"its result .*77_3_0_result\.pkl cannot be read", str(job.error()))
    assert job.result() is None


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        (row("RUNNING", submitted_at=1000), True),
        (row("RUNNING", submitted_at=1001), False),
        (row("RUNNING", submitted_at=999), False),
        (row("RUNNING", submitted_at=2000, restarts=1), True),
        (row("PENDING", submitted_at=2000, reason="launch failed requeued held"), True),
        (row("RUNNING", submitted_at=999, restarts=1), False),
        (row("RUNNING", submitted_at=1000, job_name="pab-2"), False),
    ],
)
def test_a_job_is_known_by_its_name_and_the_time_at_which_the_controller_took_it(answer: QueueRow, same: bool) -> None:
    submitted = Submitted(
        name="job-0", id="7", num_ranks=1, job_name="pab-1", folder=Path("jobs"), submitted_at=1000
    )  # fmt: skip
    assert submitted.is_same(answer) is same


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [
        ("JobHeldUser", True),
        ("launch failed requeued held", True),
        ("Resources", False),
        ("DependencyNeverSatisfied", True),
    ],
)
def test_a_job_that_waits_for_a_person_is_told_from_one_that_waits_for_a_place(reason: str, stuck: bool) -> None:
    assert row("PENDING", reason=reason).is_stuck is stuck


def test_a_job_held_after_a_failed_launch_is_told_from_one_that_a_person_holds() -> None:
    assert row("PENDING", reason="launch failed requeued held").is_held_by_failed_launch
    assert not row("PENDING", reason="JobHeldUser").is_held_by_failed_launch
    assert not row("RUNNING", reason="launch failed requeued held").is_held_by_failed_launch


def test_settings_are_checked() -> None:
    with pytest.raises(ClusterError, match="max_parallel_jobs=0: must be at least 1"):
        SlurmSettings(max_parallel_jobs=0)
    with pytest.raises(ClusterError, match=r"comment='a\\n#SBATCH --uid=0': line breaks"):
        SlurmSettings(extra={"comment": "a\n#SBATCH --uid=0"})
    with pytest.raises(ClusterError, match="no option 'zzz'; see `sbatch --help`"):
        check_extra({"zzz": "1"}, {"constraint", "gres"})
    with pytest.raises(ClusterError, match="'signal' cannot be set by hand: it asks the job to requeue itself"):
        check_extra({"signal": "B:USR1"}, {"signal"})


@pytest.mark.parametrize("name", ["clusters", "cluster-constraint", "uid", "gid", "quiet", "help", "version"])
def test_options_that_the_other_clients_must_know_or_that_hide_the_answer_are_refused_in_words(name: str) -> None:
    with pytest.raises(ClusterError, match=f"sbatch option '{name}' cannot be set by hand: "):
        check_extra({name: "x"}, {name})


@pytest.mark.parametrize("names", ["a,b", "all"])
def test_jobs_are_followed_in_one_cluster_only(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", names)
    with pytest.raises(ClusterError, match=r"SLURM_CLUSTERS='.*': jobs are followed in one cluster only"):
        asked_cluster()
    with pytest.raises(ClusterError, match=r"--slurm clusters='.*': jobs are followed in one cluster only"):
        asked_cluster(names)


def test_a_users_habits_do_not_change_what_slurms_clients_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "nowhere")
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "1")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SLURM_CLUSTERS", "one")
    found = ask_slurm("env", variables={"ASKED": "1"}).splitlines()
    assert {"SLURM_CLUSTERS=one", "ASKED=1"} <= set(found)
    assert not [line for line in found if line.startswith(("SQUEUE_", "SCANCEL_", "SLURM_TIME_FORMAT"))]
    assert "SLURM_CLUSTERS=two" in ask_slurm("env", cluster="two").splitlines()
    assert "SLURM_CLUSTERS" not in ask_slurm("env", cluster="")


SINFO = """#!/bin/sh
for word; do case $word in --Format=NodeList:*) end=${word#--Format=NodeList:}; end=${end%%,*};; esac; done
here=${0%/*}; echo "$@" >> "$here/asked"
while IFS=: read -r name state reason; do
    printf '%s%s' "$name" "$end" 'batch*' "$end" "$state" "$end" "$reason" "$end"
done < "$here/nodes"
"""


def cluster_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *nodes: str) -> Path:
    """Puts a sinfo in front of the PATH that tells of these nodes (name:state:reason); returns its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "sinfo").write_text(SINFO)
    (folder / "sinfo").chmod(0o755)
    (folder / "nodes").write_text("".join(f"{node}\n" for node in nodes))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_job_that_waits_for_nodes_that_cannot_be_had_is_told_with_each_node_and_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cluster_of(
        tmp_path / "bin", monkeypatch,
        "n1:allocated:none", "n2:idle:none", "n3:drained:bad disk", "n4:down*:Not responding", "n5:mixed:none",
    )  # fmt: skip
    settings = SlurmSettings(partition="batch", extra={"exclude": "n5"})
    jobs = [waiting("job-00003"), waiting("job-00004"), waiting("job-00005", avoid_nodes=frozenset({"n1"}))]
    # n1 runs another job, which ends.
    assert shortage(settings, frozenset(), jobs[:2], needed=2) is None
    assert shortage(settings, frozenset({"n2"}), jobs[:2], needed=2) == (
        "job-00003 and 1 more wait for 2 nodes, 1 is usable: "
        "n2 excluded by this run, because jobs died there without a clip; n3 drained (bad disk); "
        "n4 down* (Not responding); n5 excluded by --slurm exclude"
    )
    alone = shortage(settings, frozenset(), jobs, needed=2)
    assert alone is not None
    assert alone.startswith(
        "job-00005 waits for 2 nodes, 1 is usable: n1 excluded, because clips of the job failed there"
    )
    assert "--partition=batch" in (folder / "asked").read_text()
    many = [f"m{index:02}:drained:none" for index in range(20)]
    cluster_of(folder, monkeypatch, *many)
    assert str(shortage(settings, frozenset(), jobs[:1], needed=1)).endswith("m07 drained; 12 more")
    cluster_of(folder, monkeypatch, "n1:idle:none")
    assert str(shortage(settings, frozenset(), jobs[:1], needed=2)).endswith("1 is usable: the partition has no more")


def waiting(name: str, *, avoid_nodes: frozenset[str] = frozenset()) -> SlurmJob:
    submitted = Submitted(name=name, id="77_3", num_ranks=2, job_name="pab-1", folder=Path())
    return SlurmJob(submitted, avoid_nodes=avoid_nodes)
