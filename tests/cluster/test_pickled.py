"""What lies pickled in a job's folder: which names it holds, and what becomes of a job that another version queued."""

from __future__ import annotations

import os
import pickle
import pickletools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from cluster.dask_progress import DaskProgress
from cluster.job import ClusterError, JobRequest, JobState
from cluster.local import LocalCluster
from cluster.pickled import FORMAT, FormatError, read_outcome, seal, unseal
from cluster.rank import RankCall
from cluster.slurm_job import SlurmJob, Submitted
from cluster.slurm_queue import QueueRow
from jobs.outcome import Failed, Rendered, ShardOutcome, Skipped
from jobs.progress import NoProgress
from jobs.render import RenderShard
from jobs.render_settings import RenderSettings
from jobs.settings import JobSettings, Mesh
from pab.weights.lora import Lora
from pipeline.run.machines import job_request
from pipeline.run.settings import MachineSettings
from tests.cluster.waiting import wait_over

FORMAT_1 = Path(__file__).parents[1] / "data" / "format_1"
"""A job and a result as the code before the format number pickled them."""
OUTER = {"submitit.core.utils.DelayedSubmission", "cluster.rank.RankCall"}
"""What every version must be able to import: a job of any format starts with these."""
INNER = {
    "jobs.render.RenderShard",
    "jobs.settings.JobSettings",
    "jobs.settings.Mesh",
    "jobs.render_settings.RenderSettings",
    "cluster.dask_progress.DaskProgress",
    "jobs.progress.NoProgress",
    "pab.families.find_family",
}
FIELDS = {
    RenderShard: "settings shard progress again find_family",
    JobSettings: "output run_id mesh render broadcast_rules pinned_weights deadline_s hang_s upload_timeout_s "
    "compile_backend exclusive pinned_loras driver weights_digests",
    Lora: "place strength component digest",
    RenderSettings: "model weights loras broadcast precision device compile attention keep linears decode sampling "
    "flow_shift guidance_scale_2 negative_prompt crf compile_cache baseline min_quality quality_samples plain_videos "
    "c2pa c2pa_cert c2pa_key c2pa_prompt batch guidance_rows record_loops max_attempts reference_roots "
    "allow_private_references family_weights kept weighed",
    Mesh: "dp cfg sp",
    DaskProgress: "scheduler_file kept_tasks",
    ShardOutcome: "shard attempt clips left",
    Rendered: "clip_id digest elapsed_s",
    Failed: "clip_id digest stage error message",
    Skipped: "clip_id digest reason",
}
CHANGED = "what is pickled into jobs has changed: raise FORMAT in cluster/pickled.py, then write the change down here"


def names_in(data: bytes) -> Iterator[str]:
    """Yields `module.name` of everything that loading the pickle would import."""
    strings: list[str] = []
    kept: list[str] = []
    for operation, argument, _ in pickletools.genops(data):
        assert operation.name not in {"GLOBAL", "INST", "EXT1"}, "protocol 4 and later name things by STACK_GLOBAL"
        if operation.name == "MEMOIZE":
            kept.append(strings[-1] if strings else "")
        elif operation.name in {"BINGET", "LONG_BINGET"}:
            strings.append(kept[argument])
        elif isinstance(argument, str):
            strings.append(argument)
        elif operation.name == "STACK_GLOBAL":
            yield f"{strings[-2]}.{strings[-1]}"
            strings.append("")


def real_job(progress: DaskProgress | None) -> JobRequest:
    render = RenderSettings(precision="float32", device="cpu", family_weights={"wan": "some/model"})
    settings = JobSettings(output="/run", run_id="1", mesh=Mesh(), render=render)
    machines = MachineSettings(cluster="slurm", max_parallel_jobs=1)
    return job_request(settings, machines, shard=7, planned_s=60, progress=progress)


def test_a_queued_job_names_only_what_stays_in_its_place(tmp_path: Path) -> None:
    inner: set[str] = set()
    for progress in (None, DaskProgress(scheduler_file="/jobs/scheduler.json")):
        DelayedSubmission(RankCall(call=real_job(progress).call, max_requeues=3)).dump(tmp_path / "job.pkl")
        data = (tmp_path / "job.pkl").read_bytes()
        assert set(names_in(data)) == OUTER
        sealed = pickle.loads(data).function.__getstate__()
        assert {key: type(value) for key, value in sealed.items()} == {
            "format": int,
            "value": bytes,
            "max_requeues": int,
        }
        inner |= set(names_in(sealed["value"]))
    assert inner == INNER, CHANGED


