"""Accepted rows: defaults, ids and digests, what any encoding of a column means."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.accept import AcceptedManifest, accept, validate
from manifests.errors import ManifestError
from manifests.schema import VERSION_KEY
from tests.manifests.conftest import Rules, accepted_rows, family, refused

Write = Callable[..., str]


def test_absent_and_null_values_get_the_defaults_of_the_family(manifest: Write, rules: Rules) -> None:
    rows = accepted_rows(manifest({"prompt": ["a cat", "a dog"], "height": [None, 256]}), rules)
    assert [row["height"] for row in rows] == [480, 256]
    assert [row["width"] for row in rows] == [832, 832]
    assert {row["broadcast"] for row in rows} == {"pab"}
    assert {row["model"] for row in rows} == {"wan"}
    assert rows[0]["guidance_scale"] == 5.0
    assert rows[0]["negative_prompt"] is None


def test_each_family_has_its_own_defaults_and_limits(manifest: Write, tmp_path: Path) -> None:
    rules = {"wan": family(), "small": family("small", height=64, width=64)}
    url = manifest({"prompt": ["a", "b"], "model": ["small", None]})
    assert [row["height"] for row in accepted_rows(url, rules)] == [64, 480]


def test_only_families_that_rows_name_are_asked_for_their_identity_and_once(manifest: Write, tmp_path: Path) -> None:
    asked = []

    def identity(name: str) -> str:
        asked.append(name)
        if name == "gone":
            raise OSError("its hub is away\ncall again")
        return f"weights of {name}"

    rules = {
        name: dataclasses.replace(family(name), identity=functools.partial(identity, name))
        for name in ("gone", "small", "unnamed", "wan")
    }
    url = manifest({"prompt": ["a"] * 40, "model": ["small", None] * 20}, row_group_size=10)
    accepted_rows(url, rules)
    assert sorted(asked) == ["small", "wan"]
    error = refused(manifest({"prompt": ["a", "b", "c"], "model": ["wan", "gone", "gone"]}), rules, tmp_path)
    assert [str(problem) for problem in error.problems] == [
        f"row {row}: model='gone', it cannot be used: its hub is away; fix the manifest" for row in (1, 2)
    ]
    assert asked.count("gone") == 1


def test_extra_columns_are_kept_with_their_types(manifest: Write, rules: Rules) -> None:
    rows = accepted_rows(manifest({"prompt": ["a"], "tags": [["x", "y"]], "source": [7]}), rules)
    assert rows[0]["tags"] == ["x", "y"]
    assert rows[0]["source"] == 7


def test_repeated_content_becomes_different_takes(manifest: Write, rules: Rules) -> None:
    rows = accepted_rows(manifest({"prompt": ["a", "b", "a", "a"]}), rules)
    ids = [row["clip_id"] for row in rows]
    assert ids[2:] == [f"{ids[0]}-1", f"{ids[0]}-2"]
    assert len({row["seed"] for row in rows}) == 4
    assert all(0 <= row["seed"] < 2**63 for row in rows)


def test_a_default_clip_id_survives_other_weights_and_its_digest_does_not(manifest: Write) -> None:
    url = manifest({"prompt": ["a"]})
    [one] = accepted_rows(url, {"wan": family()})
    [other] = accepted_rows(url, {"wan": family(identity="weights-2")})
    assert one["clip_id"] == other["clip_id"]
    assert one["digest"] != other["digest"]


def test_ids_and_digests_do_not_depend_on_the_layout_of_the_file(manifest: Write, rules: Rules) -> None:
    prompts = [f"prompt {i % 700}" for i in range(1000)]
    plain = accepted_rows(manifest({"prompt": prompts, "num_steps": [30] * 1000}), rules)
    other = pa.table(
        {
            "num_steps": pa.array([30.0] * 1000),
            "prompt": pa.array(prompts, pa.large_string()).dictionary_encode(),
        }
    )
    assert accepted_rows(manifest(other, row_group_size=37), rules) == plain


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.uint64(), pa.float32(), pa.float64()])
def test_whole_numbers_of_any_type_are_accepted(manifest: Write, rules: Rules, kind: pa.DataType) -> None:
    url = manifest({"prompt": ["a"], "num_frames": pa.array([81], kind)})
    assert accepted_rows(url, rules)[0]["num_frames"] == 81


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_strings_of_any_encoding_are_accepted(manifest: Write, rules: Rules, kind: pa.DataType) -> None:
    url = manifest({"prompt": pa.array(["ein Mädchen, 猫 🐈"]).cast(kind), "clip_id": pa.array(["x"]).cast(kind)})
    [row] = accepted_rows(url, rules)
    assert (row["prompt"], row["clip_id"]) == ("ein Mädchen, 猫 🐈", "x")


def test_one_frame_is_allowed_where_a_family_makes_images(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    images = {"wan": dataclasses.replace(family(), images=True)}
    assert accepted_rows(manifest({"prompt": ["a"], "num_frames": [1]}), images)[0]["num_frames"] == 1
    with pytest.raises(ManifestError, match=r"num_frames=80, wan needs 4n\+1 \(77, 81, 85\) or 1 for an image"):
        raise refused(manifest({"prompt": ["a"], "num_frames": [80]}), images, tmp_path)
    with pytest.raises(ManifestError, match=r"num_frames=1, wan needs"):
        raise refused(manifest({"prompt": ["a"], "num_frames": [1]}), rules, tmp_path)
    with pytest.raises(ManifestError, match=r"num_steps=0, wan needs 1 to 100; fix"):
        raise refused(manifest({"prompt": ["a"], "num_steps": [0]}), images, tmp_path)


def test_an_accepted_manifest_is_accepted_again_with_the_same_digest(
    manifest: Write, rules: Rules, tmp_path: Path
) -> None:
    url = manifest({"prompt": ["a", "b", "a"], "note": [1, 2, 3]})
    first = accept(url, rules, default_model="wan", sink=tmp_path / "one.parquet")
    again = accept(str(tmp_path / "one.parquet"), rules, default_model="wan", sink=tmp_path / "two.parquet")
    assert again.digest == first.digest
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "two.parquet"))
    assert pq.read_schema(tmp_path / "one.parquet").metadata[VERSION_KEY] == b"3"
    assert again.warnings == ("column 'digest' is computed anew; the values of the manifest are not kept",)


def test_the_manifest_digest_knows_ids_contents_and_order(manifest: Write, rules: Rules) -> None:
    def digest(*rows: tuple[str, str]) -> str:
        ids, prompts = zip(*rows, strict=True)
        url = manifest({"prompt": list(prompts), "clip_id": list(ids), "seed": [1] * len(rows)})
        return validate(url, rules, default_model="wan").digest

    same = digest(("a", "x"), ("b", "y"))
    assert digest(("a", "x"), ("b", "y")) == same
    others = [digest(("b", "y"), ("a", "x")), digest(("a", "x"), ("c", "y")), digest(("a", "x"), ("b", "z"))]
    assert len({same, *others}) == 4


def test_a_misspelled_column_is_kept_with_a_warning(manifest: Write, rules: Rules) -> None:
    result = validate(manifest({"prompt": ["a"], "num_frame": [81], "author": ["x"]}), rules, default_model="wan")
    assert result.warnings == ("column 'num_frame' is kept as an extra column; if 'num_frames' is meant, rename it",)


def test_a_refused_manifest_leaves_no_file(manifest: Write, rules: Rules, tmp_path: Path) -> None:
    sink = tmp_path / "out.parquet"
    with pytest.raises(ManifestError):
        accept(manifest({"prompt": [""]}), rules, default_model="wan", sink=sink, errors_path=tmp_path / "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.parquet", "e"]


def test_validate_says_the_same_as_accept(manifest: Write, rules: Rules) -> None:
    url = manifest({"prompt": ["a", "b"]})
    result = validate(url, rules, default_model="wan")
    assert result == accept(url, rules, default_model="wan", sink=io.BytesIO())
    assert result == AcceptedManifest(num_rows=2, digest=result.digest, warnings=())


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ({"num_frames": 80}, r"default num_frames=80: wan needs 4n\+1 \(77, 81, 85\); change the default"),
        ({"broadcast": "pub"}, r"default broadcast='pub': wan has none, pab; choose one of them"),
        ({"guidance_scale": 50}, r"default guidance_scale=50: wan needs 0 to 20"),
    ],
)
def test_a_default_that_is_not_allowed_is_no_fault_of_the_rows(
    manifest: Write, default: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        validate(manifest({"prompt": ["a"]}), {"wan": family(**default)}, default_model="wan")


def test_an_unknown_default_model_is_refused(manifest: Write, rules: Rules) -> None:
    with pytest.raises(ValueError, match="default model 'won' is none of wan; name one of them"):
        validate(manifest({"prompt": ["a"]}), rules, default_model="won")
