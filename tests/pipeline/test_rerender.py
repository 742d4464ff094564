"""Rendered clips that are asked for again: by id, and by what the index says of them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.store.bucket import Bucket
from pipeline.exits import UsageError
from pipeline.run.claims import driving
from pipeline.run.report_where import matching, parse_where
from pipeline.run.reports_of_now import reports_of_now
from tests.pipeline.command import FAST, Command, assert_whole, records
from tests.pipeline.conftest import Manifest, SubmittedTwice

SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("psnr_db", pa.float64()), ("height", pa.int64()), ("alarms", pa.list_(pa.string()))]
)
ROWS: list[dict[str, object]] = [
    {"clip_id": "a", "psnr_db": 20.0, "height": 480, "alarms": ["flickering"]},
    {"clip_id": "b", "psnr_db": 30.0, "height": 720, "alarms": []},
    {"clip_id": "c", "psnr_db": None, "height": 720, "alarms": None},
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("psnr < 25", "a"),
        ("psnr>=20", "ab"),
        ("height = 720 and psnr > 1e1", "b"),
        ("alarms has flickering", "a"),
        ("clip_id != 'a'", "bc"),
        ("height == 720", "bc"),
    ],
)
def test_rows_are_found_by_conditions(text: str, found: str) -> None:
    assert "".join(str(row["clip_id"]) for row in matching(ROWS, parse_where(text, SCHEMA))) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("psnr", "is no condition, needs COLUMN SIGN VALUE"),
        ("sharpness < 3", "no column 'sharpness', allowed: clip_id, psnr_db"),
        ("psnr < low", "'low', column psnr_db needs a number"),
        ("psnr < nan", "'nan', column psnr_db needs a number"),
        ("clip_id < a", "holds no numbers, allowed: = and !="),
        ("alarms = flicker", "so ask with has"),
        ("height has 3", "so has does not fit"),
    ],
)
def test_wrong_conditions_are_told_with_what_is_allowed(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_where(text, SCHEMA)


def test_rendered_clips_are_rendered_again_by_id_and_by_the_index(
    command: Command, submitted_twice: SubmittedTwice, tmp_path: Path
) -> None:
    output = shutil.copytree(submitted_twice.output, tmp_path / "out")
    before = records(output)
    code, document = command.json("rerender", output, "--clip", "c7")
    assert (code, "no such clip is rendered" in document["error"]["message"]) == (2, True)
    ran = command.run("rerender", output, "--where", "psnr < 25")
    assert ran.stdout == "0 rendered clips will be rendered again by the next submit\n"
    assert "psnr_db is known of 0 of 3 rendered clips" in ran.stderr
    assert records(output) == before
    index = pq.read_table(output / "reports/index.parquet")
    values = pa.array([10.0, 40.0, None], pa.float64())
    column = index.schema.get_field_index("psnr_db")
    pq.write_table(index.set_column(column, "psnr_db", values), output / "reports/index.parquet")
    code, document = command.json("rerender", output, "--where", "psnr < 25")
    assert (code, document["clips"]) == (0, ["c0"])
    with driving(Bucket(str(output)), "0"):
        ran = command.run("rerender", output, "--clip", "c2")
    who = rf"the submit that is at work \(process {os.getpid()} on .*\), or else by the next one; the records"
    assert re.match(rf"1 rendered clip will be rendered again by {who}", ran.stdout), ran.stdout
    assert sorted(records(output)) == ["c1"]
    assert command.json("status", output)[1]["remaining"] == 2
    code, document = command.submit(submitted_twice.manifest, output)
    assert (code, document["rendered"], document["rendered_now"]) == (0, 3, 2)
    assert_whole(output, ["c0", "c1", "c2"])
    assert {each["attempt"] for each in records(output).values()} == {1}


def test_clips_count_once_after_they_were_rendered_again_and_not_after_they_left(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    url = manifest(2, num_steps=[30] * 2)
    flags = [flag for flag in FAST if flag != "--no-baseline"]
    words = ["submit", url, "--output", output, "--weights", command.weights, *flags, "--quality-samples", "2"]

    def counted(document: dict[str, Any]) -> list[int]:
        return [document["speedup"][how]["clips"] for how in ("measured", "derived")] + [document["quality"]["clips"]]

    first = command.json(*words)[1]
    assert command.run("rerender", output, "--clip", "c0", "--clip", "c1").returncode == 0
    again = command.json(*words)[1]
    assert counted(first) == counted(again) == counted(command.json("status", output)[1]) == [2, 2, 2]
    assert first["guard"] == again["guard"] | {"stepped_down": first["guard"]["stepped_down"]}
    assert json.loads((output / "reports/run.json").read_text())["speedup"]["measured"]["clips"] == 2
    shorter = command.json(*words, "--limit", "1", "--prune")[1]
    assert counted(shorter) == counted(command.json("status", output)[1]) == [1, 1, 1]


def test_a_report_without_some_of_its_clips_tells_of_the_others() -> None:
    def row(name: str, denoise_s: float, rendered: str = "mild") -> dict[str, Any]:
        return {
            "clip_id": name, "digest": "d", "outcome": "rendered", "model": "demo", "broadcast": "half", "num_steps": 4,
            "denoise_s": denoise_s, "settled_s": denoise_s, "derived_baseline_s": 8.0, "pab_factor_derived": 8.0 / denoise_s,
            "rendered": rendered,
        }  # fmt: skip

    guard = {"model": "demo", "broadcast": "half", "num_steps": 4, "rendered": "mild", "clips": 2}
    derived = {"pab_factor": 2.0, "clips": 2, "denoise_s": 8.0, "baseline_denoise_s": 16.0, "full_step_s": 2.0}
    older = {
        "clips": [row("a", 4.0), row("b", 4.0), {"clip_id": "c", "digest": "d", "outcome": "left", **names_of(guard)}],
        "baselines": [], "speedup": {"measured": None, "derived": derived}, "guard": [guard],
    }  # fmt: skip
    newer = {**older, "clips": [row("a", 2.0)], "guard": [guard | {"clips": 1}]}
    assert reports_of_now([older, newer], {"a.d", "b.d"})[1] == newer
    (first, second) = reports_of_now([older, newer], {"a.d", "b.d"})
    assert [each["clip_id"] for each in first["clips"]] == ["b", "c"]
    assert first["speedup"]["derived"] == derived | {"clips": 1, "denoise_s": 4.0, "baseline_denoise_s": 8.0}
    assert (first["guard"], second["guard"]) == ([guard | {"clips": 1}], [guard | {"clips": 1}])
    # Of no clip that counts, no plan was judged either.
    assert reports_of_now([newer], set())[0]["guard"] == []


def names_of(guard: dict[str, Any]) -> dict[str, Any]:
    return {name: guard[name] for name in ("model", "broadcast", "num_steps")}
