"""What README, CONTRIBUTING, CHANGELOG and docs/ name is there: paths, links, headings, modules, make targets, arrows."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline.exits import Exit
from pipeline.parser import EXITS, build_parser
from tests.rooms import ARROWS, ROOM_ARROWS

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TREES = (*ARROWS, "tests", "benchmarks", "docs", ".ci")
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)*/?")
PLACEHOLDER = "NAME"
"""Stands for any name in a path: `pab/families/NAME/family.py`."""


def page_id(page: Path) -> str:
    return page.name


def named_paths(text: str) -> list[str]:
    """Returns the paths of this repository that a page names in code letters: source files, and what lies in its trees."""
    words = [word.strip(",;") for code in _CODE.findall(text) for word in code.split()]
    return [
        word
        for word in words
        if _PATH.fullmatch(word) and (word.endswith(".py") or (word.partition("/")[0] in TREES and "/" in word))
    ]


def is_there(path: str) -> bool:
    pattern = path.rstrip("/").replace(PLACEHOLDER, "*")
    if "/" not in path:
        return any(next((ROOT / tree).rglob(pattern), None) for tree in TREES)
    return next(ROOT.glob(pattern), None) is not None


def headings(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def wrong_links(page: Path) -> list[str]:
    wrong: list[str] = []
    for link in _LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            wrong.append(link)
    return wrong


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^```(?:sh[^\n]*)?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    assert [path for path in named_paths(page.read_text()) if not is_there(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_to_a_page_and_a_heading_that_exist(page: Path) -> None:
    assert wrong_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_module_and_make_target_that_a_page_runs_exists(page: Path) -> None:
    text = page.read_text()
    modules = set(re.findall(r"python -m ((?:pipeline|pab|benchmarks|tests)\b[\w.]*)", text))
    if page.name == "CHANGELOG.md":
        modules.discard("pab.demo.train")  # the name that a command had before
    modules.discard(f"benchmarks.{PLACEHOLDER}")
    assert [module for module in sorted(modules) if importlib.util.find_spec(module.rstrip(".")) is None] == []
    targets = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= known


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_of_a_page_is_one_that_the_parser_knows(page: Path) -> None:
    for block in shell_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\S*/)?python -m pipeline ", line):
                words = shlex.split(line.partition("-m pipeline")[2], comments=True)
                assert build_parser().parse_args(words).command == words[0]


def test_readme_and_help_name_every_exit_code() -> None:
    told = (ROOT / "README.md").read_text().partition("Exit codes:")[2].partition(". A failed")[0]
    for where in (told, EXITS):
        assert {int(code) for code in re.findall(r"\b\d+\b", where)} == set(Exit)


def test_a_path_or_link_that_is_not_there_is_found(tmp_path: Path) -> None:
    text = "`pab/model.py` `jobs/gone.py` `nowhere.py` `tests/NAME/world.py` `reports/run.json` `pipeline/planning/`"
    paths = named_paths(text)
    assert paths == [
        "pab/model.py", "jobs/gone.py", "nowhere.py", "tests/NAME/world.py", "pipeline/planning/",
    ]  # fmt: skip
    assert [path for path in paths if not is_there(path)] == ["jobs/gone.py", "nowhere.py"]
    page = tmp_path / "page.md"
    page.write_text(
        "# One: two\n[a](#one-two) [b](#three) [c](page.md#one-two) [d](other.md) [e](https://example.org)\n"
    )
    assert wrong_links(page) == ["#three", "other.md"]


def test_the_pre_commit_file_runs_make_lint_and_nothing_else() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    (hook,) = repository["hooks"]
    assert repository["repo"] == "local"
    assert (hook["entry"], hook["language"], hook["pass_filenames"], hook["always_run"]) == (
        "make lint", "system", False, True,
    )  # fmt: skip
    assert re.search(
        r"^lint:.*\n\t.*ruff format --check \.\n\t.*ruff check \.\n\t.*mypy$", (ROOT / "Makefile").read_text(), re.M
    )


def test_the_arrows_of_the_architecture_page_are_those_that_are_checked() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    block = re.search(r"<!-- arrows: .*?-->\n```\n(.*?)```", text, re.DOTALL)
    assert block
    told: dict[str, set[str]] = {}
    for line in block[1].splitlines():
        rooms, _, targets = line.partition(" -> ")
        for room in rooms.split(", "):
            package = room.partition("/")[0]
            told[room] = set() if targets == "nothing" else {f"{package}/{name}" for name in targets.split(", ")}
    of_families = {"pab/families/NAME", "pab/families"}
    expected = {room: arrows for room, arrows in ROOM_ARROWS.items() if not room.startswith("pab/families")}
    assert {room: arrows for room, arrows in told.items() if room not in of_families} == expected
    assert of_families < set(told)


def test_tests_patch_nothing_of_ours() -> None:
    wrong: list[str] = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(file.read_text())
        ours = {
            alias.asname or alias.name.partition(".")[0]
            for node in ast.walk(tree)
            for alias in (node.names if isinstance(node, ast.Import | ast.ImportFrom) else ())
            if (getattr(node, "module", None) or alias.name).partition(".")[0] in ARROWS
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"setattr", "patch"}
            ):
                first = ast.unparse(node.args[0]).strip("'\"") if node.args else ""
                if first.partition(".")[0] in {*ours, *ARROWS}:
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} patches {first}")
    assert wrong == []
