"""The copy of the program that SLURM jobs run: whole, made once, and what their scripts tell Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.code_copy import CodeCopy
from cluster.environment import ROOT, for_child
from cluster.job import ClusterError
from cluster.slurm_launch import Launch
from cluster.slurm_script import Shape, array_script
from cluster.slurm_settings import SlurmSettings
from jobs.version import PACKAGES, VERSION, digest_of
from pipeline.run.job_code import code_copy
from pipeline.run.settings import MachineSettings

SHAPE = Shape(num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=5, avoid_nodes=frozenset(), is_restart=False)


def test_a_copy_is_the_whole_program_in_a_private_folder_and_is_made_once(tmp_path: Path) -> None:
    copy = CodeCopy(folder=tmp_path / "jobs" / "code", name="1", packages=PACKAGES)
    copy.make()
    assert digest_of(copy.place) == digest_of(ROOT)
    assert (copy.place / "pab/families/demo/demo.safetensors").stat().st_size > 1_000_000
    assert copy.folder.stat().st_mode & 0o777 == 0o700
    (copy.place / "pab/__init__.py").write_text("mark = 1\n")
    copy.make()
    assert (copy.place / "pab/__init__.py").read_text() == "mark = 1\n"
    assert os.listdir(copy.folder) == ["1"]  # noqa: PTH208  (a half-made one would be hidden from glob)


def test_a_copy_that_cannot_be_made_is_refused_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    copy = CodeCopy(folder=tmp_path / "code", name="1", packages=("jobs/ranks", "no_package"))
    with pytest.raises(ClusterError, match=r"cannot copy the program to .*/code/1 .*no_package.*--no-ship-code"):
        copy.make()
    assert list(copy.folder.iterdir()) == []


def test_the_copy_of_a_submit_is_named_after_its_files_and_lies_beside_the_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MachineSettings(cluster="slurm", max_parallel_jobs=1).ship_code
    copy = code_copy(ship_code=True)
    assert copy
    assert copy.place == tmp_path / "runs/.jobs/code" / f"{VERSION}-{digest_of(ROOT)}"
    assert code_copy(ship_code=False) is None


def test_a_script_finds_the_program_in_the_copy_and_nowhere_else_before(tmp_path: Path) -> None:
    copy = CodeCopy(folder=tmp_path / "a b", name="1", packages=PACKAGES)
    for settings, code in (
        (SlurmSettings(launch=Launch(code=copy)), f"'{tmp_path}/a b/1'"),
        (SlurmSettings(), str(ROOT)),
    ):
        script = array_script(settings, SHAPE, folder=tmp_path, job_name="pab-1")
        lines = [line for line in script.splitlines() if line.startswith("export PYTHON")]
        assert lines == [f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"', "export PYTHONSAFEPATH=1"]
    assert not (tmp_path / "a b").exists(), "a script that is only shown copies nothing"


def test_children_find_the_program_of_their_parent_whatever_lies_in_their_folder() -> None:
    found = for_child()
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert found["PYTHONSAFEPATH"] == "1"
