"""The one-way import rule, checked on the source: arrows between packages, import cycles, rooms of libraries."""

from __future__ import annotations

import ast
import subprocess
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
_SEAMS = {"family", "model"}
_BASE = {"weights", "kernels", "parallel", "conditioning"}
_PAB_ROOMS: dict[str, set[str]] = {
    "weights": set(),
    "kernels": set(),
    "parallel": set(),
    "conditioning": set(),
    "own_folder": set(),
    "vae": {"parallel"},
    "broadcast": {"kernels", "parallel"},
    "family": {"broadcast", "conditioning", "parallel"},
    "model": {"family", "broadcast", "conditioning", "parallel"},
    "sampling": {"broadcast", "parallel", "conditioning", *_SEAMS},
    "execution": {"own_folder", *_SEAMS},
    "text": {"weights", "parallel", *_SEAMS},
    "nn": {"text", "kernels", "parallel", "broadcast", "execution", *_SEAMS},
    "library": {"nn", "kernels", "text", "vae", "weights", "broadcast", "parallel", "execution", *_SEAMS},
    "calibration": {"sampling", "broadcast", "parallel", *_SEAMS},
}
_CORE = {*_PAB_ROOMS}
FAMILIES = (
    "cogvideox", "demo", "hunyuan_video", "hunyuan_video_15", "latte", "ltx", "ltx2", "open_sora", "open_sora_plan", "wan",
)  # fmt: skip
ROOMED = ("pab", "jobs", "pipeline")
_RELATIVES = {"demo": "open_sora", "open_sora_plan": "latte"}
"""Families whose transformers are configurations of another family's class."""
ROOM_ARROWS: dict[str, set[str]] = {
    **{f"pab/{room}": {f"pab/{other}" for other in others} for room, others in _PAB_ROOMS.items()},
    **{
        f"pab/families/{family}": {f"pab/{room}" for room in _CORE}
        | ({f"pab/families/{_RELATIVES[family]}"} if family in _RELATIVES else set())
        for family in FAMILIES
    },
    "pab/families": {"pab/family", *(f"pab/families/{family}" for family in FAMILIES)},
    "pab/tiny_weights": {"pab/families"},
    "jobs/log": set(),
    "jobs/setting": set(),
    "jobs/settings": {"jobs/setting"},
    "jobs/outcome": set(),
    "jobs/progress": set(),
    "jobs/ranks": {"jobs/log"},
    "jobs/store": {"jobs/log"},
    "jobs/media": {"jobs/log", "jobs/store"},
    "jobs/calibration": {"jobs/media"},
    "jobs/reports": {"jobs/media", "jobs/store", "jobs/calibration"},
    "jobs/rendering": {
        "jobs/log",
        "jobs/settings",
        "jobs/outcome",
        "jobs/progress",
        "jobs/ranks",
        "jobs/store",
        "jobs/media",
        "jobs/reports",
    },
    "jobs/bench": {"jobs/settings", "jobs/media"},
    "jobs/render": {"jobs/settings", "jobs/outcome", "jobs/progress", "jobs/rendering"},
    "pipeline/exits": set(),
    "pipeline/screen": set(),
    "pipeline/run": {"pipeline/exits", "pipeline/screen"},
    "pipeline/planning": {"pipeline/exits", "pipeline/screen", "pipeline/run"},
    "pipeline/commands": {"pipeline/exits", "pipeline/screen", "pipeline/run", "pipeline/planning"},
    "pipeline/parser": {"pipeline/exits", "pipeline/run"},
    "pipeline/__main__": {"pipeline/exits", "pipeline/screen", "pipeline/parser"},
}
"""Each room (a folder, or a file beside the rooms) and the rooms of its package that it may import."""
TORCH_FREE = (
    "pab/family.py",
    "pab/own_folder.py",
    "pab/families/__init__.py",
    "pab/families/tiny_weights.py",
    "pab/families/*/family.py",
    "pab/families/*/config.py",
    "pab/families/*/sites.py",
    "pab/families/*/levels.py",
    "pab/families/*/loras.py",
    "pab/families/*/sizes.py",
    "pab/families/*/weights.py",
    "pab/broadcast/plan.py",
    "pab/broadcast/sites.py",
    "pab/broadcast/*rules.py",
    "pab/broadcast/foresight.py",
    "pab/broadcast/smaller.py",
    "pab/conditioning/references.py",
    "pab/conditioning/frame_masks.py",
    "pab/conditioning/loops.py",
    "pab/sampling/rectified_flow.py",
    "pab/sampling/samplers.py",
    "pab/text/prompt_cleaning.py",
    "pab/weights/checkpoint.py",
    "pab/weights/digest.py",
    "pab/weights/folders.py",
    "pab/weights/lora*.py",
    "jobs/outcome.py",
    "jobs/progress.py",
    "jobs/render.py",
    "jobs/setting.py",
    "jobs/settings.py",
    "jobs/bench/factors.py",
    "jobs/bench/rows.py",
    "jobs/rendering/batch_size.py",
    "jobs/store/*.py",
    "jobs/media/image_size.py",
    "jobs/media/reference_*.py",
    "jobs/media/web_files.py",
    "jobs/reports/report*.py",
    "jobs/reports/bench_html.py",
    "jobs/reports/number_formats.py",
    "jobs/reports/page.py",
    "jobs/reports/run_html.py",
    "jobs/reports/svg.py",
    "pipeline/*.py",
)
"""What planning and the command line import: torch may stand in a function there, never at the top."""
DEMO_WEIGHTS = "pab/families/demo/weights.py"
"""Builds the model that its file describes, so it is not of the torch-free ones."""
ROOMS = {
    "torch": ("pab/*", "jobs/*"),
    "triton": ("pab/kernels/gpu/*",),
    "safetensors": ("pab/*",),
    "diffusers": ("pab/library/*", "pab/families/*", "jobs/bench/peers.py"),
    "cache_dit": ("jobs/bench/peers.py",),
    "transformers": ("pab/text/*", "pab/weights/tiny_parts.py", "pab/families/*"),
    "tokenizers": ("pab/families/*", "pab/weights/tiny_parts.py"),
    "huggingface_hub": ("pab/weights/*",),
    "sentencepiece": ("pab/weights/tiny_parts.py",),
    "ftfy": ("pab/text/*", "pab/families/*"),
    "bs4": ("pab/text/*",),
    "submitit": ("cluster/*", "jobs/rendering/group.py"),
    "dask": ("cluster/*",),
    "distributed": ("cluster/*",),
    "bokeh": ("cluster/*",),
    "tornado": ("cluster/*",),
    "fsspec": (
        "manifests/*",
        "jobs/store/filesystem.py",
        "jobs/media/reference_files.py",
        "jobs/media/web_files.py",
    ),
    "aiohttp": ("jobs/media/web_files.py",),
    "s3fs": ("jobs/store/bucket.py",),
    "botocore": ("jobs/store/s3_listing.py",),
    "pyarrow": ("manifests/*", "pipeline/run/report*.py", "pipeline/commands/report.py"),
    "numpy": ("manifests/*", "pab/*", "jobs/*", "pipeline/run/report*.py"),
    "imageio_ffmpeg": ("jobs/media/*", "jobs/rendering/*", "pipeline/commands/doctor_checks.py"),
    "rich": ("pipeline/*",),
    "jinja2": ("jobs/reports/*",),
    "markupsafe": ("jobs/reports/*",),
    "PIL": ("jobs/media/*", "pab/library/image.py"),
    "psutil": ("jobs/ranks/interfaces.py",),
}

