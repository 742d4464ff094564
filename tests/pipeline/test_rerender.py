"""Rendered clips that are asked for again: by id, and by what the index says of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.exits import UsageError
from pipeline.run.report_where import matching, parse_where
from tests.pipeline.command import Command, assert_whole, records
from tests.pipeline.conftest import SubmittedTwice

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
    assert "psnr_db is known of 0 of 3 rendered clips" in ran.stderr
    assert ran.stdout.startswith("0 rendered clips")
    assert records(output) == before
    index = pq.read_table(output / "reports/index.parquet")
    values = pa.array([10.0, 40.0, None], pa.float64())
    column = index.schema.get_field_index("psnr_db")
    pq.write_table(index.set_column(column, "psnr_db", values), output / "reports/index.parquet")
    code, document = command.json("rerender", output, "--where", "psnr < 25")
    assert (code, document["clips"]) == (0, ["c0"])
    assert command.json("rerender", output, "--clip", "c2")[1]["clips"] == ["c2"]
    assert sorted(records(output)) == ["c1"]
    assert command.json("status", output)[1]["remaining"] == 2
    code, document = command.submit(submitted_twice.manifest, output)
    assert (code, document["rendered"], document["rendered_now"]) == (0, 3, 2)
    assert_whole(output, ["c0", "c1", "c2"])
    assert {each["attempt"] for each in records(output).values()} == {1}