def test_the_fields_of_what_is_pickled_are_those_of_the_format() -> None:
    assert FORMAT == 9
    assert {held: " ".join(field.name for field in fields(held)) for held in FIELDS} == FIELDS, CHANGED
    assert NoProgress().__getstate__() is None


def test_a_job_queued_before_formats_were_told_is_refused_in_words(tmp_path: Path) -> None:
    shutil.copy(FORMAT_1 / "job.pkl", tmp_path / "77_submitted.pkl")
    (tmp_path / "77_0_result.pkl").write_bytes(b"of an earlier start")
    told = {"JOB_ID": "77", "NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "GLOBALID": "0", "LOCALID": "0"}
    environment = os.environ | {f"SUBMITIT_LOCAL_{name}": value for name, value in told.items()}
    with (tmp_path / "77_0_log.err").open("wb") as log:
        ended = subprocess.run(
            [sys.executable, "-m", "submitit.core._submit", str(tmp_path)],
            env=environment | {"SUBMITIT_EXECUTOR": "local"}, stdout=subprocess.DEVNULL, stderr=log, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    job = SlurmJob(Submitted(name="job-00007", id="77", num_ranks=1, job_name="pab-1", folder=tmp_path))
    for now_s in (0, 20):
        job.see(QueueRow(state="FAILED", restarts=0, reason="None", job_name="pab-1"), now_s=now_s, grace_s=15)
    assert job.state is JobState.LOST
    assert job.error() == (
        "SLURM's last state: FAILED\njob 77 was queued by another version of the program (pickled in format 1, this version "
        "reads 9); end the driver that queued it and submit the run again: what is recorded stays"
    )


def test_a_job_whose_classes_are_not_there_any_more_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moved_since.py").write_text("class Job:\n    def __call__(self):\n        return 1\n")
    with monkeypatch.context() as queued:
        queued.syspath_prepend(tmp_path)
        import moved_since

        cluster = LocalCluster(tmp_path / "jobs", 1)
        call = moved_since.Job()
        (job,) = cluster.submit(
            [JobRequest(name="job-00000", call=call, num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=5)]
        )
    wait_over(cluster, [job])
    assert (job.state, job.result()) == (JobState.LOST, None)
    error = str(job.error())
    assert "it does not load here: No module named 'moved_since'" in error
    assert "submit the run again" in error
    assert "Traceback" not in error


def test_the_result_of_a_job_of_another_version_counts_and_its_value_is_refused_in_words(tmp_path: Path) -> None:
    shutil.copy(FORMAT_1 / "result.pkl", tmp_path / "77_0_result.pkl")
    job = SlurmJob(Submitted(name="job-00007", id="77", num_ranks=1, job_name="pab-1", folder=tmp_path))
    job.see(QueueRow(state="COMPLETED", restarts=1, reason="None", job_name="pab-1"), now_s=0, grace_s=15)
    assert job.state is JobState.ENDED
    with pytest.raises(
        ClusterError, match=r"job 77: another version .* [(]pickled in format 1, this version reads 9[)]"
    ):
        job.result()


def test_what_another_format_sealed_is_not_loaded() -> None:
    assert unseal(seal((1, "a"))) == (1, "a")
    with pytest.raises(FormatError, match="pickled in format 10, this version reads 9"):
        unseal(seal((1, "a")) | {"format": 10})


def test_an_outcome_is_read_without_importing_what_it_names() -> None:
    assert read_outcome(pickle.dumps(("error", "Traceback"))) == ("error", "Traceback")
    assert read_outcome((FORMAT_1 / "result.pkl").read_bytes()) == ("success", {"format": 1, "attempt": 1})
    whole = pickle.dumps(("success", seal(1) | {"attempt": 0}))
    for end in range(len(whole)):
        with pytest.raises(pickle.UnpicklingError):
            read_outcome(whole[:end])
