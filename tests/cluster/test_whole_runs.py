"""Whole runs through the real command line, on a real SLURM into a real S3 bucket."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from jobs.version import VERSION, digest_of, program
from tests.cluster.daemons.ceph import S3Server
from tests.cluster.daemons.slurm import Slurm
from tests.faults.world import POISON, poisoned_weights
from tests.pipeline.command import ROOT, Command, wait_until
from tests.pipeline.conftest import cold_command, manifest, weights  # noqa: F401  (fixtures)
from tests.pipeline.conftest import cold_command as command  # noqa: F401

pytestmark = pytest.mark.cluster

Manifest = Callable[..., Path]
SLURM = ("--cluster", "slurm", "--device", "cpu", "--job-minutes", "5")


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> tuple[str, s3fs.S3FileSystem]:
    """A bucket of its own, known to every process of the test by the environment."""
    for variable, value in s3_server.environment.items():
        monkeypatch.setenv(variable, value)
    name = f"videos-{uuid.uuid4().hex[:8]}"
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    fs.call_s3("create_bucket", Bucket=name)
    return f"s3://{name}/run", fs


def names(fs: s3fs.S3FileSystem, url: str, kind: str) -> list[str]:
    try:
        return sorted(path.rsplit("/", 1)[-1] for path in fs.ls(f"{url}/{kind}", detail=False))
    except FileNotFoundError:
        return []


def test_a_manifest_becomes_videos_in_s3_through_groups_of_two_nodes(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: tuple[str, s3fs.S3FileSystem],
) -> None:
    url, fs = bucket
    mesh = ("--nodes-per-job", "2", "--gpus-per-node", "2", "--mesh", "cfg=2,sp=2", "--max-parallel-jobs", "2")
    words = ["submit", manifest(4), "--output", url, "--weights", command.weights, *SLURM, *mesh]
    dry = command.run(*words, "--dry-run")
    assert "#SBATCH --nodes=2" in dry.stdout
    assert "#SBATCH --ntasks-per-node=2" in dry.stdout
    assert "SLURM expects to start the first job at 20" in dry.stdout
    code, document = command.json(*words)
    assert (code, document["rendered_now"]) == (0, 4)
    assert names(fs, url, "videos") == [f"c{i}.mp4" for i in range(4)]
    records = [json.loads(fs.cat_file(f"{url}/records/{name}")) for name in names(fs, url, "records")]
    assert [record["clip_id"] for record in records] == ["c0", "c1", "c2", "c3"]
    assert {(record["job"]["ranks"], record["job"]["mesh"]) for record in records} == {(4, "dp=1,cfg=2,sp=2")}
    assert all(record["counted"]["all_to_alls"] > 0 for record in records)
    assert "reports/index.parquet" in {f"reports/{name}" for name in names(fs, url, "reports")}
    assert command.json("status", url)[0] == 0
    # Jobs ran the copy that submit made, which is the driver's program.
    copy = command.folder / "runs/.jobs/code" / f"{VERSION}-{digest_of(ROOT)}"
    assert digest_of(copy) == digest_of(ROOT)
    _, document = command.json("logs", url, "--job", "job-00000")
    started = [line["line"] for line in document["lines"] if "event=job_started" in line["line"]]
    assert started
    assert all(line.endswith(f'program="{program()}" code={copy}') for line in started)
    code, document = command.json("logs", url, "--clip", "c2")
    events = [re.search(r"rank=(\d) event=(\w+)", line["line"]) for line in document["lines"]]
    assert {event.groups() for event in events if event} >= {(str(rank), "clip_started") for rank in range(4)}
    assert ("0", "clip_rendered") in {event.groups() for event in events if event}
    assert all("clip=c2" in line["line"] and "run=" in line["line"] for line in document["lines"])


def test_a_detached_run_is_cancelled_by_another_process_and_finished_by_the_next_submit(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: tuple[str, s3fs.S3FileSystem],
) -> None:
    url, fs = bucket
    # Everything is computed, so that most clips are left when the job is ended.
    clips = manifest(8, num_steps=[90] * 8)
    words = ["submit", clips, "--output", url, "--weights", command.weights, "--broadcast", "none", *SLURM]
    # This process has all imported: starting another one may take as long as the clips.
    here = replace(command, in_process=True)
    code, document = command.json(*words, "--detach")
    assert (code, list(document["jobs"])) == (0, ["job-00000"])
    wait_until(lambda: names(fs, url, "records"), "the first record")
    code, document = here.json("cancel", url)
    assert (code, len(document["cancelled"])) == (0, 1)
    slurm.wait_idle(timeout_s=60)
    assert len(names(fs, url, "records")) < 8
    assert command.json("status", url)[0] == 1
    code, document = command.json(*words)
    assert (code, document["rendered"]) == (0, 8)


def test_a_clip_that_fails_is_tried_on_another_node_before_it_is_given_up(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: tuple[str, s3fs.S3FileSystem],
    tmp_path: Path,
) -> None:
    url, fs = bucket
    bad = manifest(2, prompt=["a red circle", f"a red circle {POISON}"])
    poisoned = poisoned_weights(tmp_path / "poisoned")
    code, document = command.json("submit", bad, "--output", url, "--weights", poisoned, *SLURM)
    assert (code, document["rendered"], document["failed"], document["remaining"]) == (3, 1, 1, 0)
    failures = [json.loads(fs.cat_file(f"{url}/failures/{name}")) for name in names(fs, url, "failures")]
    assert [(failure["clip_id"], failure["attempt"]) for failure in failures] == [("c1", 1), ("c1", 2)]
    assert len({failure["job"]["node"] for failure in failures}) == 2
    assert command.json("status", url)[1]["failures"][0]["error"] == "NotFiniteError"
    # What it said is kept, and it may be tried again.
    assert command.json("retry", url)[1]["clips"] == ["c1"]
    assert len(names(fs, url, "history")) == 2
    assert command.json("status", url)[1]["remaining"] == 1


def test_what_the_bucket_and_sbatch_refuse_ends_with_5(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: tuple[str, s3fs.S3FileSystem],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, _ = bucket
    words = ["submit", manifest(1), "--weights", command.weights, *SLURM]
    code, document = command.json(*words, "--output", url, "--partition", "nowhere")
    assert (code, "invalid partition" in document["error"]["message"]) == (5, True)
    code, document = command.json(*words, "--output", url, "--partition", "nowhere", "--dry-run")
    assert (code, "invalid partition" in document["error"]["message"]) == (5, True)
    code, document = command.json(*words, "--output", url, "--slurm", "constrant=a100")
    assert (code, "did you mean 'constraint'?" in document["error"]["message"]) == (5, True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, document = command.json(*words, "--output", url)
    assert (code, "check credentials" in document["error"]["message"]) == (5, True)
