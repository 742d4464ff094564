"""`benchmarks.real_time`: parts of bounded time, which continue from a folder; and that the program knows their commands."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import job_gpu, many_gpus, random_weights, real_time
from benchmarks.real_time_parts import (
    PARTS,
    SEARCH,
    Command,
    LeftOut,
    Part,
    Setting,
    mesh_words,
    plan_holds,
)
from benchmarks.real_time_table import READERS
from jobs.bench.rows import chosen_rows
from pipeline.parser import build_parser

ROOT = Path(__file__).parent.parent
DOING = "import json, pathlib, time; "
WRITES = DOING + "pathlib.Path('NAME.json').write_text(json.dumps(dict(mesh='dp=2,cfg=1,sp=1', mesh_reason='best')))"


def part(name: str, script: str = WRITES, *, most_s: float = 60.0, count: bool = True) -> Part:
    """A part of one command that writes NAME.json; with `count` it also adds a line to NAME.runs."""
    script = script.replace("NAME", name)
    if count:
        script = f"open('{name}.runs', 'a').write('run'); " + script
    command = Command(name=name, words=("-c", script), result=f"{name}.json", reads="mesh")
    return Part(name=name, least_s=1, most_s=most_s, commands=lambda _setting: iter([command]))


def measure(folder: Path, parts: list[Part], *words: str) -> tuple[int, dict[str, Any]]:
    code = real_time.main(["--out", str(folder), "--weights", str(folder / "weights"), *words], parts)
    return code, json.loads((folder / "real_time.json").read_text())


def states(document: dict[str, Any]) -> dict[str, str]:
    return {name: found["status"] for name, found in document["parts"].items()}


def runs(folder: Path, name: str) -> int:
    file = folder / f"{name}.runs"
    return file.read_text().count("run") if file.exists() else 0


def test_a_part_that_fails_says_so_with_its_last_lines_and_the_next_one_goes_on(tmp_path: Path) -> None:
    fails = "print('a long story'); raise SystemExit('no such card')"
    code, document = measure(tmp_path, [part("a", fails), part("b", "print('no file')"), part("c")])
    assert (code, states(document)) == (1, {"a": "failed", "b": "failed", "c": "measured"})
    assert document["parts"]["a"]["why"] == "exit code 1, no a.json: a long story | no such card"
    assert document["parts"]["b"]["why"] == "exit code 0, no b.json: no file"
    told = (tmp_path / "summary.txt").read_text()
    assert "a: failed: exit code 1, no a.json: a long story | no such card" in told
    assert "planning chooses dp=2,cfg=1,sp=1" in told
    assert "no such card" in (tmp_path / "a.log").read_text()


def test_what_is_there_is_not_measured_again_unless_it_is_asked_for(tmp_path: Path) -> None:
    parts = [part("a"), part("b", "raise SystemExit(3)")]
    measure(tmp_path, parts)
    mended = [part("a"), part("b")]
    code, document = measure(tmp_path, mended)
    assert (code, states(document)) == (0, {"a": "measured", "b": "measured"})
    assert (runs(tmp_path, "a"), runs(tmp_path, "b")) == (1, 2)
    measure(tmp_path, mended, "--again", "a", "--parts", "b")
    assert (runs(tmp_path, "a"), runs(tmp_path, "b")) == (2, 2)
    assert len(json.loads((tmp_path / "real_time.json").read_text())["calls"]) == 3


def test_other_words_are_another_measurement(tmp_path: Path) -> None:
    measure(tmp_path, [part("a")])
    measure(tmp_path, [part("a", WRITES + "; print('other')")])
    assert runs(tmp_path, "a") == 2


def test_a_plan_that_is_there_is_taken_and_none_is_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, folder = ROOT / "benchmarks/plans/open_sora_half.json", tmp_path / "out"
    _, document = measure(folder, [part("weights"), part("plan"), part("b")], "--plan", str(plan))
    assert states(document) == {"b": "measured"}
    assert (folder / "plan.json").read_text() == plan.read_text()
    assert setting(folder, 2).plan == "plan-868747ec43bf.json"
    with pytest.raises(SystemExit):
        measure(folder, [part("b")], "--plan", str(tmp_path / "none.json"))
    assert "none.json" in capsys.readouterr().err


def test_a_plan_beside_the_one_that_was_searched_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ROOT / "benchmarks/plans/open_sora_half.json"
    measure(tmp_path, [part("plan")])
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SystemExit):
        measure(tmp_path, [part("plan"), part("b")], "--plan", str(plan))
    assert "has a searched plan; name another folder" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_text() == "{}"
    _, document = measure(tmp_path, [part("plan"), part("b")], "--plan", str(plan), "--again", "plan")
    assert states(document) == {"b": "measured"}
    assert (tmp_path / "plan.json").read_text() == plan.read_text()


def test_the_document_alone_is_enough_to_go_on_on_another_machine(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    measure(here, [part("a"), part("b", "raise SystemExit(1)")])
    there.mkdir()
    (there / "real_time.json").write_text((here / "real_time.json").read_text())
    _, document = measure(there, [part("a"), part("b")])
    assert (runs(there, "a"), runs(there, "b")) == (0, 1)
    assert states(document) == {"a": "measured", "b": "measured"}
    assert json.loads((there / "a.json").read_text())["mesh"] == "dp=2,cfg=1,sp=1"


def test_a_part_out_of_time_is_ended_with_what_it_wrote_and_the_next_one_has_its_own_time(tmp_path: Path) -> None:
    slow = WRITES + "; print('half', flush=True); time.sleep(600)"
    began = time.monotonic()
    code, document = measure(tmp_path, [part("a", slow, most_s=2.0), part("b")])
    assert time.monotonic() - began < 20
    assert (code, states(document)) == (1, {"a": "out of time", "b": "measured"})
    assert document["parts"]["a"]["why"] == "ended after 2 s, all that it may take: half"
    assert document["parts"]["a"]["commands"]["a"]["result"]["mesh"] == "dp=2,cfg=1,sp=1"


def test_no_part_begins_when_the_time_of_the_call_is_over(tmp_path: Path) -> None:
    _, document = measure(tmp_path, [part("a", WRITES + "; time.sleep(600)"), part("b")], "--seconds", "1.5")
    assert states(document) == {"a": "out of time", "b": "out of time"}
    assert document["parts"]["b"]["why"] == "0 s were left, it needs 1"
    assert runs(tmp_path, "b") == 0


CHILDREN = (
    "import subprocess, sys, pathlib, time; "
    "sleeps = [sys.executable, '-c', 'import time; time.sleep(600)']; "
    "found = [subprocess.Popen(sleeps), subprocess.Popen(sleeps, start_new_session=True)]; "
    "pathlib.Path('new').write_text(' '.join(str(each.pid) for each in found)); "
    "pathlib.Path('new').rename('pids'); time.sleep(600)"
)


def test_a_signal_ends_all_processes_and_leaves_the_files_whole(tmp_path: Path) -> None:
    parts = [part("a"), part("b", CHILDREN), part("c")]

    def end() -> None:
        while not (tmp_path / "pids").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    ender = threading.Thread(target=end)
    ender.start()
    code, document = measure(tmp_path, parts)
    ender.join()
    assert (code, states(document)) == (143, {"a": "measured", "b": "ended", "c": "ended"})
    assert document["parts"]["c"]["why"] == "a signal ended this call before it"
    assert [pid for pid in map(int, (tmp_path / "pids").read_text().split()) if lives(pid)] == []
    assert "b: ended: a signal ended this call while it ran" in (tmp_path / "summary.txt").read_text()
    mended = [part("a"), part("b"), part("c")]
    assert states(measure(tmp_path, mended)[1]) == {"a": "measured", "b": "measured", "c": "measured"}
    assert runs(tmp_path, "a") == 1


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_call_that_was_killed_outright_has_kept_what_its_parts_wrote(tmp_path: Path) -> None:
    parts = [part("a")]
    _, document = measure(tmp_path, parts)
    # As a call leaves it that is killed while a part runs, which has written some of its rows.
    document["parts"]["a"]["commands"]["a"] = {
        name: value for name, value in document["parts"]["a"]["commands"]["a"].items() if name not in ("result", "rows")
    } | {"status": "running", "why": "the call ended while it ran"}
    (tmp_path / "real_time.json").write_text(json.dumps(document))
    _, later = measure(tmp_path, [part("a"), part("b")], "--parts", "b")
    found = later["parts"]["a"]["commands"]["a"]
    assert (found["status"], found["why"]) == ("ended", "the call ended while it ran")
    assert found["rows"][0][0] == "planning chooses dp=2,cfg=1,sp=1"


def test_a_result_of_another_form_fails_its_part_alone(tmp_path: Path) -> None:
    strange = DOING + "pathlib.Path('NAME.json').write_text('[1]')"
    _, document = measure(tmp_path, [part("a", strange), part("b")])
    assert states(document) == {"a": "failed", "b": "measured"}
    assert document["parts"]["a"]["why"].startswith("a.json could not be read: TypeError")


def test_a_part_that_cannot_be_measured_here_leaves_itself_out_with_its_reason(tmp_path: Path) -> None:
    def cannot(_setting: Setting) -> Iterator[LeftOut]:
        yield LeftOut(name="a", why="one GPU")

    code, document = measure(tmp_path, [Part(name="a", least_s=1, most_s=9, commands=cannot)])
    assert (code, states(document)) == (0, {"a": "left out"})
    assert "a: left out: one GPU" in (tmp_path / "summary.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--parts", "a,cake"), "part 'cake', allowed a, b"),
        (("--again", "cake"), "part 'cake', allowed a, b"),
        (("--ranks", "4"), "has tiny models on 2 ranks, this call tiny ones on 4; name another folder"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, words: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tmp_path, [part("a"), part("b")], "--ranks", "2")
    with pytest.raises(SystemExit):
        measure(tmp_path, [part("a"), part("b")], *words)
    assert message in capsys.readouterr().err


HALF = {"steps": {"family": "open_sora", "num_steps": 30, "passes": list(range(0, 30, 2)), "groups": []}}


def setting(folder: Path, ranks: int, **changes: Any) -> Setting:
    (folder / "weights").mkdir(exist_ok=True)
    usual = Setting(folder=folder, weights=folder / "weights", ranks=ranks, full=True, measured=frozenset())
    return replace(usual, **changes)


def commands(asked: Setting) -> dict[str, Command | LeftOut]:
    return {each.name: each for part in PARTS for each in part.commands(asked)}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_command_of_every_part_is_one_that_the_program_knows(
    tmp_path: Path, ranks: int, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(HALF | {"about": about(28.0, 29.0)}))
    (tmp_path / "planned.json").write_text(json.dumps({"mesh": f"dp=1,cfg={min(2, ranks)},sp={max(1, ranks // 2)}"}))
    parsers: dict[str, Callable[[list[str]], Any]] = {
        "pipeline": build_parser().parse_args,
        "benchmarks.many_gpus": many_gpus.parser().parse_args,
    }
    found = [each for each in commands(setting(tmp_path, ranks, full=full)).values() if isinstance(each, Command)]
    modules = set()
    for command in found:
        assert command.reads in READERS
        flag, module, *words = [word.format(seconds=9, minutes=1.5, weights="weights") for word in command.words]
        assert flag == "-m"
        modules.add(module)
        options = parsers[module](words) if module in parsers else None
        if module == "benchmarks.many_gpus":
            assert many_gpus.work_of(options, str(tmp_path)).parsed
        if module == "pipeline" and options.command == "bench":
            (row,) = chosen_rows([options.rows])
            assert row.mesh.num_ranks == ranks
    others = {random_weights.__name__, job_gpu.__name__}
    assert modules == {*parsers, *others}


def about(found: float, pab246: float) -> dict[str, Any]:
    rows = [{"broadcast": name, "psnr_db": {"median": value, "least": value - 1}} for name, value in
            (("found", found), ("pab246", pab246))]  # fmt: skip
    return {"digest": "abc", "searched_psnr_db": 28.5, "held_out": rows}


def rows_asked(command: Command | LeftOut) -> tuple[list[str], list[str]]:
    assert isinstance(command, Command)
    words = list(command.words)
    return [words[words.index(flag) + 1].split(",") for flag in ("--plans", "--meshes")]  # type: ignore[return-value]


def test_parts_go_by_the_number_of_ranks_and_by_the_plan_that_was_found(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(HALF | {"about": about(28.0, 29.0)}))
    (tmp_path / "planned.json").write_text(json.dumps({"mesh": "dp=2,cfg=1,sp=1"}))
    one, two, four = (commands(setting(tmp_path, ranks)) for ranks in (1, 2, 4))
    plan = setting(tmp_path, 1).plan
    assert plan is not None
    assert (tmp_path / plan).read_text() == (tmp_path / "plan.json").read_text()
    words = ["none", "pab246", plan, "pab246 float8", f"{plan} float8"]
    assert rows_asked(two["one"]) == [words, ["one"]]
    assert rows_asked(two["shared"]) == [words[::-1], ["cfg2", "sp2"]]
    assert rows_asked(two["recorded"]) == [words[::-1], ["cfg2 recorded", "sp2 recorded"]]
    assert rows_asked(four["shared"])[1] == ["cfg2 sp2", "sp4"]
    assert isinstance(one["shared"], LeftOut)
    assert isinstance(one["recorded"], LeftOut)
    assert rows_asked(two["large"]) == [["pab246"], ["one", "cfg2", "sp2"]]
    assert rows_asked(one["large"])[1] == ["one"]
    assert rows_asked(four["dp"]) == [words[1:], ["cfg2"]]
    assert {"long", "pab579"} <= set(four)
    assert not {"long", "pab579", "dp"} & {*two, *one}
    again, shared = (two[name] for name in ("job_again", "job_shared"))
    assert isinstance(again, Command)
    assert isinstance(shared, Command)
    assert f"job: compiled {plan} float8 dp2" in again.words
    assert f"job: compiled {plan} float8 cfg2" in shared.words
    assert "job_shared" not in one
    assert isinstance(two["job_planned"], LeftOut)
    job = four["job_planned"]
    assert isinstance(job, Command)
    assert f"job: compiled {plan} float8 dp2" in job.words


def test_without_a_plan_its_rows_are_left_out_and_the_others_measured(tmp_path: Path) -> None:
    found = commands(setting(tmp_path, 2))
    assert rows_asked(found["one"])[0] == ["none", "pab246", "pab246 float8"]
    for name in ("one, rows of the plan", "shared, rows of the plan", "job_plan"):
        left = found[name]
        assert isinstance(left, LeftOut)
        assert left.why == "no searched plan: plan.json is not in DIR"
    assert "job_planned" not in found


def test_weights_are_made_only_for_a_search_that_is_to_come(tmp_path: Path) -> None:
    there = commands(setting(tmp_path, 2, measured=frozenset({"plan"}), weights=tmp_path / "none"))
    assert isinstance(there["weights"], LeftOut)
    assert isinstance(there["plan"], Command), "it is measured, which its record says"
    away = commands(setting(tmp_path, 2, weights=tmp_path / "none"))
    assert isinstance(away["weights"], Command)
    assert isinstance(away["plan"], LeftOut)


@pytest.mark.parametrize(("found", "first"), [(29.0, "job_plan"), (28.9, "job_pab246")])
def test_the_job_that_counts_comes_first(tmp_path: Path, found: float, first: str) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(HALF | {"about": about(found, 29.0)}))
    assert plan_holds(tmp_path) == (first == "job_plan")
    names = [name for name in commands(setting(tmp_path, 2)) if name in ("job_plan", "job_pab246")]
    assert names[0] == first
    assert len(names) == 2


def test_words_of_a_mesh() -> None:
    assert [mesh_words(mesh) for mesh in ("dp=1,cfg=1,sp=1", "dp=2,cfg=1,sp=1", "dp=1,cfg=2,sp=4")] == [
        "", "dp2", "cfg2 sp4",
    ]  # fmt: skip


def test_the_real_thing_with_tiny_models_and_a_second_call_that_measures_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--out", str(out), "--weights", str(tmp_path / "weights"), "--parts", "weights,plan,shared"]
    words += ["--plans", "none,plan"]
    assert real_time.main(words) == 0, capfd.readouterr()
    assert (out / "summary.txt").read_text() == capfd.readouterr().out
    document = json.loads((out / "real_time.json").read_text())
    assert states(document) == {"weights": "measured", "plan": "measured", "shared": "measured"}
    plan = json.loads((out / "plan.json").read_text())
    assert [row["broadcast"] for row in plan["about"]["held_out"]] == ["found", "pab246"]
    assert plan["about"]["held_out"][0]["call_share"]["median"] <= 0.5
    lines = {line["name"]: line for line in document["parts"]["shared"]["commands"]["shared"]["result"]["lines"]}
    own = f"plan-{plan['about']['digest']}.json"
    assert set(lines) == {f"eager {words} {mesh}, 64x96x17" for words in ("none", own) for mesh in ("cfg2", "sp2")}
    assert lines[f"eager {own} cfg2, 64x96x17"]["computed_share"] == 0.5

    assert real_time.main(words) == 0
    later = json.loads((out / "real_time.json").read_text())
    for name in ("plan", "shared"):
        assert later["parts"][name] == document["parts"][name]
    assert later["parts"]["weights"]["left_out"] == {"weights": "the plan, for which they are, is there"}


def test_the_search_is_the_one_that_the_docs_name() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    assert " ".join(SEARCH[:8]) in page
