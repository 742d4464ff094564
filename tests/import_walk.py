"""Walks over the imports of our source, and finds those that the walls (`tests/rooms.py`) forbid."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tests.rooms import ARROWS, DEMO_WEIGHTS, ROOM_ARROWS, ROOMED, ROOMS, TORCH_FREE

ROOT = Path(__file__).parent.parent


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
        if i.package in ARROWS and i.package != package_of(i.path) and i.package not in ARROWS[package_of(i.path)]
    ]


def wrong_rooms(imports: list[Import]) -> list[str]:
    """Returns the imports of third-party libraries outside their rooms, and of libraries that have none."""
    return [str(i) for i in imports if not _has_room(i)]


def _has_room(i: Import) -> bool:
    if i.package in ARROWS or i.package in sys.stdlib_module_names:
        return True
    if i.package == "torch" and i.at_top and not i.for_types and is_torch_free(i.path):
        return False
    return any(fnmatch(i.path, room) for room in ROOMS.get(i.package, ()))


def is_torch_free(path: str) -> bool:
    return path != DEMO_WEIGHTS and any(fnmatch(path, free) for free in TORCH_FREE)


def cycles(imports: list[Import], root: Path) -> list[str]:
    """Returns every file that reaches itself by its imports, those inside functions too."""
    edges: dict[str, set[str]] = {}
    for i in imports:
        if not i.for_types and i.package in ARROWS:
            edges.setdefault(i.path, set()).update(_files(i.target, root))
    return [path for path in edges if path in reached(path, edges)]


def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
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


def package_of(path: str) -> str:
    return path.split("/", maxsplit=1)[0]


def room_of(path: str) -> str:
    """Returns the room of a file: a folder of its package, a family's folder, or the file itself beside them."""
    package, *inside = path.removesuffix(".py").split("/")
    if inside[:1] == ["families"] and len(inside) > 2:
        return f"{package}/families/{inside[1]}"
    return f"{package}/{inside[0]}"


def wrong_room_arrows(imports: list[Import], root: Path) -> list[str]:
    """Returns the imports from one room of a package by another that may not, and files in rooms that are not listed."""
    wrong: list[str] = []
    for i in imports:
        package = package_of(i.path)
        if i.for_types or package != i.package or package not in ROOMED or i.path.count("/") == 0:
            continue
        here = room_of(i.path)
        for file in _files(i.target, root):
            there = room_of(file)
            if there not in {here, f"{package}/__init__", *ROOM_ARROWS.get(here, ())}:
                wrong.append(str(i))
    return wrong


def rooms_of(root: Path) -> set[str]:
    """Returns the rooms that there are."""
    files = (path.relative_to(root).as_posix() for package in ROOMED for path in (root / package).rglob("*.py"))
    return {room_of(file) for file in files} - {f"{package}/__init__" for package in ROOMED}
