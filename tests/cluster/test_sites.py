"""SLURM as sites have it, on a real SLURM: lines of setup, interpreter, containers, other jobs, a second cluster.

No container runtime is installed here. In its place stand small programs of the same name: what they are told is looked at,
and they run it, outside of any container.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from cluster.job import JobState
from cluster.slurm_launch import Container, Launch, Mount
from tests.cluster.daemons.slurm import Slurm
from tests.cluster.rank_calls import Say, SecondStart
from tests.cluster.slurm_jobs import request, seen, slurm_cluster
from tests.cluster.test_slurm_launch import EVIL
from tests.cluster.test_whole_runs import SLURM, Manifest, bucket, names  # noqa: F401  (fixture)
from tests.cluster.waiting import wait_over, wait_until
from tests.pipeline.command import Command
from tests.pipeline.conftest import cold_command, manifest, weights  # noqa: F401  (fixtures)
from tests.pipeline.conftest import cold_command as command  # noqa: F401

pytestmark = pytest.mark.cluster
APPTAINER = """#!/bin/bash
printf '%s\\n' "$FROM_SETUP" "$@" > {here}/told-$SLURM_PROCID
while true; do case $1 in exec|--nv) shift;; --bind) shift 2;; *) break;; esac; done
shift
{before}exec "$@"
"""
SRUN = """#!/bin/bash
[ "$1" = --help ] && { {real} --help; echo "  --container-image=IMAGE"; exit 0; }
kept=(); for word; do case $word in --container-*) echo "$word" >> {here}/told;; *) kept+=("$word");; esac; done
exec {real} "${kept[@]}"
"""


def program(folder: Path, name: str, text: str, **values: str) -> Path:
    """Writes a program into a folder of programs; returns that folder."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    for key, value in {"here": str(folder), **values}.items():
        text = text.replace(f"{{{key}}}", value)
    (place / name).write_text(text)
    (place / name).chmod(0o755)
    return place


def test_a_run_waits_for_a_job_begins_as_the_site_wants_it_and_another_job_waits_for_it(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    bucket: tuple[str, s3fs.S3FileSystem],  # noqa: F811
    tmp_path: Path,
) -> None:
    url, fs = bucket
    place = program(tmp_path, "apptainer", APPTAINER, before="")
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"
    earlier = slurm.run("sbatch", "--parsable", "--output=/dev/null", f"--wrap={wait}").strip()
    ran = command.run(
        "submit", manifest(2), "--output", url, "--weights", command.weights, *SLURM, "--no-baseline", "--after", earlier,
        "--setup", f"export PATH={place}:$PATH", "--setup", 'export FROM_SETUP="line on $SLURMD_NODENAME"',
        "--python", sys.executable, "--container-image", "/images/a film.sif", "--container-runtime", "apptainer",
        "--container-mount", "/scratch:/in:ro", "--comment", EVIL, "--detach", "--parsable",
    )  # fmt: skip
    ids = ran.stdout.strip()
    assert (ran.returncode, ids.isdigit()) == (0, True), ran.stderr
    wait_until(lambda: "Dependency" in slurm.run("squeue", "--noheader", f"--jobs={ids}", "--format=%r"))
    assert slurm.run("squeue", "--noheader", f"--jobs={ids}", "--format=%T|%k").strip() == f"PENDING|{EVIL}"
    code, document = command.json("status", url)
    assert (code, document["dependency"]) == (1, f"afterany:{ids}")
    later = slurm.run(
        "sbatch",
        "--parsable",
        "--output=/dev/null",
        f"--dependency={document['dependency']}",
        f"--wrap=touch {tmp_path}/after",
    ).strip()
    (tmp_path / "go").touch()
    wait_until((tmp_path / "after").exists, 90)
    # It began when the run had ended.
    assert [name.partition(".")[0] for name in names(fs, url, "records")] == ["c0", "c1"]
    assert command.json("status", url)[0] == 0
    assert int(later) > int(ids)
    said, *told = (tmp_path / "told-0").read_text().splitlines()
    assert said.startswith("line on 127.0.0.1")
    assert told[:1] == ["exec"]
    assert told[told.index("/images/a film.sif") + 1 :][:2] == [sys.executable, "-u"]
    (jobs,) = (path for path in (command.folder / "runs/.jobs").iterdir() if path.name != "code")
    (code,) = (command.folder / "runs/.jobs/code").iterdir()
    assert [told[at + 1] for at, word in enumerate(told) if word == "--bind"] == [
        f"{jobs}:{jobs}", *(f"{path}:{path}:ro" for path in (code, command.weights)),
        "/scratch:/in:ro",
    ]  # fmt: skip
    assert not list(command.folder.glob("evil"))


