"""What an installation holds: the wheel, built from the sources, works away from them; paths made from a file's own exist."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.version import PACKAGES, VERSION, digest_of

ROOT = Path(__file__).parent.parent
DRIVER = """
import sys
from pathlib import Path
wheel = Path(sys.argv[1])
sys.path.insert(0, str(wheel))

import cluster.run_page, jobs.reports.bench_html, jobs.reports.report_svg
from jobs.version import CODE, code_digest
from pab.families.demo.config import WEIGHTS
from pipeline.__main__ import main
assert CODE == wheel
assert WEIGHTS.is_relative_to(wheel)
nothing = {"runs": [], "groups": {}, "rows": [], "factors": [], "not_here": []}
assert ":root" in jobs.reports.bench_html.bench_page(nothing)
assert "<svg" in jobs.reports.report_svg.bar_chart(["s"], [1.0])
assert "<html" in cluster.run_page._PAGE.read_text()

assert code_digest()
edited = wheel / "pab" / "__init__.py"
edited.write_text(edited.read_text() + "# edited after the driver began\\n")
sys.exit(main(sys.argv[2:]))
"""


def packaged_files(root: Path) -> Iterator[str]:
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield path.relative_to(root).as_posix()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(built)], cwd=sources, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


def away() -> dict[str, str]:
    """The variables of a process that finds the program in the wheel alone, if that is told in another way."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    assert sorted(packaged_files(wheel)) == sorted(packaged_files(ROOT))
    held = set(packaged_files(wheel))
    assert {f"{package}/py.typed" for package in PACKAGES} < held
    assert {"manifests/demo.csv", "manifests/demo.parquet"} < held
    for name in ("demo", "demo_wan"):
        assert (wheel / f"pab/families/{name}/{name}.safetensors").stat().st_size > 1_000_000
    assert {"jobs/reports/report.css", "cluster/run_page.html"} < held
    facts = f"pab_pipeline-{VERSION}.dist-info"
    assert {path.name for path in wheel.iterdir()} == {*PACKAGES, facts}
    assert "pab-pipeline = pipeline.__main__:main" in (wheel / facts / "entry_points.txt").read_text()
    assert digest_of(wheel) == digest_of(ROOT), "an installed program is the same program as its checkout"


def test_an_installed_driver_renders_in_a_folder_of_another_version_and_its_job_says_that_it_was_edited(
    wheel: Path, tmp_path: Path
) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('a job found what lies around')")
    (tmp_path / "prompts.txt").write_text("a small red circle moving left on a navy background\n")
    words = ["submit", "prompts.txt", "--num-frames", "8", "--set", "num_steps=2", "--cluster", "local"]
    words += ["--device", "cpu", "--no-dask", "--no-baseline", "--json"]
    edited, before = wheel / "pab" / "__init__.py", (wheel / "pab" / "__init__.py").read_bytes()
    # A path in the program's own list, not in the environment: jobs find the code by what `cluster` tells them.
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-c", DRIVER, str(wheel), *words],
            cwd=tmp_path, env=away(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        edited.write_bytes(before)
    assert ran.returncode == 0, ran.stderr
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "runs/prompts/records").iterdir())
    run = json.loads((tmp_path / "runs/prompts/run.json").read_text())
    assert run["versions"]["code"] == digest_of(wheel) != record["versions"]["code"]
    assert run["versions"]["pab-pipeline"] == record["versions"]["pab-pipeline"] == VERSION
    job, driver = (f"'{VERSION} (code {each['versions']['code']})'" for each in (record, run))
    warning = f"the job ran pab-pipeline {job}, its driver is {driver}"
    assert warning in record["warnings"]
    assert {"warning": warning, "clips": 1} in json.loads(ran.stdout)["clip_warnings"]


def test_every_path_made_from_a_files_own_exists() -> None:
    made = {}
    for file in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if "__file__" in text else ():
            names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            if isinstance(node, ast.expr) and "__file__" in names and names <= {"Path", "__file__"}:
                value = eval(ast.unparse(node), {"Path": Path, "__file__": str(file)})
                if isinstance(value, Path):
                    made[f"{file.relative_to(ROOT)}: {ast.unparse(node)}"] = value
    assert [place for place, path in made.items() if not path.exists()] == []
    roots = {place.partition(":")[0] for place, path in made.items() if path == ROOT}
    assert roots == {"cluster/environment.py", "jobs/version.py"}, (
        "where jobs are told to find the code, and its digest"
    )
    assert ROOT / "pab/kernels" in made.values()
