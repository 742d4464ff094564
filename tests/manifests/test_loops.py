"""Rows whose clips have several loops."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import accept, validate
from manifests.errors import ManifestError
from manifests.read import open_manifest, read_clips
from manifests.references import SeenReference
from manifests.rules import ClipLoops, FamilyRules
from manifests.shards import PLAN_COLUMNS, plan_shards
from tests.manifests.conftest import family
from tests.manifests.test_digest import GOLDEN, PINNED

Write = Callable[..., str]


def clip_loops(
    prompt: str, num_frames: int, count: int | None, length: int | None, edit: float | None
) -> ClipLoops:  # fmt: skip
    found = count or prompt.count("|") // 2 or 1
    if found > 4:
        raise ValueError(f"1 to 4 loops of {num_frames} frames are rendered, not {found}")
    return (found, length or 5, edit or 0.0) if found > 1 else (1, None, None)


def check_mask(strategy: str, reference_frames: Sequence[int], num_frames: int, loops: int) -> None:
    if int(strategy) >= loops:
        raise ValueError(f"it names loop {strategy} of {loops}")


@pytest.fixture
def rules() -> dict[str, FamilyRules]:
    takes = {"clip_loops": clip_loops, "check_mask": check_mask}
    return {"wan": dataclasses.replace(family(), **takes), "plain": family("plain")}


def accepted(url: str, rules: dict[str, FamilyRules]) -> pa.Table:
    sink = io.BytesIO()
    accept(url, rules, default_model="wan", sink=sink)
    return pq.read_table(io.BytesIO(sink.getvalue()))


def test_rows_of_one_loop_keep_their_ids_seeds_and_digests(manifest: Write, rules: dict[str, FamilyRules]) -> None:
    table = accepted(manifest(GOLDEN), rules)
    assert [(row["clip_id"], row["seed"], row["digest"]) for row in table.to_pylist()] == PINNED
    assert table.column("loops").to_pylist() == [1, 1, 1]
    stated = accepted(
        manifest({"prompt": ["a", "a"], "clip_id": ["x", "y"], "seed": [1, 1], "loops": [None, 1]}), rules
    )
    assert len(set(stated.column("digest").to_pylist())) == 1


def test_loops_come_from_the_column_else_from_the_prompt_and_change_the_digest(
    manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path
) -> None:
    columns = {
        "prompt": ["a", "a", "a", "a", "|0| a |1| b"],
        "seed": [1] * 5,
        "loops": [None, 2, 2, 3, None],
        "condition_frame_length": [None, None, 10, None, None],
        "condition_frame_edit": [None, None, None, 0.5, None],
    }
    table = accepted(manifest(columns), rules)
    assert table.column("loops").to_pylist() == [1, 2, 2, 3, 2]
    assert table.column("condition_frame_length").to_pylist() == [None, 5, 10, 5, 5]
    assert table.column("condition_frame_edit").to_pylist() == [None, 0.0, 0.0, 0.5, 0.0]
    assert len(set(table.column("digest").to_pylist())) == len(set(table.column("clip_id").to_pylist())) == 5
    path = tmp_path / "accepted.parquet"
    pq.write_table(table, path)
    clips = read_clips(str(path))
    assert [(clip.loops, clip.condition_frame_length, clip.condition_frame_edit) for clip in clips[:2]] == [
        (1, None, None), (2, 5, 0.0),
    ]  # fmt: skip
    assert accepted(str(path), rules).column("digest").equals(table.column("digest"))


def test_a_row_that_comes_alone_has_the_id_and_digest_that_it_has_in_company(
    manifest: Write, rules: dict[str, FamilyRules]
) -> None:
    # The last batch of a manifest may have one row.
    for columns in ({"loops": 2}, {"prompt": "|0| a |1| b"}):
        row = {"prompt": "a", "seed": 1, **columns}
        alone = accepted(manifest({name: [value] for name, value in row.items()}), rules).to_pylist()
        two = accepted(manifest({name: [value, value] for name, value in row.items()}), rules).to_pylist()
        assert alone == two[:1]


def test_planning_prices_clips_by_their_loops(manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path) -> None:
    path = tmp_path / "accepted.parquet"
    pq.write_table(accepted(manifest({"prompt": ["a", "b", "c"], "loops": [1, 3, None]}), rules), path)
    pq.write_table(pq.read_table(path).drop_columns("loops"), tmp_path / "older.parquet")
    for name, expected in (("accepted", {1: 2, 3: 1}), ("older", {1: 3})):
        with open_manifest(str(tmp_path / f"{name}.parquet")) as file:
            plan = plan_shards(
                file.iter_batches(PLAN_COLUMNS), [], cost=lambda group: 10.0 * group.loops, job_minutes=5, load_s={"wan": 0.0}
            )  # fmt: skip
        assert {group.loops: count for group, count in plan.clip_groups.items()} == expected
        assert sum(shard.seconds for shard in plan.shards) == 10.0 * sum(loops * n for loops, n in expected.items())


def test_every_row_that_cannot_have_its_loops_is_told(
    manifest: Write, rules: dict[str, FamilyRules], tmp_path: Path
) -> None:
    rows = [
        {"prompt": "good", "loops": 2},
        {"prompt": "many", "loops": 9},
        {"prompt": "no taker", "loops": 2, "model": "plain"},
        {"prompt": "|0| no taker", "model": "plain"},
        {"prompt": "one is for all", "loops": 1, "model": "plain"},
        {"prompt": "strategy", "loops": 2, "references": "a.png", "mask_strategy": "1"},
        {"prompt": "strategy", "loops": 2, "references": "a.png", "mask_strategy": "2"},
    ]
    kinds = {"loops": pa.int64()}
    names = ("prompt", "model", "loops", "references", "mask_strategy")
    url = manifest(
        pa.Table.from_pylist(rows, schema=pa.schema([(name, kinds.get(name, pa.string())) for name in names]))
    )
    with pytest.raises(ManifestError) as caught:
        validate(
            url,
            rules,
            default_model="wan",
            errors_path=tmp_path / "e.jsonl",
            read_references=lambda urls: {url: SeenReference(sha256="aa", num_frames=1) for url in urls},
        )
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [(line["row"], line["column"]) for line in lines] == [
        (1, "loops"), (2, "loops"), (3, "prompt"), (6, "mask_strategy"),
    ]  # fmt: skip
    told = str(caught.value)
    assert "row 1: loops=9, 1 to 4 loops of 81 frames are rendered, not 9; fix the manifest" in told
    assert "row 2: loops=2, plain renders clips of one loop (wan of several); leave that out, or name another" in told
    assert "row 3: prompt='|0| no taker', plain renders clips of one loop" in told
    assert "row 6: mask_strategy='2', it names loop 2 of 2" in told
