"""Which program a job is: what its digest covers, and what a job says that runs another one than its driver."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.reports.report_html import report_page
from jobs.store import layout
from jobs.version import CODE, PACKAGES, VERSION, digest_of, other_than, program
from tests.jobs.world import clip, render_job, write_shard

DRIVER = "0.0.9 (code 0123456789ab)"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in PACKAGES:
        (tmp_path / package / "room").mkdir(parents=True)
        (tmp_path / package / "room" / "module.py").write_text(f"name = {package!r}\n")
    (tmp_path / "pab" / "room" / "figures.json").write_text("{}")
    (tmp_path / "pab" / "room" / "demo.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "pab/room/module.py").write_text("name = 'other'\n"),
        lambda tree: (tree / "pab/room/figures.json").write_text("[]"),
        lambda tree: (tree / "pab/room/module.py").rename(tree / "pab/room/renamed.py"),
        lambda tree: (tree / "jobs/room/module.py").unlink(),
        lambda tree: (tree / "cluster/new.py").touch(),
    ],
)
def test_the_digest_changes_with_any_file_of_the_program(tree: Path, change: Callable[[Path], object]) -> None:
    before = digest_of(tree)
    assert re.fullmatch(r"[0-9a-f]{12}", before)
    change(tree)
    assert digest_of(tree) != before


def test_the_digest_stays_with_what_is_no_part_of_the_program(tree: Path) -> None:
    before = digest_of(tree)
    (tree / "pab/room/__pycache__").mkdir()
    (tree / "pab/room/__pycache__/module.cpython-311.pyc").write_bytes(b"compiled")
    (tree / "pab/room/.#module.py").write_text("an editor's lock")
    (tree / "pab/room/demo.safetensors").write_bytes(b"others")  # clips' digests name the weights
    (tree / "notes.py").write_text("beside the packages")
    assert digest_of(tree) == before


def test_the_number_is_the_one_of_the_package_and_stands_once() -> None:
    project = tomllib.loads((CODE / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "jobs.version.VERSION"}}
    assert program() == f"{VERSION} (code {digest_of(CODE)})"


def test_nothing_is_said_of_the_same_program_or_an_unknown_one() -> None:
    assert other_than("1", "1") is None
    assert other_than(None, "1") is None
    assert other_than("1", "2") == "the job ran pab-pipeline '2', its driver is '1'"


def test_a_job_that_is_not_its_drivers_program_says_so_in_log_record_and_report(tmp_path, caplog):
    item = clip(0)
    bucket = write_shard(str(tmp_path), [item])
    render_job(str(tmp_path), baseline=False, driver=DRIVER)()
    told = f"the job ran pab-pipeline '{program()}', its driver is '{DRIVER}'"
    (log,) = ((tmp_path / "logs" / name).read_text() for name in bucket.names("logs"))
    assert f'level=warning run=run-1 job=job-00007 rank=0 event=other_program told="{told}"\n' in log
    record = bucket.read_json(layout.record(item.key))
    assert record["warnings"] == [told]
    assert record["versions"]["code"] == digest_of(CODE)
    report = bucket.job_report("job-00007")
    (start,) = report["starts"]
    assert (start["program"], start["driver"], start["other_programs"]) == (program(), DRIVER, [told])
    assert f'<p class="bad">{start["job_id"]} start 0: the job ran pab-pipeline' in report_page(report, None)


def test_a_job_that_is_its_drivers_program_says_which_it_is_and_warns_of_nothing(tmp_path):
    item = clip(0)
    bucket = write_shard(str(tmp_path), [item])
    render_job(str(tmp_path), baseline=False, driver=program())()
    (log,) = ((tmp_path / "logs" / name).read_text() for name in bucket.names("logs"))
    assert f'program="{program()}" code={CODE}\n' in log
    assert "other_program" not in log
    assert bucket.read_json(layout.record(item.key))["warnings"] == []
    report = bucket.job_report("job-00007")
    assert report["starts"][0]["other_programs"] == []
    assert "the job ran" not in report_page(report, None)
