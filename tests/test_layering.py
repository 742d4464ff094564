"""The one-way import rule, checked on the source: arrows between packages, import cycles, rooms of libraries."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROWS = {
    "pipeline": {"cluster", "jobs", "pab", "manifests"},
    "jobs": {"pab", "manifests"},
    "cluster": set[str](),
    "pab": set[str](),
    "manifests": set[str](),
}
TORCH_ROOMS = ("pab/*", "jobs/*")
TORCH_FREE = (
    "pab/family.py",
    "pab/families/*.py",
    "pab/plan.py",
    "pab/rules.py",
    "pab/step_rules.py",
    "pab/sites.py",
    "pab/checkpoint.py",
    "pab/rectified_flow.py",
    "pab/references.py",
    "pab/wan/levels.py",
    "pab/wan/weights.py",
    "pab/cogvideox/levels.py",
    "pab/cogvideox/weights.py",
    "pab/hunyuan_video/levels.py",
    "pab/hunyuan_video/weights.py",
    "pab/ltx/levels.py",
    "pab/ltx/weights.py",
    "pab/open_sora/clips.py",
    "pab/open_sora/frame_masks.py",
    "pab/open_sora/prompts.py",
    "pab/open_sora/sizes.py",
    "pab/open_sora/weights.py",
    "pab/sites.py",
    "pab/diffusion.py",
    "pab/checkpoint.py",
    "pab/weights.py",
    "jobs/bench/factors.py",
    "jobs/bench/rows.py",
    "jobs/batch_size.py",
    "jobs/settings.py",
    "jobs/outcome.py",
    "jobs/progress.py",
    "jobs/bucket.py",
    "jobs/layout.py",
    "jobs/patience.py",
    "jobs/reference_files.py",
    "jobs/render.py",
    "jobs/report.py",
    "jobs/report_measured.py",
    "jobs/report_times.py",
    "pipeline/*.py",
)
"""What planning and the command line import: torch may stand in a function there, never at the top."""
ROOMS = {
    "torch": TORCH_ROOMS,
    "triton": ("pab/kernels/gpu/*",),
    "safetensors": ("pab/*",),
    "diffusers": ("pab/*", "jobs/bench/peers.py"),
    "cache_dit": ("jobs/bench/peers.py",),
    "transformers": ("pab/*",),
    "tokenizers": ("pab/*",),
    "huggingface_hub": ("pab/*",),
    "sentencepiece": ("pab/*",),
    "ftfy": ("pab/*",),
    "bs4": ("pab/*",),
    "submitit": ("cluster/*", "jobs/group.py"),
    "dask": ("cluster/*",),
    "distributed": ("cluster/*",),
    "bokeh": ("cluster/*",),
    "tornado": ("cluster/*",),
    "fsspec": ("manifests/*", "jobs/bucket.py", "jobs/reference_files.py"),
    "s3fs": ("jobs/bucket.py",),
    "botocore": ("jobs/s3_listing.py",),
    "pyarrow": ("manifests/*", "pipeline/report*.py"),
    "numpy": ("manifests/*", "pab/*", "jobs/*", "pipeline/report*.py"),
    "imageio_ffmpeg": ("jobs/*", "pipeline/checks.py"),
    "rich": ("pipeline/*",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module. `at_top`: executed when the importing file is; `for_types`: under `if TYPE_CHECKING`."""

    path: str
    line: int
    target: str
    at_top: bool
    for_types: bool

    @property
    def package(self) -> str:
        return self.target.split(".", maxsplit=1)[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.target}"


class _Imports(ast.NodeVisitor):
    def __init__(self, path: str) -> None:
        self.path, self.found = path, list[Import]()
        self._depth, self._for_types = 0, False

    def _add(self, node: ast.stmt, target: str) -> None:
        self.found.append(
            Import(path=self.path, line=node.lineno, target=target, at_top=not self._depth, for_types=self._for_types)
        )

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._add(node, name.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self.path}:{node.lineno}: imports are absolute here"
        for name in node.names:
            self._add(node, f"{node.module}.{name.name}")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)
            return
        before, self._for_types = self._for_types, True
        for child in node.body:
            self.visit(child)
        self._for_types = before
        for child in node.orelse:
            self.visit(child)