TOUCH_ENVIRONMENT = {
    "pipeline/run/environment.py": "the variables of settings, PAB_PIPELINE_*, and CUDA_VISIBLE_DEVICES",
    "cluster/environment.py": "what SLURM and submitit say of a job, and the variables of child processes",
    "jobs/rendering/group.py": "what SLURM says of the job that a rank belongs to, and the interface of gloo and NCCL",
    "pab/execution/compile_cache.py": "the folders of inductor and Triton, which know no other way to be told",
}
"""The files that may read or change environment variables, each with what for."""


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
    if i.package == "torch" and i.at_top and not i.for_types and _is_torch_free(i.path):
        return False
    return any(fnmatch(i.path, room) for room in ROOMS.get(i.package, ()))


def _is_torch_free(path: str) -> bool:
    return path != DEMO_WEIGHTS and any(fnmatch(path, free) for free in TORCH_FREE)


def cycles(imports: list[Import], root: Path) -> list[str]:
    """Returns every file that reaches itself by its imports, those inside functions too."""
    edges: dict[str, set[str]] = {}
    for i in imports:
        if not i.for_types and i.package in ARROWS:
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
        package = _package(i.path)
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
    assert [room for room in ROOM_ARROWS if room in _reached(room, ROOM_ARROWS)] == []


