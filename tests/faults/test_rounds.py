"""The fault runner plans every kind, and tells what it found whatever becomes of its worlds."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import pytest

import tests.faults.__main__ as runner
from tests.cluster.daemons.processes import DaemonError
from tests.faults.books import Books
from tests.faults.kinds import ALL_KINDS
from tests.faults.one_run import FROM_THE_START, NO_CONDITIONS, POISONS
from tests.faults.rounds import Bag
from tests.faults.totals import Totals, load_totals


def plans(bag: Bag, count: int) -> list[list[str]]:
    made: list[list[str]] = []
    while sum(map(len, made)) < count:
        made.append(bag.plan(min(16, count - sum(map(len, made)))))
    return made


def test_every_kind_comes_about_as_often_as_any_other() -> None:
    counted = Counter(name for plan in plans(Bag(ALL_KINDS, random.Random(3)), 4 * len(ALL_KINDS)) for name in plan)
    assert (set(counted), min(counted.values()) >= 2, max(counted.values()) <= 6) == (set(ALL_KINDS), True, True)


def test_a_run_has_what_comes_with_it_once_one_poison_and_nothing_that_cannot_be_decided() -> None:
    for plan in plans(Bag(ALL_KINDS, random.Random(5)), 500):
        counted = Counter(plan)
        assert max(counted[name] for name in FROM_THE_START) <= 1
        assert sum(counted[name] for name in POISONS) <= 1
        assert not (counted[NO_CONDITIONS] and counted["listings stale"])


def test_the_same_seed_plans_the_same() -> None:
    one, two = (plans(Bag(ALL_KINDS, random.Random(9)), 60) for _ in range(2))
    assert one == two


def test_what_could_not_be_made_comes_next() -> None:
    bag = Bag(ALL_KINDS, random.Random(1))
    bag.plan(5)
    bag.put_back(["rank killed", "bad node"])
    assert bag.plan(3)[:2] == ["rank killed", "bad node"]


def test_a_kind_that_found_nothing_twice_lets_all_others_come_first() -> None:
    bag = Bag(["node frozen", "rank killed", "bad node"], random.Random(1))
    for _ in range(2):
        while bag.plan(1) != ["node frozen"]:
            pass
        bag.put_back(["node frozen"])
    assert sorted(bag.plan(1) + bag.plan(1)) == ["bad node", "rank killed"]
    assert bag.plan(1) == ["node frozen"]


def test_kinds_that_exclude_each_other_still_come_to_an_end() -> None:
    assert [len(plan) for plan in plans(Bag(["clip hangs", NO_CONDITIONS], random.Random(1)), 4)] == [2, 2]


PART = """\
import pathlib, shutil, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
found = pathlib.Path(sys.argv[0]).parent / words["--seed"]
if not found.exists():
    sys.exit(1)
shutil.copy(found, words["--part"])
"""


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets each world be a program: that of seed 7 dies after its first run, that of seed 8 does not start."""
    (tmp_path / "part.py").write_text(PART)
    for seed in (6, 7):
        found = Totals(
            faults=Counter({"rank killed": 10}), books=Books(clips=3, recorded=3), runs=1, worlds=int(seed != 7)
        )
        found.save(tmp_path / str(seed))
    started = subprocess.Popen

    def start(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return started([words[0], str(tmp_path / "part.py"), *words[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", start)


@pytest.mark.usefixtures("worlds")
def test_a_world_that_does_not_start_or_dies_is_told_and_what_the_others_found_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert runner.main(["--faults", "30", "--seed", "6", "--worlds", "3"]) == 1
    said = capsys.readouterr().out
    rows = {line[:52].strip(): line[52:].strip() for line in said.splitlines()}
    assert (rows["faults in all"], rows["clips"], rows["worlds that did not start, or died"]) == ("20", "6", "2")
    assert "WRONG: the world of seed 7 did not start, or died" in said
    assert "WRONG: the world of seed 8 did not start, or died: its process ended with 1" in said


def test_one_world_alone_that_does_not_start_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*, cluster: str) -> NoReturn:
        raise DaemonError(f"no {cluster} here")

    assert runner.main(["--faults", "6"], open_world=fail) == 1
    assert "did not start, or died: DaemonError('no slurm here')" in capsys.readouterr().out


def test_a_kind_that_is_none_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main(["--kinds", "rank killed,node eaten"])
    assert "'node eaten' is none of: bad node, " in capsys.readouterr().err


def test_totals_of_a_world_that_was_killed_are_whole(tmp_path: Path) -> None:
    kept = tmp_path / "part"
    assert load_totals(kept) == Totals()
    Totals(books=Books(clips=4), runs=2).save(kept)
    assert (load_totals(kept).runs, load_totals(kept).worlds) == (2, 0)
