"""What an installation without extras says: before a job is queued, and with the extra that brings what is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from fsspec.registry import _registry

from jobs.store.bucket import Bucket, BucketError
from jobs.store.filesystem import EXTRAS
from pab.families import FAMILIES
from pab.text.prompt_cleaning import clean
from pipeline.commands.doctor_checks import PYTHONS, models_check
from pipeline.exits import UsageError
from pipeline.run.libraries import check_libraries, installed_as, missing_libraries
from tests.pipeline.command import ROOT, Command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITHOUT = "demo_wan needs diffusers, which this Python does not have: pip install 'pab-pipeline[models]'"


@pytest.fixture
def without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as Python marks what is not there


def test_what_every_family_needs_is_brought_by_the_extra_models_and_demo_needs_nothing() -> None:
    brought = {re.split(r"[^\w-]", each)[0] for each in PROJECT["optional-dependencies"]["models"]}
    assert {installed_as(library) for family in FAMILIES.values() for library in family.libraries} <= brought
    assert [name for name, family in FAMILIES.items() if not family.libraries] == ["demo"]
    assert missing_libraries(dict.fromkeys(FAMILIES)) == {}


def test_a_missing_library_is_refused_where_jobs_run_here_and_warned_of_elsewhere(without_diffusers: None) -> None:
    assert check_libraries({"demo": None}, here=True) == []
    with pytest.raises(UsageError, match="^" + re.escape(WITHOUT) + "$"):
        check_libraries({"demo": None, "demo_wan": None}, here=True)
    assert check_libraries({"demo_wan": None}, here=False) == [f"{WITHOUT}, unless the jobs' Python has it"]
    doctor = models_check()
    assert doctor.found == "diffusers not installed: only demo can run"
    assert doctor.mend == "for the others: pip install 'pab-pipeline[models]'"


def test_a_submit_without_the_library_queues_and_writes_nothing_and_a_dry_run_warns(
    command: Command, without_diffusers: None
) -> None:
    (command.folder / "prompts.txt").write_text("a red circle\n")
    words = ["submit", "prompts.txt", "--model", "demo_wan", "--cluster", "local", "--device", "cpu", "--no-dask"]
    ran = command.run(*words)
    assert (ran.returncode, ran.stderr) == (2, f"error: {WITHOUT}\n")
    assert not Path(command.folder / "runs").exists()
    ran = command.run(*words, "--dry-run")
    assert ran.returncode == 0
    assert f"warning: {WITHOUT}" in ran.stderr


CLEANED = [name for name in FAMILIES if name == "latte" or name.startswith("open_sora")]


def test_what_only_prompts_are_read_with_is_needed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bs4", None)
    assert missing_libraries(dict.fromkeys(FAMILIES)) == {name: ["beautifulsoup4"] for name in CLEANED}
    with pytest.raises(
        UsageError, match=r"^open_sora needs beautifulsoup4, which this Python does not have: pip install"
    ):
        check_libraries({"open_sora": None}, here=True)
    assert models_check().found == f"beautifulsoup4 not installed: {', '.join(CLEANED)} cannot run"
    with pytest.raises(ImportError, match=r"^cleaning prompts needs beautifulsoup4; pip install"):
        clean("a dog")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert missing_libraries(dict.fromkeys(FAMILIES))["wan"] == ["ftfy"]
    with pytest.raises(UsageError, match=r"^latte needs beautifulsoup4 and ftfy, which"):
        check_libraries({"latte": None}, here=True)


def test_a_tokenizer_in_a_folder_says_what_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for library in ("sentencepiece", "google.protobuf"):
        monkeypatch.setitem(sys.modules, library, None)
    both = ["sentencepiece", "protobuf"]
    assert missing_libraries({"open_sora": None, "wan": None, "ltx2": None}) == {"open_sora": both}
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").touch()
    assert missing_libraries({"ltx_2b": str(tmp_path), "wan": str(tmp_path)}) == {"ltx_2b": both, "wan": both}
    (tmp_path / "tokenizer" / "tokenizer.json").touch()
    assert missing_libraries({"ltx_2b": str(tmp_path), "wan": str(tmp_path)}) == {}


def test_calibrate_and_jobs_of_bench_say_it_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, command: Command, without_diffusers: None
) -> None:
    (command.folder / "prompts.txt").write_text("a red circle\na blue square\n")
    words = ["--clips", "1", "--held-out", "1", "--output", "plan.json", "--device", "cpu"]
    ran = command.run("calibrate", "prompts.txt", "--model", "demo_wan", *words)
    assert (ran.returncode, ran.stderr) == (2, f"error: {WITHOUT}\n")
    monkeypatch.setitem(sys.modules, "bs4", None)
    code, document = command.json("bench", "--rows", "job", "--output", "table")
    assert code == 0
    assert {line["status"] for line in document["rows"]} == {"not run"}
    told = "cleaning prompts needs beautifulsoup4, which this Python does not have: pip install 'pab-pipeline[models]'"
    assert {line["why"] for line in document["rows"]} == {told}


@pytest.mark.parametrize(("url", "package", "extra"), [("s3://b", "s3fs", "s3"), ("gs://b", "gcsfs", "gcs")])
def test_a_store_whose_package_is_missing_names_its_extra(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test may have loaded it, and fsspec keeps the class.
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BucketError, match=rf"^{url}: .*{package}.*; pip install 'pab-pipeline\[{extra}\]', or name"):
        Bucket(url).exists("run.json")
    assert set(EXTRAS.values()) <= set(PROJECT["optional-dependencies"])


def test_the_pythons_are_the_same_for_pip_make_and_doctor() -> None:
    told = {f"Programming Language :: Python :: {major}.{minor}" for major, minor in PYTHONS}
    assert told <= set(PROJECT["classifiers"])
    assert PROJECT["requires-python"] == f">=3.{PYTHONS[0][1]},<3.{PYTHONS[-1][1] + 1}"
    makefile = (ROOT / "Makefile").read_text()
    (accepted,) = re.findall(r"not in \((\(3.*?\))\)\)'", makefile)
    assert accepted == ", ".join(str(each) for each in PYTHONS)