def touches_environment(source: str) -> bool:
    """Whether code names the environment variables: `os.environ`, `os.getenv` and the like, or imports them from os."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {name.name for name in node.names})
        for node in ast.walk(ast.parse(source))
    )


def test_few_files_touch_environment_variables() -> None:
    files = [path for package in ARROWS for path in sorted((ROOT / package).rglob("*.py"))]
    touching = {path.relative_to(ROOT).as_posix() for path in files if touches_environment(path.read_text())}
    assert touching == set(TOUCH_ENVIRONMENT)
    for source in ("import os\nos.environ['A']", "import os as o\no.getenv('A')", "from os import environ"):
        assert touches_environment(source)


def test_every_family_has_the_same_files() -> None:
    for family in FAMILIES:
        held = {path.name for path in (ROOT / "pab/families" / family).glob("*.py")}
        assert held >= {"family.py", "config.py", "load.py", "weights.py"}, family
        assert family == "demo" or held >= {"sites.py", "tiny.py"}, family


def test_the_core_names_no_family() -> None:
    text = {path: path.read_text() for room in sorted(_CORE) for path in _sources(ROOT / "pab" / room)}
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
        if _is_torch_free(file) and not file.endswith("__main__.py")
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
    assert {_package(i.path) for i in imports_of(ROOT)} == set(ARROWS)


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


BROAD = {
    "pipeline/__main__.py:main",  # the process's top
    "jobs/rendering/context.py:contain",  # the clip's border
    "jobs/rendering/context.py:contain_batch",  # that of clips rendered together
    "jobs/bench/run.py:line",  # a benchmark row's border
    "jobs/rendering/shard_run.py:_kept_log",  # a job's top
    "jobs/rendering/finish.py:_run",  # threads' tops
    "jobs/store/retry.py:run",
    "cluster/dask_progress.py:_run",
}


def test_only_the_borders_of_clips_rows_and_threads_catch_everything() -> None:
    found = [f"{path}:{function}" for path, tree in _trees() for function in broad_catches(tree)]
    assert sorted(found) == sorted(BROAD)
    assert len(BROAD) <= 8


def broad_catches(tree: ast.Module) -> list[str]:
    """Returns the function around each `except Exception` (or wider, or bare) and each `suppress(Exception)`."""
    inside: dict[int, str] = {}
    for function in ast.walk(tree):  # outer functions come first
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            inside.update((id(node), function.name) for node in ast.walk(function))
    found: list[str] = []
    for node in ast.walk(tree):
        caught: list[ast.AST] = []
        if isinstance(node, ast.ExceptHandler):
            caught = list(ast.walk(node.type)) if node.type else [ast.Name("BaseException")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught = [name for argument in node.args for name in ast.walk(argument)]
        names = {getattr(name, "id", None) or getattr(name, "attr", None) for name in caught}
        if names & {"Exception", "BaseException"}:
            found.append(inside.get(id(node), "the module"))
    return found


def test_every_way_to_catch_everything_is_found() -> None:
    source = (
        "try: ...\nexcept: ...\n"
        "def a():\n    with contextlib.suppress(OSError, Exception): ...\n"
        "def b():\n    def c():\n        try: ...\n        except (ValueError, builtins.BaseException): ...\n"
        "def d():\n    try: ...\n    except (ValueError, *store_errors()): ...\n"
    )
    assert sorted(broad_catches(ast.parse(source))) == ["a", "c", "the module"]


def test_every_function_says_the_types_of_what_it_takes_and_returns() -> None:
    untyped: list[str] = []
    for path, tree in _trees():
        if path.startswith("pab/kernels/gpu/"):
            continue  # Triton's language has no types
        methods = {id(node) for held in ast.walk(tree) if isinstance(held, ast.ClassDef) for node in held.body}
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args
            positional = [*given.posonlyargs, *given.args]
            static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in node.decorator_list)
            taken = [*positional[id(node) in methods and not static :], *given.kwonlyargs, given.vararg, given.kwarg]
            untyped += [f"{path}:{node.name}({each.arg})" for each in taken if each and each.annotation is None]
            # As for mypy: an __init__ that says the types of what it takes returns None.
            if node.returns is None and not (node.name == "__init__" and any(taken)):
                untyped.append(f"{path}:{node.name} returns")
    assert untyped == []


def _trees() -> list[tuple[str, ast.Module]]:
    files = [path for package in ARROWS for path in sorted((ROOT / package).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in files]
