"""SLURM as sites have it, on a machine without SLURM: what a dry run prints, and what is refused before anything is sent."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.version import VERSION, code_digest
from pipeline.commands.doctor_site import site_checks
from pipeline.parser import build_parser
from pipeline.run.build import build_settings
from pipeline.run.options import choose
from tests.pipeline.command import Command

Manifest = Callable[..., Path]
SLURM = ("--cluster", "slurm", "--device", "cpu", "--no-dask")


@pytest.fixture
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH on which no client of SLURM is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(folder))


def test_a_dry_run_prints_the_scripts_on_a_machine_without_slurm(
    command: Command, manifest: Manifest, tmp_path: Path, without_slurm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhushhush")
    monkeypatch.setenv("PAB_PIPELINE_NOTIFY", "https://hooks.example.org/hushhushhush")
    roots = tmp_path / "roots"
    roots.mkdir()
    words = [
        "submit", manifest(3), "--output", tmp_path / "out", "--weights", command.weights, *SLURM, "--dry-run",
        "--setup", "source /etc/profile", "--setup", "module load cuda", "--comment", "a film", "--after", "12,13",
        "--container-image", "/images/video.sif", "--container-runtime", "apptainer", "--reference-root", roots,
        "--container-mount", "/scratch", "--container-mount", "/models:/in:ro", "--slurm", "clusters=big", "gres=gpu:1",
    ]  # fmt: skip
    code, document = command.json(*words)
    assert code == 0
    (script,) = document["scripts"]
    jobs = f"{command.folder}/runs/.jobs/NEW_RUN"
    assert f"\n#SBATCH --output={jobs}/slurm-dry-run/%j_0_log.out\n" in script
    assert "\n#SBATCH --dependency=afterok:12:13\n" in script
    assert '\n#SBATCH --comment="a film"\n' in script
    assert "\nsource /etc/profile\nmodule load cuda\n" in script
    # What jobs need is seen in the container: their folder, the output, the weights, the program. No manifest's folder.
    mounts = script.split(" --bind ")[1:]
    mounts[-1] = mounts[-1].split()[0]
    root = f"{command.folder}/runs/.jobs/code/{VERSION}-{code_digest()}"
    assert mounts == [
        f"{jobs}:{jobs}", f"{tmp_path}/out:{tmp_path}/out", f"{root}:{root}:ro",
        f"{command.weights}:{command.weights}:ro", "/scratch:/scratch", "/models:/in:ro",
    ]  # fmt: skip
    assert "unset SLURM_CLUSTERS" in script
    assert (document["slurm_cluster"], document["expected_start"]) == ("big", None)
    assert "SLURM is not on this machine" in document["slurm_note"]
    shown = command.run(*words)
    assert script in shown.stdout
    assert "hushhushhush" not in json.dumps(document) + shown.stdout + shown.stderr
    assert not (tmp_path / "out").exists()
    assert not (command.folder / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--setup", "if true; then"), "--setup: bash does not understand the lines"),
        (("--python", "./nothing-but-text"), "--python: "),
        (("--container-mount", "/data"), "no --container-image says which"),
        (("--container-runtime", "apptainer"), "no --container-image says which"),
        (("--container-image", "a.sif"), "is no image of pyxis; say --container-runtime apptainer"),
        (("--container-image", "a", "--container-mount", "data"), "needs an absolute path"),
        (("--container-image", "a", "--container-mount", "/data:/in:rw"), "'rw' after the paths is not known"),
        (("--after", "yesterday"), "--after='yesterday', needs ids of SLURM jobs, such as 1234"),
        (("--slurm", "clusters"), "--slurm clusters needs a value"),
        (("--parsable",), "--parsable is for --detach"),
    ],
)
def test_what_cannot_be_is_refused_with_the_flag(
    command: Command, manifest: Manifest, tmp_path: Path, without_slurm: None, flags: tuple[str, ...], told: str
) -> None:
    text = command.folder / "nothing-but-text"
    text.write_text("#!/bin/bash\nexit 1\n")
    text.chmod(0o755)
    words = ["submit", manifest(1), "--output", tmp_path / "out", "--weights", command.weights, *SLURM, "--dry-run"]
    code, document = command.json(*words, *flags)
    assert code == 2, document
    assert re.search(told, document["error"]["message"])


@pytest.mark.parametrize(
    "flags",
    [("--setup", "true"), ("--python", "python3"), ("--container-image", "a"), ("--comment", "a"), ("--after", "1")],
)
def test_settings_of_slurm_are_refused_for_jobs_on_this_machine(
    command: Command, manifest: Manifest, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    code, document = command.submit(manifest(1), tmp_path / "out", *flags)
    assert (code, f"{flags[0]} is SLURM's" in document["error"]["message"]) == (2, True)


def test_lines_of_setup_may_hold_a_secret_and_are_not_kept_in_the_run() -> None:
    words = ["submit", "m.parquet", *SLURM, "--setup", "export TOKEN=hush", "--comment", "film"]
    parsed = vars(build_parser().parse_args(words))
    settings = build_settings("m.parquet", choose(parsed, {"python": "python3"}))
    assert (settings.machines.setup, settings.machines.python) == (("export TOKEN=hush",), "python3")
    assert "hush" not in json.dumps(settings.to_dict())
    assert settings.to_dict()["machines"]["comment"] == "film"


def test_doctor_says_what_this_machine_makes_of_a_jobs_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks(*flags: str) -> dict[str, tuple[str, str]]:
        chosen = choose(vars(build_parser().parse_args(["doctor", *flags])), {})
        return {check.name: (check.verdict, check.found) for check in site_checks(chosen)}

    assert checks() == {}
    found = checks("--setup", "module_of_nobody load cuda", "--python", sys.executable)
    assert found["setup"][0] == "note"
    assert "module_of_nobody" in found["setup"][1]
    assert found["job python"][0] == "ok"
    assert checks("--setup", "if")["setup"][0] == "missing"
    assert checks("--python", str(tmp_path / "gone"))["job python"][0] == "note"
    image = ("--container-image", str(tmp_path / "a.sif"), "--container-runtime", "apptainer")
    assert checks(*image)["container"] == ("note", "no apptainer here")
    wrapper = tmp_path / "bin" / "apptainer"
    wrapper.parent.mkdir()
    wrapper.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    assert checks(*image)["container"] == ("note", f"{tmp_path / 'a.sif'} is not here")
    (tmp_path / "a.sif").touch()
    assert checks(*image, "--python", sys.executable)["job python"][0] == "ok"
    srun = wrapper.with_name("srun")
    for options, verdict in (("--nodes", "missing"), ("--container-image", "ok")):
        srun.write_text(f"#!/bin/sh\necho '{options}'\n")
        srun.chmod(0o755)
        assert checks("--container-image", "a")["container"][0] == verdict