def imports_of(root: Path) -> list[Import]:
    """Returns every import of our packages under `root`."""
    found: list[Import] = []
    for package in ARROWS:
        for file in sorted((root / package).rglob("*.py")):
            visitor = _Imports(file.relative_to(root).as_posix())
            visitor.visit(ast.parse(file.read_text()))
            found += visitor.found
    return found


def wrong_arrows(imports: list[Import]) -> list[str]:
    """Returns the imports of one of our packages by another that may not."""
    return [
        str(i)
        for i in imports
        if i.package in ARROWS and i.package != _package(i.path) and i.package not in ARROWS[_package(i.path)]
    ]


def wrong_rooms(imports: list[Import]) -> list[str]:
    """Returns the imports of third-party libraries outside their rooms, and of libraries that have none."""
    return [str(i) for i in imports if not _has_room(i)]


def _has_room(i: Import) -> bool:
    if i.package in ARROWS or i.package in sys.stdlib_module_names:
        return True
    if i.package == "torch" and i.at_top and not i.for_types and any(fnmatch(i.path, free) for free in TORCH_FREE):
        return False
    return any(fnmatch(i.path, room) for room in ROOMS.get(i.package, ()))


def cycles(imports: list[Import], root: Path) -> list[str]:
    """Returns every file that reaches itself by what is imported at the top; an import in a function waits for its call."""
    edges: dict[str, set[str]] = {}
    for i in imports:
        if i.at_top and not i.for_types and i.package in ARROWS:
            edges.setdefault(i.path, set()).update(_files(i.target, root))
    return [path for path in edges if path in _reached(path, edges)]


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(edges[start])
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += edges.get(path, ())
    return seen


def _files(target: str, root: Path) -> Iterator[str]:
    # `from a.b import c` names the module a.b.c or a value of a.b.
    for name in (target, target.rpartition(".")[0]):
        stem = name.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if stem and (root / path).is_file():
                yield path
                return


def _package(path: str) -> str:
    return path.split("/", maxsplit=1)[0]


def test_packages_import_only_along_the_arrows() -> None:
    assert wrong_arrows(imports_of(ROOT)) == []


def test_libraries_stay_in_their_rooms() -> None:
    assert wrong_rooms(imports_of(ROOT)) == []


def test_no_file_imports_itself_by_a_detour() -> None:
    assert cycles(imports_of(ROOT), ROOT) == []


def test_the_walk_sees_the_real_packages() -> None:
    assert {_package(i.path) for i in imports_of(ROOT)} == set(ARROWS)


@pytest.mark.parametrize(
    ("path", "source", "check", "told"),
    [
        ("manifests/a.py", "import jobs.bucket", wrong_arrows, "manifests/a.py:1 imports jobs.bucket"),
        (
            "jobs/a.py",
            "def f():\n    from cluster import dashboard",
            wrong_arrows,
            "jobs/a.py:2 imports cluster.dashboard",
        ),
        ("cluster/a.py", "from pab.plan import Site", wrong_arrows, "cluster/a.py:1 imports pab.plan.Site"),
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


def test_a_cycle_is_found_and_an_import_for_types_is_none(tmp_path: Path) -> None:
    (tmp_path / "pab").mkdir()
    (tmp_path / "pab/__init__.py").write_text("")
    (tmp_path / "pab/a.py").write_text("from pab.b import thing")
    (tmp_path / "pab/b.py").write_text("from pab import c")
    (tmp_path / "pab/c.py").write_text("import pab.a")
    (tmp_path / "pab/d.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pab.e import thing"
    )
    (tmp_path / "pab/e.py").write_text("import pab.d")
    assert cycles(imports_of(tmp_path), tmp_path) == ["pab/a.py", "pab/b.py", "pab/c.py"]
