"""`bench --rows peers` on a CPU: which methods words name, and what stands in the files, on the page and in the lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.peers.chosen import MODELS, OUR_METHODS, PEER_METHODS, chosen_peers
from jobs.bench.peers.methods import cache_dit_is_here, in_diffusers, missing_methods, our_settings, peer_settings
from pab.families import FAMILIES
from tests.pipeline.command import Command

Json = dict[str, Any]
ROWS = "peers: demo_wan MagCache, peers: demo_wan searched, peers: demo_wan cache-dit cache-dit with TaylorSeer"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Json, Path]:
    """What two methods give on a small clip of few steps."""
    folder = tmp_path_factory.mktemp("bench")
    command = Command(folder=folder, weights=folder, in_process=True)
    code, document = command.json("bench", "--rows", ROWS, "--size", "tiny", "--output", "table")
    return code, document, folder / "table"


def test_methods_are_measured_or_say_why_not(ran: tuple[int, Json, Path]) -> None:
    code, document, _ = ran
    assert (code, document["rows"]) == (0, [])
    (model,) = document["peers"]["models"]
    rows = {f"{row['side']} {row['method']}": row for row in model["rows"]}
    found = rows["diffusers MagCache"]
    assert found["status"] == "measured"
    assert 0 < found["operations"] < 1
    assert found["clip_s"] > 0
    assert found["whole_clip_s"] > 0
    assert 10 < found["psnr_db"]["worst"] <= found["psnr_db"]["median"] < 100
    plan = rows["ours searched plans"]
    assert (plan["status"], plan["why"]) == ("not run", "a plan of 30 steps; clips have 8")
    theirs = rows["cache-dit cache-dit with TaylorSeer"]
    if not cache_dit_is_here():
        assert (theirs["status"], theirs["why"]) == ("not run", "cache-dit is not installed: pip install cache-dit")


def test_table_and_picture_stand_beside_the_document_and_on_the_page(ran: tuple[int, Json, Path]) -> None:
    _, document, folder = ran
    assert json.loads((folder / "bench.json").read_text()) == document
    assert json.loads((folder / "peers.json").read_text()) == document["peers"]
    assert "| diffusers | MagCache | threshold 0.5" in (folder / "peers.md").read_text()
    assert (folder / "peers.svg").read_text().lstrip().startswith("<svg")
    page = (folder / "bench.html").read_text()
    assert "<h2>Peers beside us on the same trained weights</h2>" in page
    assert "<td>diffusers</td><td>MagCache</td>" in page
    assert "diffusers MagCache: threshold 0.5" in page  # of the picture
    assert "1 held-out prompts, 16 frames of 16x16, 8 steps, float32; batches of 1 are timed" in page


def test_runs_are_joined(ran: tuple[int, Json, Path], command: Command) -> None:
    folder = str(ran[2])
    code, document = command.json("bench", "--join", folder, folder, "--output", "both")
    assert code == 0
    (model,) = document["peers"]["models"]
    assert model["rows"] == ran[1]["peers"]["models"][0]["rows"]
    assert model["device"] == ran[1]["runs"][0]["device"]


def test_when_time_is_over_methods_say_so(command: Command) -> None:
    rows = ("--rows", "peers: demo", "--seconds", "1e-9", "--output", "short")
    code, document = command.json("bench", *rows)
    (model,) = document["peers"]["models"]
    assert {(row["status"], row["why"]) for row in model["rows"]} == {("not run", "no time left (--seconds)")}
    assert len(model["rows"]) == len(OUR_METHODS)
    assert code == 0


def test_peers_are_listed_and_only_run_by_name(command: Command) -> None:
    listed = command.json("bench", "--list")[1]
    assert "peers: demo_wan diffusers MagCache" in listed["peers"]
    assert not [name for name in listed["rows"] if name.startswith("peers")]
    assert command.json("bench", "--list", "--rows", "latte")[1]["peers"] == []
    told = command.run("bench", "--list").stdout
    assert "peers: demo_wan: its trained weights under 13 ways to leave out work" in told
    assert "min at full size; only where --rows names it" in told


def test_models_and_methods_are_chosen_by_words() -> None:
    assert [(chosen.family, chosen.methods) for chosen in chosen_peers(["peers"])] == [
        (family, trained.methods) for family, trained in MODELS.items()
    ]
    assert [chosen.family for chosen in chosen_peers(["peers: demo"])] == ["demo"]
    (one,) = chosen_peers(["peers: MagCache", "peers: demo_wan diffusers PAB", "peers: demo_wan MagCache"])
    assert one.names == ["peers: demo_wan diffusers PAB", "peers: demo_wan diffusers MagCache"]
    assert [len(chosen.methods) for chosen in chosen_peers(["peers: ours"])] == [4, 4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("peers: demo MagCache", "'MagCache' is no method of demo; allowed: peers: [FAMILY] [METHOD], FAMILY one of"),
        ("peers: wan", "'wan' is no method of demo_wan or demo; allowed"),
        ("peers2", "names no row; allowed: a group (open_sora"),
    ],
)  # fmt: skip
def test_words_that_name_nothing_are_wrong_usage(command: Command, rows: str, message: str) -> None:
    ran = command.run("bench", "--rows", rows)
    assert ran.returncode == 2
    assert message in ran.stderr


def test_every_method_that_is_listed_has_settings() -> None:
    ours = {setting.whose for setting in our_settings(FAMILIES["demo_wan"], 30, [])}
    assert ours == set(OUR_METHODS) == {setting.whose for setting in our_settings(FAMILIES["demo"], 30, [])}
    missing = missing_methods(PEER_METHODS)
    assert {setting.whose for setting in peer_settings(30, 8)} == set(PEER_METHODS) - set(missing)
    assert set(missing) == (
        {name for name in PEER_METHODS if "cache-dit" in name} if not cache_dit_is_here() else set()
    )


def test_an_older_diffusers_leaves_out_what_it_lacks() -> None:
    def has(name: str) -> bool:
        return name != "SeaCacheConfig" and in_diffusers(name)

    missing = missing_methods(["ours PAB", "diffusers SeaCache", "diffusers TaylorSeer lite"], has)
    assert [*missing] == ["diffusers SeaCache"]
    assert "has no SeaCacheConfig: pip install --upgrade diffusers" in missing["diffusers SeaCache"]
    assert "diffusers SeaCache" not in {setting.whose for setting in peer_settings(30, 8, has)}
