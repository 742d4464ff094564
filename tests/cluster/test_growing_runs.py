"""A run that grows, is rendered again, has a budget, tells a webhook and is exported: on a real SLURM, in a real S3."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.cluster.daemons.slurm import Slurm
from tests.cluster.test_whole_runs import SLURM, bucket, names  # noqa: F401  (fixture)
from tests.pipeline.command import Command
from tests.pipeline.conftest import cold_command, manifest, weights  # noqa: F401  (fixtures)
from tests.pipeline.conftest import cold_command as command  # noqa: F401
from tests.pipeline.test_notify import hook  # noqa: F401  (fixture)

pytestmark = pytest.mark.cluster
Manifest = Callable[..., Path]
Hook = tuple[str, list[dict[str, Any]]]
Bucket = tuple[str, s3fs.S3FileSystem]


def clip_ids(fs: s3fs.S3FileSystem, url: str, kind: str = "records") -> list[str]:
    return [name.partition(".")[0] for name in names(fs, url, kind)]


def submit_words(command: Command, url: str, *words: str | Path) -> list[str]:  # noqa: F811
    return list(map(str, ["submit", *words, "--output", url, "--weights", command.weights, *SLURM, "--no-baseline"]))


def test_a_run_grows_is_pruned_rendered_again_and_exported(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: Bucket,  # noqa: F811
    hook: Hook,  # noqa: F811
) -> None:
    (url, fs), (address, told) = bucket, hook
    code, document = command.json(*submit_words(command, url, manifest(5), "--notify", address))
    assert (code, document["rendered"]) == (0, 5)
    assert [(each["event"], each["exit_code"], each["clips"]) for each in told] == [("end", 0, {"rendered": 5})]
    before = {name: fs.info(f"{url}/records/{name}")["ETag"] for name in names(fs, url, "records")}
    # Rendered clips are rendered again by id and by a condition: c0 and c3.
    assert command.json("rerender", url, "--clip", "c0")[1]["clips"] == ["c0"]
    assert command.json("rerender", url, "--where", "clip_id = c3 and height < 64")[1]["clips"] == ["c3"]
    assert clip_ids(fs, url) == ["c1", "c2", "c4"]
    # c1 changes, c2 leaves, c5 is new; c4 is as before.
    ids = ["c0", "c1", "c3", "c4", "c5"]
    prompts = [f"a red circle moving left number {number}" for number in (0, 1, 3, 4, 5)]
    grown = manifest(5, name="grown", clip_id=ids, prompt=[prompts[0], "a blue circle", *prompts[2:]])
    ran = command.run(*submit_words(command, url, grown, "--prune"))
    assert ran.returncode == 0, ran.stderr
    assert "1 new clip, 1 clip (c1) changed, 3 as before; 1 clip (c2) left it" in ran.stderr
    assert "5 of 5 clips rendered (4 now, 1 recorded before)" in ran.stdout
    for kind in ("records", "renders", "videos"):
        assert clip_ids(fs, url, kind) == ids, kind
    after = {name: fs.info(f"{url}/records/{name}")["ETag"] for name in names(fs, url, "records")}
    assert [name.partition(".")[0] for name in before.keys() & after.keys() if before[name] == after[name]] == ["c4"]
    # What came out, from the bucket into the bucket.
    code, document = command.json("export", url, f"{url}-set", "--format", "webdataset")
    assert (code, document["clips"], document["missing"]) == (0, 5, [])
    with tarfile.open(fileobj=io.BytesIO(fs.cat_file(f"{url}-set/clips-000000.tar"))) as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
        data = {name: stream.read() for name, stream in members.items() if stream is not None}
    captions = {data[f"{number:09d}.txt"].decode(): data[f"{number:09d}.mp4"] for number in range(5)}
    assert captions.keys() == {prompts[0], "a blue circle", *prompts[2:]}
    assert captions[prompts[0]] == fs.cat_file(f"{url}/videos/c0.mp4")


def test_a_budget_ends_a_run_at_a_job_and_a_higher_one_goes_on_with_it(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: Bucket,  # noqa: F811
    hook: Hook,  # noqa: F811
) -> None:
    (url, fs), (address, told) = bucket, hook
    # A job has clips of one size. The queue is read every ten seconds: a first one that lasts is seen at work.
    clips = manifest(4, num_frames=[8, 16, 24, 32], num_steps=[100] * 4)
    one_by_one = ("--max-parallel-jobs", "1", "--price-per-gpu-hour", "3600", "--notify", address)
    ran = command.run(*submit_words(command, url, clips, *one_by_one, "--budget", "1"))
    assert ran.returncode == 6, ran.stdout + ran.stderr
    assert "no further job starts, those at work go on to their end" in ran.stderr
    assert "submit with a higher --budget to go on" in ran.stdout
    done = clip_ids(fs, url)
    assert 1 <= len(done) < 4
    assert {each["event"] for each in told} == {"budget", "end"}
    assert told[-1]["exit_code"] == 6
    assert not slurm.run("squeue", "--noheader").strip()
    assert command.json(*submit_words(command, url, clips, *one_by_one, "--budget", "1"))[0] == 6
    code, document = command.json(*submit_words(command, url, clips, "--budget", "10000"))
    assert (code, document["rendered"], document["recorded_before"]) == (0, 4, len(done))
    assert clip_ids(fs, url, "attempts") == ["c0", "c1", "c2", "c3"]


def test_jobs_that_were_queued_from_another_machine_are_seen(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    url, fs = bucket
    # Another folder is what another machine has: nothing of the run in its runs/.jobs.
    (tmp_path / "elsewhere").mkdir()
    elsewhere = replace(command, folder=tmp_path / "elsewhere")
    clips = manifest(2)
    code, document = command.json(*submit_words(command, url, clips, "--detach", "--slurm", "begin=now+1hour"))
    (job,) = document["slurm_ids"]
    code, document = elsewhere.json(*submit_words(command, url, manifest(3, name="grown")))
    message = document["error"]["message"]
    assert (code, f"somebody is at work on that run: job-00000 ({job})" in message) == (2, True), message
    # What the bucket notes of the job is gone: the queue knows it all the same.
    (noted,) = [name for name in names(fs, url, "logs") if name.startswith("jobs-")]
    note = json.loads(fs.cat_file(f"{url}/logs/{noted}"))
    fs.pipe_file(f"{url}/logs/{noted}", json.dumps(note | {"jobs": []}).encode())
    code, document = elsewhere.json(*submit_words(command, url, manifest(3, name="grown")))
    assert (code, f"at work on that run: {job}" in document["error"]["message"]) == (2, True)
    fs.pipe_file(f"{url}/logs/{noted}", json.dumps(note).encode())
    # The same manifest: the job is taken over, and nothing is rendered twice.
    submit = elsewhere.start_words(submit_words(command, url, clips))
    said, taken_over = "", f"1 job of an earlier submit taken over: job-00000 ({job})"
    assert submit.stderr is not None
    while taken_over not in said:
        said += (line := submit.stderr.readline())
        assert line, said
    slurm.run("scontrol", "update", f"jobid={job}", "starttime=now")
    _, rest = submit.communicate(timeout=240)
    assert submit.returncode == 0, said + rest
    assert clip_ids(fs, url) == clip_ids(fs, url, "attempts") == ["c0", "c1"]
