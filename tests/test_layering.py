"""The one-way import rule, checked on the source: arrows between packages, import cycles, rooms of libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_walk import (
    ROOT,
    cycles,
    imports_of,
    is_torch_free,
    package_of,
    reached,
    rooms_of,
    wrong_arrows,
    wrong_room_arrows,
    wrong_rooms,
)
from tests.rooms import ARROWS, CORE, FAMILIES, ROOM_ARROWS


def test_packages_import_only_along_the_arrows() -> None:
    assert wrong_arrows(imports_of(ROOT)) == []


def test_libraries_stay_in_their_rooms() -> None:
    assert wrong_rooms(imports_of(ROOT)) == []


def test_no_file_imports_itself_by_a_detour() -> None:
    assert cycles(imports_of(ROOT), ROOT) == []


def test_the_rooms_are_those_of_the_plan_and_import_along_their_arrows() -> None:
    assert rooms_of(ROOT) == set(ROOM_ARROWS)
    assert wrong_room_arrows(imports_of(ROOT), ROOT) == []


def test_arrows_between_rooms_make_no_circle() -> None:
    assert [room for room in ROOM_ARROWS if room in reached(room, ROOM_ARROWS)] == []


def test_every_family_has_the_same_files() -> None:
    for family in FAMILIES:
        held = {path.name for path in (ROOT / "pab/families" / family).glob("*.py")}
        assert held >= {"family.py", "config.py", "load.py", "weights.py"}, family
        assert family == "demo" or held >= {"sites.py", "tiny.py"}, family


def test_the_core_names_no_family() -> None:
    text = {path: path.read_text() for room in sorted(CORE) for path in _sources(ROOT / "pab" / room)}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, source in text.items()
        for name in FAMILIES
        if f"pab.families.{name}" in source
    ]
    assert wrong == []


def _sources(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def test_planning_and_the_command_line_run_without_torch() -> None:
    files = [path.relative_to(ROOT).as_posix() for package in ARROWS for path in sorted((ROOT / package).rglob("*.py"))]
    modules = [
        file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for file in files
        if is_torch_free(file) and not file.endswith("__main__.py")
    ]
    assert {f"pab.families.{family}.family" for family in FAMILIES} < set(modules)
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        "from pab.families import FAMILIES\n"
        "from pab.family import ClipRequest\n"
        "from pab.broadcast.plan import make_plan\n"
        "for family in FAMILIES.values():\n"
        "    d = family.defaults\n"
        "    request = ClipRequest(prompt='a', negative_prompt=None, seed=0, num_frames=d.num_frames, height=d.height,\n"
        "        width=d.width, fps=d.fps, num_steps=d.num_steps, guidance_scale=d.guidance_scale)\n"
        "    make_plan(family.presets[d.broadcast], family.timesteps(request, 'bfloat16'), family.sites)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_walk_sees_the_real_packages() -> None:
    assert {package_of(i.path) for i in imports_of(ROOT)} == set(ARROWS)


@pytest.mark.parametrize(
    ("path", "source", "check", "told"),
    [
        ("manifests/a.py", "import jobs.store.bucket", wrong_arrows, "manifests/a.py:1 imports jobs.store.bucket"),
        (
            "jobs/a.py",
            "def f():\n    from cluster import dashboard",
            wrong_arrows,
            "jobs/a.py:2 imports cluster.dashboard",
        ),
        (
            "cluster/a.py",
            "from pab.broadcast.plan import Site",
            wrong_arrows,
            "cluster/a.py:1 imports pab.broadcast.plan.Site",
        ),
        ("jobs/a.py", "import dask.array", wrong_rooms, "jobs/a.py:1 imports dask.array"),
        ("pipeline/a.py", "import torch", wrong_rooms, "pipeline/a.py:1 imports torch"),
        ("pab/family.py", "import torch", wrong_rooms, "pab/family.py:1 imports torch"),
        ("pab/a.py", "if True:\n    import requests", wrong_rooms, "pab/a.py:2 imports requests"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, check: object, told: str) -> None:
    file = tmp_path / path
    file.parent.mkdir()
    file.write_text(source)
    assert callable(check)
    assert check(imports_of(tmp_path)) == [told]


def test_a_wrong_arrow_between_rooms_is_found(tmp_path: Path) -> None:
    for file in ("pab/broadcast/plan.py", "pab/families/wan/load.py", "pab/vae/tiles.py"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("")
    (tmp_path / "pab/broadcast/plan.py").write_text("def f():\n    from pab.families.wan import load")
    (tmp_path / "pab/families/wan/load.py").write_text("from pab.broadcast.plan import f")
    assert wrong_room_arrows(imports_of(tmp_path), tmp_path) == [
        "pab/broadcast/plan.py:2 imports pab.families.wan.load"
    ]


def test_a_cycle_is_found_and_an_import_for_types_is_none(tmp_path: Path) -> None:
    (tmp_path / "pab").mkdir()
    (tmp_path / "pab/__init__.py").write_text("")
    (tmp_path / "pab/a.py").write_text("from pab.b import thing")
    (tmp_path / "pab/b.py").write_text("def f():\n    from pab import c")
    (tmp_path / "pab/c.py").write_text("import pab.a")
    (tmp_path / "pab/d.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pab.e import thing"
    )
    (tmp_path / "pab/e.py").write_text("import pab.d")
    assert cycles(imports_of(tmp_path), tmp_path) == ["pab/a.py", "pab/b.py", "pab/c.py"]