def test_a_job_in_a_container_without_scontrol_is_requeued_by_its_script(slurm: Slurm, tmp_path: Path) -> None:
    place = program(tmp_path, "apptainer", APPTAINER, before="export PATH=/nothing\n")
    container = Container(image="a.sif", runtime=str(place / "apptainer"))
    cluster = slurm_cluster(tmp_path, launch=Launch(container=container, python=sys.executable))
    (job,) = cluster.submit([request(SecondStart(folder=tmp_path, early=False))])
    wait_until(lambda: len(list(tmp_path.glob("start-0-*"))) == 4)
    slurm.run("scancel", "--signal=USR2", job.id)
    wait_over(cluster, [job], 60)
    assert (job.state, job.result()) == (JobState.ENDED, 1)
    assert list((tmp_path / "jobs").rglob("*_requeue")) == []


def test_pyxis_is_told_of_by_srun_and_missed_where_srun_does_not_know_it(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["submit", manifest(1), "--output", tmp_path / "out", "--weights", command.weights, *SLURM]
    code, document = command.json(*words, "--container-image", "nvcr.io#nvidia/pytorch:25.01-py3")
    assert (code, "the plugin pyxis is not installed here" in document["error"]["message"]) == (5, True)
    assert not (tmp_path / "out").exists()
    place = program(tmp_path, "srun", SRUN, real=str(shutil.which("srun")))
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    code, document = command.json(*words, "--container-image", "nvcr.io#nvidia/pytorch:25.01-py3", "--dry-run")
    assert (code, "--container-image=nvcr.io#nvidia/pytorch:25.01-py3" in document["scripts"][0]) == (0, True)
    container = Container(image="film", mounts=(Mount(source="/a b", target="/in"),))
    cluster = slurm_cluster(tmp_path, launch=Launch(container=container, python=sys.executable))
    (job,) = cluster.submit([request(Say(folder=tmp_path, value="ran"))])
    wait_over(cluster, [job])
    assert job.result() == ("ran", 0)
    assert (tmp_path / "told").read_text() == "--container-image=film\n--container-mounts=/a b:/in\n"


def test_an_interpreter_of_the_node_runs_the_job_and_a_line_of_setup_that_fails_is_told_if_the_job_is_lost(
    slurm: Slurm, tmp_path: Path
) -> None:
    place = program(tmp_path, "my-python", f'#!/bin/bash\necho "$@" > {{here}}/told\nexec {sys.executable} "$@"\n')
    setup = (f"export PATH={place}:$PATH", "export OMP_NUM_THREADS=5")
    cluster = slurm_cluster(tmp_path, launch=Launch(setup=setup, python="my-python"))
    (job,) = cluster.submit([request(Say(folder=tmp_path), nodes=1, ranks=1)])
    wait_over(cluster, [job])
    assert job.state is JobState.ENDED
    assert seen(tmp_path, "job-0")["OMP_NUM_THREADS"] == "5"
    assert "submitit.core._submit" in (tmp_path / "told").read_text()
    cluster = slurm_cluster(tmp_path / "lost", launch=Launch(setup=("module load cuda",), python="no-python"))
    (job,) = cluster.submit([request(Say(folder=tmp_path), nodes=1, ranks=1)])
    wait_over(cluster, [job])
    assert job.state is JobState.LOST
    assert "module: command not found" in str(job.error())
    assert "--setup: line" in str(job.error())


@pytest.fixture
def other_cluster(slurm_daemons: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A second cluster of the site, called `other`; the next job of both has the same id."""
    last = slurm_daemons.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=true")
    other = Slurm(slurm_daemons.root / f"other-{int(last)}")
    other.root.mkdir()
    other.start_beside(slurm_daemons, cluster="other", first_job_id=int(last) + 1)
    try:
        yield other
    finally:
        other.stop()


def test_a_run_in_another_cluster_is_followed_and_ended_there_and_nowhere_else(
    command: Command,  # noqa: F811
    manifest: Manifest,  # noqa: F811
    slurm: Slurm,
    other_cluster: Slurm,
    tmp_path: Path,
) -> None:
    stranger = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 300").strip()
    output = tmp_path / "out"
    words = ["submit", manifest(2), "--output", output, "--weights", command.weights, *SLURM, "--no-baseline"]
    there = ["--slurm", "clusters=other"]
    code, document = command.json(*words, *there, "--detach", "--slurm", "begin=now+1hour")
    assert (code, document["slurm_ids"]) == (0, [stranger])
    code, document = command.json(*words)
    assert code == 5
    assert f"1 jobs of this run are in SLURM cluster other ({stranger}), and this submit is of virt" in str(document)
    code, document = command.json("cancel", output)
    assert (code, len(document["cancelled"])) == (0, 1)
    wait_until(lambda: not other_cluster.run("squeue", "--noheader").strip(), 20)
    assert slurm.run("squeue", "--noheader", "--format=%i").split() == [stranger]
    # A driver follows its jobs there to their end.
    cluster = slurm_cluster(tmp_path, cluster="other")
    (job,) = cluster.submit([request(Say(folder=tmp_path, value="ran"), nodes=1, ranks=1)])
    wait_over(cluster, [job])
    assert (job.result(), seen(tmp_path, "job-0")["SLURMD_NODENAME"]) == (("ran", 0), "127.0.0.21")
    assert slurm_cluster(tmp_path).submitted() == []
    assert slurm.run("squeue", "--noheader", "--format=%i").split() == [stranger]
