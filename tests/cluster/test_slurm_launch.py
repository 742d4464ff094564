"""How python begins in a job's script: what the user says stays what it is, wherever it stands in the script."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.job import ClusterError, JobRequest
from cluster.slurm_launch import Container, Launch, Mount, python_problem, setup_problem
from cluster.slurm_plan import planned_script
from cluster.slurm_settings import SlurmSettings
from tests.cluster.rank_calls import Say

RUN_ID = "0123456789ab"
EVIL = 'it\'s "a" $(touch evil) `touch evil` ; touch evil # \\'
FOR_SBATCH = '"it\'s \\"a\\" $(touch evil) `touch evil` ; touch evil # \\\\"'
"""The same in the words of sbatch, which takes a backslash for an escape between any quotes."""


def script_of(folder: Path, *, gpus: int = 0, is_restart: bool = False, **settings: object) -> list[str]:
    asked = JobRequest(
        name="job-0", call=Say(folder=folder), num_nodes=1, ranks_per_node=1, gpus_per_node=gpus, timeout_min=60,
        is_restart=is_restart,
    )  # fmt: skip
    chosen = SlurmSettings(**settings)
    return planned_script(chosen, asked, folder=folder, run_id=RUN_ID).splitlines()


def srun_words(script: list[str]) -> list[str]:
    (line,) = [line for line in script if line.startswith("srun ")]
    return shlex.split(line)


def header(script: list[str]) -> list[str]:
    """The options that sbatch reads: up to the first line that is neither empty nor a comment."""
    first_command = next(number for number, line in enumerate(script) if line and not line.startswith("#"))
    return [line for line in script[:first_command] if line.startswith("#SBATCH")]


def test_text_of_the_user_is_one_word_of_one_option(tmp_path: Path) -> None:
    script = script_of(tmp_path, comment=EVIL, partition=EVIL, extra={"constraint": EVIL})
    for name in ("comment", "partition", "constraint"):
        assert [f"#SBATCH --{name}={FOR_SBATCH}"] == [line for line in script if f"--{name}=" in line]
    for name in ("comment", "partition", "qos", "account", "mem"):
        with pytest.raises(ClusterError, match=f"sbatch option {name}=.* line breaks"):
            SlurmSettings(**{name: "a\n#SBATCH --uid=0"})
    with pytest.raises(ClusterError, match="it must not hold line breaks"):
        script_of(tmp_path / "a\n#SBATCH --uid=0")


def test_lines_of_setup_run_before_python_and_are_no_options(tmp_path: Path) -> None:
    setup = ("#SBATCH --partition=nowhere", f"echo {shlex.quote(EVIL)}", "false", "echo last \\")
    script = script_of(tmp_path, launch=Launch(setup=setup), cpus_per_task=3)
    assert [line for line in header(script) if "nowhere" in line] == []
    assert [line for line in script if line in setup] == list(setup)
    # All up to srun, as bash runs it: a failing line is told with its number, and the rest is run.
    end = next(number for number, line in enumerate(script) if line.startswith("srun "))
    ran = subprocess.run(
        ["bash", "-c", "\n".join([*script[: end - 1], 'echo "$OMP_NUM_THREADS $PYTHONPATH"'])],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = ran.stdout.splitlines()
    assert said[:2] == [EVIL, "last"]
    assert said[2].startswith("3 /")
    number = script.index("false") + 1
    assert f"--setup: line {number} of the script of this job ended with status 1" in ran.stderr
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("setup", "wrong"),
    [
        (("module load cuda", "if true; then", "export A=1", "fi"), None),
        (("if true; then",), "unexpected end of file"),
        (("echo 'open",), "unexpected EOF"),
        (("cat <<END", "text"), "here-document"),
        ((), None),
    ],
)
def test_setup_that_is_no_bash_is_told_before_it_is_sent(setup: tuple[str, ...], wrong: str | None) -> None:
    told = setup_problem(setup)
    assert (told is None) == (wrong is None)
    assert wrong is None or wrong in str(told)


def test_pyxis_gets_its_options_through_srun(tmp_path: Path) -> None:
    mounts = (Mount(source="/data", target="/in", read_only=True), Mount(source="/a b", target="/a b"))
    container = Container(image="nvcr.io#nvidia/pytorch:25.01-py3", mounts=mounts)
    words = srun_words(script_of(tmp_path, gpus=2, launch=Launch(container=container)))
    assert "--container-image=nvcr.io#nvidia/pytorch:25.01-py3" in words
    assert "--container-mounts=/data:/in:ro,/a b:/a b" in words
    at = words.index("-u")
    assert words[at - 1 : at + 3] == ["python3", "-u", "-m", "submitit.core._submit"]


def test_a_program_of_the_nodes_stands_before_python(tmp_path: Path) -> None:
    mounts = (Mount(source="/data", target="/in", read_only=True),)
    container = Container(image="/images/my video.sif", runtime="apptainer", mounts=mounts)
    launch = Launch(container=container, python="/opt/venv/bin/python")
    prefix = ["--bind", "/data:/in:ro", "/images/my video.sif", "/opt/venv/bin/python", "-u"]
    assert _after(srun_words(script_of(tmp_path, launch=launch)), "apptainer")[:6] == ["exec", *prefix]
    assert _after(srun_words(script_of(tmp_path, gpus=1, launch=launch)), "apptainer")[:7] == ["exec", "--nv", *prefix]
    by_gres = script_of(tmp_path, launch=launch, extra={"gres": "gpu:1"})
    assert _after(srun_words(by_gres), "apptainer")[:2] == ["exec", "--nv"]


def _after(words: list[str], word: str) -> list[str]:
    return words[words.index(word) + 1 :]


@pytest.mark.parametrize("path", ["data", "/a:b", "/a,b", "/a\nb", ""])
def test_what_cannot_be_mounted_is_refused(path: str) -> None:
    with pytest.raises(ClusterError, match="cannot be mounted into a container"):
        Mount(source=path, target="/in")


@pytest.mark.parametrize("image", ["", "--nv", "a\nb"])
def test_what_is_no_image_is_refused(image: str) -> None:
    with pytest.raises(ClusterError, match="needs the name or path of an image"):
        Container(image=image)


def test_an_interpreter_is_another_one_for_the_job_only_if_it_is_said(tmp_path: Path) -> None:
    for launch, python in ((Launch(), sys.executable), (Launch(python="/o p/python"), "/o p/python")):
        words = srun_words(script_of(tmp_path, launch=launch))
        assert words[words.index("-u") - 1] == python
    for wrong in ("-c", "", "a\nb"):
        with pytest.raises(ClusterError, match="needs the path or the name of an interpreter"):
            Launch(python=wrong)


def test_an_interpreter_that_cannot_run_jobs_is_told(tmp_path: Path) -> None:
    assert python_problem([sys.executable], ["json"]) is None
    assert python_problem([sys.executable], ["json"], setup=["export A=1"]) is None
    assert "has no no_such_package" in str(python_problem([sys.executable], ["json", "no_such_package"]))
    assert "cannot be run" in str(python_problem([str(tmp_path / "python")], []))
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho '[[3, 9], []]'\n")
    old.chmod(0o755)
    assert str(python_problem([str(old)], [])).endswith("old is 3.9, needs 3.11 or newer")
    old.write_text("#!/bin/sh\necho 'no such module' >&2; exit 1\n")
    assert "does not answer as Python does: no such module" in str(python_problem([str(old)], []))


def test_jobs_wait_for_what_the_user_says_until_they_have_begun(tmp_path: Path) -> None:
    def dependency(**settings: object) -> list[str]:
        return [line for line in script_of(tmp_path, **settings) if "--dependency" in line]

    assert dependency() == []
    assert dependency(after=("12", "13_4")) == ["#SBATCH --dependency=afterok:12:13_4"]
    both = {"after": ("12",), "extra": {"dependency": "afterany:9"}}
    assert dependency(**both) == ["#SBATCH --dependency=afterany:9,afterok:12"]
    assert dependency(**both, is_restart=True) == []
    chosen = SlurmSettings(extra={"dependency": "afterok:1?afterok:2"})
    assert chosen.dependency(is_restart=False, after_array=None) == "afterok:1?afterok:2"
    with pytest.raises(ClusterError, match=r"with '\?' it cannot be joined"):
        chosen.dependency(is_restart=False, after_array="77")
    with pytest.raises(ClusterError, match="needs the id of a job"):
        SlurmSettings(after=("12\n",))
