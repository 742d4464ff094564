"""Rules of the source besides its imports: who reads the environment, who catches everything, and types everywhere."""

from __future__ import annotations

import ast

from tests.import_walk import ROOT
from tests.rooms import ARROWS

TOUCH_ENVIRONMENT = {
    "pipeline/run/environment.py": "the variables of settings, PAB_PIPELINE_*, and CUDA_VISIBLE_DEVICES",
    "cluster/environment.py": "what SLURM and submitit say of a job, and the variables of child processes",
    "jobs/rendering/group.py": "what SLURM says of the job that a rank belongs to, and the interface of gloo and NCCL",
    "pab/execution/compile_cache.py": "the folders of inductor and Triton, which know no other way to be told",
}
"""The files that may read or change environment variables, each with what for."""


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


BROAD = {
    "pipeline/command_line.py:run_command",  # the process's top
    "jobs/rendering/context.py:contain",  # the clip's border
    "jobs/rendering/context.py:contain_batch",  # that of clips rendered together
    "jobs/bench/run.py:line",  # a benchmark row's border
    "jobs/rendering/kept_log.py:kept_log",  # a job's top
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
