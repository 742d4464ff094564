from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import accept
from manifests.rules import FamilyRules
from manifests.unique import KeySet, Repetitions, string_hashes
from tests.manifests.conftest import accepted_rows, family

Write = Callable[..., str]

GOLDEN = {
    "prompt": ["a red kite over the sea", "ein Mädchen, 猫 🐈\nsecond line", "a red kite over the sea"],
    "negative_prompt": [None, "", "blurry"],
    "seed": [None, -7, 2**63 - 1],
    "num_frames": [81, 49, None],
    "guidance_scale": [None, -0.0, 7.5],
    "broadcast": [None, "none", "pab"],
}

PINNED = [
    ("962ade3965d2a48d", 8199221610702672556, "c73965e0529a0cf2"),
    ("8d365905d1fb53cd", -7, "af10e991ce58a1a3"),
    ("7c40b06b25ba420c", 9223372036854775807, "f550c547366b7b68"),
]


def expected_digest(row: dict[str, Any], family_rules: FamilyRules) -> str:
    """The canonical form written a second time, in plain Python."""
    [bits] = struct.unpack("<q", struct.pack("<d", row["guidance_scale"] + 0.0))
    negative = row["negative_prompt"]
    lines = [
        "clip/1",
        family_rules.name,
        family_rules.identity(),
        family_rules.broadcasts[row["broadcast"]],
        *(str(row[name]) for name in ("num_frames", "height", "width", "fps", "num_steps")),
        str(bits),
        str(row["seed"]),
        "-" if negative is None else str(len(negative.encode())),
        negative or "",
        row["prompt"],
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def test_the_digest_is_the_hash_of_the_canonical_form(manifest: Write, rules: dict[str, FamilyRules]) -> None:
    rows = accepted_rows(manifest(GOLDEN), rules)
    assert [row["digest"] for row in rows] == [expected_digest(row, rules["wan"]) for row in rows]


def test_ids_seeds_and_digests_are_pinned(manifest: Write, rules: dict[str, FamilyRules]) -> None:
    rows = accepted_rows(manifest(GOLDEN), rules)
    assert [(row["clip_id"], row["seed"], row["digest"]) for row in rows] == PINNED


def test_the_digest_of_the_manifest_is_over_its_ids_and_rows_in_order(
    manifest: Write, rules: dict[str, FamilyRules]
) -> None:
    sink = io.BytesIO()
    result = accept(manifest(GOLDEN), rules, default_model="wan", sink=sink)
    rows = pq.read_table(io.BytesIO(sink.getvalue()), columns=["clip_id", "digest"]).to_pylist()
    contents = hashlib.sha256(b"".join(bytes.fromhex(row["digest"]) for row in rows))
    names = hashlib.sha256("".join(f"{row['clip_id']}\n" for row in rows).encode())
    assert result.digest == hashlib.sha256(contents.digest() + names.digest()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ["a dog"]},
        {"negative_prompt": ["blurry"]},
        {"negative_prompt": [""]},
        {"seed": [6]},
        {"num_frames": [49]},
        {"height": [512]},
        {"width": [512]},
        {"fps": [17]},
        {"num_steps": [31]},
        {"guidance_scale": [5.5]},
        {"broadcast": ["none"]},
    ],
)
def test_everything_that_changes_pixels_changes_the_digest(
    manifest: Write, rules: dict[str, FamilyRules], change: dict[str, Any]
) -> None:
    plain = {"prompt": ["a cat"], "seed": [5], "clip_id": ["same"]}
    [before] = accepted_rows(manifest(plain), rules)
    [after] = accepted_rows(manifest(plain | change), rules)
    assert before["digest"] != after["digest"]


def test_the_clip_id_changes_no_digest_when_the_seed_is_given(manifest: Write, rules: dict[str, FamilyRules]) -> None:
    rows = accepted_rows(manifest({"prompt": ["a", "a"], "seed": [5, 5], "clip_id": ["x", "y"]}), rules)
    assert rows[0]["digest"] == rows[1]["digest"]


def test_where_one_prompt_ends_is_part_of_the_digest(manifest: Write, rules: dict[str, FamilyRules]) -> None:
    columns = {"prompt": ["b\nc", "c"], "negative_prompt": ["a", "a\nb"], "seed": [1, 1]}
    first, second = accepted_rows(manifest(columns), rules)
    assert first["digest"] != second["digest"]


def test_the_rules_of_a_broadcast_count_and_not_its_name(manifest: Write) -> None:
    url = manifest({"prompt": ["a"], "seed": [1], "broadcast": ["pab"]})
    [before] = accepted_rows(url, {"wan": family()})
    changed = dataclasses.replace(family(), broadcasts={"none": "0000", "pab": "other"})
    [after] = accepted_rows(url, {"wan": changed})
    assert before["digest"] != after["digest"]


def test_string_hashes_depend_on_content_only() -> None:
    rng = np.random.default_rng(3)
    words = ["", "a", "a\0", "12345678", "123456789", "é" * 9] + [
        "".join(rng.choice(list("abc.-_"), rng.integers(0, 40))) for _ in range(500)
    ]
    whole = string_hashes(pa.array(words))
    assert string_hashes(pa.array(["xyz", *words]).slice(1)).tolist() == whole.tolist()
    assert len(set(whole.tolist())) == len(set(words))


def test_repetitions_count_over_batches() -> None:
    values = np.random.default_rng(0).integers(0, 50, 2000).astype(np.uint64)
    repetitions = Repetitions()
    counted = np.concatenate([repetitions.count(part) for part in np.array_split(values, 23)])
    assert counted.tolist() == [int((values[:i] == value).sum()) for i, value in enumerate(values)]


@pytest.mark.parametrize("kind", [list, iter, pa.array, lambda keys: pa.chunked_array([keys[:2], keys[2:]])])
def test_a_key_set_holds_exactly_its_keys(kind: Callable[[list[str]], Any]) -> None:
    keys = [f"clip-{i}.{i:016x}" for i in range(100)]
    found = KeySet(kind(keys)).contains(pa.array(["clip-5.0000000000000005", "clip-5.0000000000000006", "clip-5"]))
    assert found.tolist() == [True, False, False]
