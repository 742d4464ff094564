"""A setting stands once: with one field more in the settings tree, it is everywhere, and no other file was touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("pab", "manifests", "cluster", "jobs", "pipeline")
NEW = """    film_grain: Annotated[int, Setting(metavar="N", low=0, high=9, help="how coarse the grain is")] = 3
    {before}"""
SHOW = """
import contextlib, io, json, os, sys
from pathlib import Path
from jobs.settings import Mesh
from pipeline.exits import UsageError
from pipeline.parser import build_parser
from pipeline.run.build import build_settings
from pipeline.run.environment import environment_settings
from pipeline.run.options import choose

def settings(flags, environment=None, config=None):
    words = ["submit", "m.parquet", "--cluster", "local", "--device", "cpu", *flags]
    parsed = vars(build_parser().parse_args(words))
    return build_settings("m.parquet", choose(parsed, environment_settings(environment or {}), config))

def refused(*given):
    try:
        settings(*given)
    except UsageError as error:
        return str(error)

def grain(run):
    return getattr(run, part).film_grain

part, config = sys.argv[1], Path("run.toml")
config.write_text("film_grain = 4")
variable = {"PAB_PIPELINE_FILM_GRAIN": "5"}
flag = ["--film-grain", "6"]
page = io.StringIO()
with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
    build_parser().parse_args(["submit", "--help"])
run = settings(flag, variable, config)
job = run.job_settings(run_id="r", mesh=Mesh(), broadcast_rules=None, pinned_weights={})
told = {
    "values": [grain(settings([])), grain(settings([], None, config)), grain(settings([], variable, config)), grain(run)],
    "refused": [refused(["--film-grain", "10"]), refused([], {"PAB_PIPELINE_FILM_GRAIN": "x"})],
    "help": page.getvalue(),
    "run.json": run.to_dict()[part]["film_grain"],
    "job": getattr(job.render, "film_grain", None),
}
config.write_text("film_grain = -1")
told["refused"].append(refused([], None, config))
print(json.dumps(told))
"""


def told_with(folder: Path, file: str, before: str, part: str) -> Any:
    """Runs the program with one setting more: a copy of it in which only `file` differs, by a line before `before`."""
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.*"):
            if "__pycache__" not in source.parts and source.is_file():
                copy = folder / source.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(source)
    text = (ROOT / file).read_text()
    assert text.count(before) == 1
    (folder / file).unlink()
    (folder / file).write_text(text.replace(before, NEW.format(before=before.strip())))
    ran = subprocess.run(
        [sys.executable, "-c", SHOW, part],
        cwd=folder, env={"PYTHONPATH": str(folder), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("file", "before", "part"),
    [
        ("jobs/pixel_settings.py", "    keep: Annotated[", "render"),
        ("jobs/render_settings.py", "    batch: Annotated[", "render"),
        ("pipeline/run/settings.py", "    partition: Annotated[", "machines"),
    ],
)
def test_one_line_is_a_flag_a_variable_a_key_help_and_in_run_json_and_jobs(
    tmp_path: Path, file: str, before: str, part: str
) -> None:
    told = told_with(tmp_path, file, before, part)
    assert told["values"] == [3, 4, 5, 6], "default, then the file, the variable and the flag, each before the last"
    assert told["refused"] == [
        "--film-grain='10', needs a whole number from 0 to 9",
        "PAB_PIPELINE_FILM_GRAIN='x', needs a whole number from 0 to 9",
        "run.toml: film_grain=-1, needs a whole number from 0 to 9",
    ]
    assert "--film-grain N        how coarse the grain is (default: 3)" in told["help"]
    assert told["run.json"] == 6
    assert told["job"] == (6 if part == "render" else None)
