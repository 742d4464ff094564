"""Packages for a machine without a network: what it has is not packed and wins, what it lacks is found behind it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from benchmarks.offline_packages import canonical, is_kept, machines_packages, main, needed

ROOT = Path(__file__).parent.parent
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def write_wheel(index: Path, name: str, *, exact: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> None:
    info = f"{name.replace('-', '_')}-{exact}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {exact}\n"
    described = {
        **files,
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {each}\n" for each in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*described, f"{info}/RECORD"])
    with zipfile.ZipFile(index / f"{name.replace('-', '_')}-{exact}-py3-none-any.whl", "w") as wheel:
        for path, content in {**described, f"{info}/RECORD": record}.items():
            wheel.writestr(path, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in which pip finds what pyproject.toml asks for, and nothing else anywhere.

    rich asks for `pab-absent`, which no machine has; numpy for nothing that exists.
    """
    folder = tmp_path / "index"
    folder.mkdir()
    for requirement in needed():
        name = canonical(requirement.partition("<")[0].partition(">")[0])
        asked = {"rich": ("pab-absent",), "numpy": ("pab-nowhere",)}.get(name, ())
        exact = "0.7.1" if name == "imageio-ffmpeg" else "9999"
        if name != "torch":
            write_wheel(folder, name, exact=exact, files={f"{name.replace('-', '_')}/__init__.py": ""}, requires=asked)
    write_wheel(
        folder,
        "pab-absent",
        exact="1.5",
        files={"pab_absent/__init__.py": "HERE = 1\n", "pab_absent/tests/slow.py": ""},
    )
    write_wheel(
        folder, "pab-extra", exact="2.0", files={"pab_extra.py": "HERE = 2\n"}, requires=("pab-absent", "torch>=2")
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def run_there(out: Path, folder: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Sources use.sh, then runs `code`, by a shell with nothing of this process's Python path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        ["bash", "-ec", '. "$1"/use.sh; "$PYTHON" -c "$2"', "-", out, code],
        env={**kept, "PYTHON": sys.executable, "TMPDIR": str(folder), **variables},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_what_a_machine_lacks_is_packed_and_found_behind_its_own(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    there.mkdir()
    # numpy is not resolved, for the machine has it: what it asks for is nowhere.
    main(["--out", str(out), "--python", PYTHON, "--have", "torch==2.11.0+cu130,numpy==2.5.2", "--extra", "pab-extra"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    packed = {line[2]: line[3] for line in lines if line[2] != "in"}
    assert {"torch", "numpy"}.isdisjoint(packed)
    assert (packed["rich"], packed["pab-absent"], packed["imageio-ffmpeg"]) == ("9999", "1.5", "0.7.1")
    assert sorted(file.name for file in out.iterdir()) == ["pab-extra.tar.xz", "packages.tar.xz", "use.sh"]
    total = sum(file.stat().st_size for file in out.glob("*.xz"))
    assert " ".join(lines[-1]) == f"{total / 1e6:.2f} MB in all ({total / 2**20:.2f} MiB)"

    own = there / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import os; os.environ['OWN_RAN'] = '1'\n")
    code = (
        "import importlib.metadata as m, os, pab_absent, pab_extra, rich\n"
        "print(pab_absent.HERE, pab_extra.HERE, m.version('pab-absent'), m.version('rich') != '9999')\n"
        "print('9999' not in rich.__file__ and 'pab-packages-' not in rich.__file__, os.environ.get('OWN_RAN'))\n"
        "print(m.packages_distributions()['pab_absent'], os.environ['HF_HUB_OFFLINE'])\n"
    )
    for _ in range(2):  # the second one finds the folder
        done = run_there(out, there, code, PYTHONPATH=str(own))
        assert done.stdout.splitlines() == ["1 2 1.5 True", "True 1", "['pab-absent'] 1"], done.stderr
    (unpacked,) = there.glob("pab-packages-*")
    assert (unpacked / "packages/pab_absent/__init__.py").is_file()
    assert not (unpacked / "packages/pab_absent/tests").exists()
    assert not list(unpacked.glob("packages/torch*"))
    assert not list(unpacked.glob("packages/numpy*"))


def test_archives_that_do_not_unpack_leave_no_folder(index: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    there.mkdir()
    main(["--out", str(out), "--python", PYTHON, "--have", "torch==2.11.0,numpy==2.5.2"])
    (out / "packages.tar.xz").write_bytes((out / "packages.tar.xz").read_bytes()[:-2000])
    assert run_there(out, there, "").returncode
    assert list(there.iterdir()) == []


def test_another_python_is_refused_where_it_would_import_nothing(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["--out", str(out), "--python", "3.10", "--have", "torch==2.11.0,numpy==2.5.2"])
    done = run_there(out, tmp_path, "")
    assert done.returncode == 1
    assert f"these packages are for Python 3.10, and {sys.executable} is another one; set PYTHON" in done.stderr


def test_a_package_without_a_wheel_fails_by_its_name(index: Path, tmp_path: Path) -> None:
    (index / "pab-source-1.0.tar.gz").write_bytes(b"")
    have = ["--have", "torch==2.11.0,numpy==2.5.2"]
    with pytest.raises(SystemExit, match="No matching distribution found for pab-source"):
        main(["--out", str(tmp_path / "out"), "--python", PYTHON, *have, "--extra", "pab-source"])


def test_versions_that_do_not_go_together_fail(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"torch.*2\.0\.0"):
        main(["--out", str(tmp_path / "out"), "--python", PYTHON, "--have", "torch==2.0.0,numpy==2.5.2"])


def test_a_machine_is_told_by_its_own_list_or_by_names(tmp_path: Path) -> None:
    listed = tmp_path / "machine.txt"
    listed.write_text("torch==2.11.0+cu130\nJinja2==3.1.6\n-e /src/own\nold @ file:///x.whl\n")
    assert machines_packages(str(listed)) == {"torch": "2.11.0+cu130", "jinja2": "3.1.6"}
    assert machines_packages("torch==2.9.0,pytest") == {"torch": "2.9.0", "pytest": pytest.__version__}
    assert machines_packages(None)["torch"] == "2.11.0"
    with pytest.raises(SystemExit, match="--have pab-nowhere: say which version, pab-nowhere==VERSION"):
        machines_packages("pab-nowhere")


def test_all_dependencies_are_needed_and_big_extras_are_not() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["dependencies"]) < set(needed())
    assert "diffusers" in " ".join(needed())
    assert not {"c2pa-python", "fa3-fwd"} & {canonical(each.partition(">")[0]) for each in needed()}


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("pyarrow/lib.cpython-312-x86_64-linux-gnu.so", True),
        ("pyarrow/libarrow.so.2600", True),
        ("pyarrow/libarrow_substrait.so.2600", True),
        ("pyarrow/libarrow_python.so", False),
        ("pyarrow/libarrow_python.so.2600.1.0", False),
        ("pyarrow/libarrow_flight.so.2600", False),
        ("pyarrow/libarrow_s3.so.2600", False),
        ("pyarrow/parquet/core.py", True),
        ("bokeh/server/static/js/bokeh.min.js", True),
        ("bokeh/server/static/js/bokeh.js", False),
        ("dask/tests/test_base.py", False),
        ("dask/dask.yaml", True),
        ("dask-1.dist-info/METADATA", True),
        ("../../bin/dask", False),
    ],
)
def test_what_runs_is_kept_and_what_only_compiling_needs_is_not(path: str, *, kept: bool) -> None:
    assert is_kept(path) == kept
