"""What an installation holds: the wheel, built from the sources, works away from them; paths made from a file's own exist."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "pab", "jobs", "cluster", "manifests")
USES = """
from functools import partial
from pathlib import Path
import time, sys
wheel = Path(sys.argv[1])

import cluster.run_page, jobs.reports.bench_html, jobs.reports.report_svg, manifests.demo
import pab.execution.compile_cache, pab.families.demo.config, pab.families.demo_wan.weights
assert Path(pab.__file__).is_relative_to(wheel), pab.__file__
assert pab.families.demo.config.WEIGHTS.is_relative_to(wheel)
assert pab.families.demo.config.WEIGHTS.stat().st_size > 1_000_000
assert pab.families.demo_wan.weights.WEIGHTS.stat().st_size > 1_000_000
nothing = {"runs": [], "groups": {}, "rows": [], "factors": [], "not_here": []}
assert ":root" in jobs.reports.bench_html.bench_page(nothing)
assert "<svg" in jobs.reports.report_svg.bar_chart(["s"], [1.0])
assert "<html" in cluster.run_page._PAGE.read_text()
assert manifests.demo.DEMO_CSV.is_file() and manifests.demo.DEMO_PARQUET.is_file()
assert pab.execution.compile_cache.operators_digest(pab.execution.compile_cache.KERNELS)

from cluster.job import JobRequest
from cluster.local import LocalCluster
here = LocalCluster(Path("jobs"), 1)
call = partial(int, "7")
(job,) = here.submit([JobRequest(name="a", call=call, num_nodes=1, ranks_per_node=1, gpus_per_node=0, timeout_min=5)])
while job.state.value in ("waiting", "running"):
    here.poll()
    time.sleep(0.1)
assert job.result() == 7, job.error()
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


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    assert sorted(packaged_files(wheel)) == sorted(packaged_files(ROOT))
    held = set(packaged_files(wheel))
    assert {f"{package}/py.typed" for package in PACKAGES} < held
    assert {"pab/families/demo/demo.safetensors", "manifests/demo.csv", "manifests/demo.parquet"} < held
    assert {"jobs/reports/report.css", "cluster/run_page.html"} < held


def test_what_is_installed_works_away_from_its_sources(wheel: Path, tmp_path: Path) -> None:
    # A path in the program's own list, not in the environment: jobs find the code by what `cluster` tells them.
    script = f"import sys; sys.path.insert(0, {str(wheel)!r})\n{USES}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script, str(wheel)], cwd=tmp_path, env=environment, check=True)
    tiny = [sys.executable, "-m", "pab.tiny_weights", "latte", "tiny"]
    told = subprocess.run(
        tiny, cwd=tmp_path, env=environment | {"PYTHONPATH": str(wheel)}, capture_output=True, check=True
    )
    assert told.stdout == b"wrote tiny latte weights to tiny\n"
    assert (tmp_path / "tiny/transformer/config.json").is_file()


def test_every_path_made_from_a_files_own_exists() -> None:
    made = {}
    for file in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            if isinstance(node, ast.expr) and "__file__" in names and names <= {"Path", "__file__"}:
                value = eval(ast.unparse(node), {"Path": Path, "__file__": str(file)})
                if isinstance(value, Path):
                    made[f"{file.relative_to(ROOT)}: {ast.unparse(node)}"] = value
    assert [place for place, path in made.items() if not path.exists()] == []
    roots = {place.partition(":")[0] for place, path in made.items() if path == ROOT}
    assert roots == {"cluster/environment.py"}, "where jobs are told to find the code"
    assert ROOT / "pab/kernels" in made.values()
