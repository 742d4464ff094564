"""Columns sampling, flow_shift and guidance_scale_2: what they fix, what is refused, and what they add to a digest."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from manifests.accept import accept, validate
from manifests.errors import ManifestError
from manifests.read import read_clips
from manifests.rules import FamilyRules, SamplingRule
from manifests.sampling import check_defaults
from manifests.schema import VERSION_KEY
from manifests.shards import ClipGroup, plan_shards
from tests.manifests.conftest import family

Write = Callable[..., str]
FAST = SamplingRule(num_steps=4, guidance_scale=1.0, broadcast="none")


def wan(**defaults: Any) -> FamilyRules:
    return replace(
        family(**defaults),
        samplings={"fast4": FAST, "dpm": SamplingRule()},
        flow_shift=lambda height, width: 5.0 if height * width > 480 * 832 else 3.0,
        second_guidance=True,
    )


def clips_of(url: str, rules: FamilyRules) -> list[Any]:
    sink = io.BytesIO()
    accept(url, {"wan": rules, "other": family("other")}, default_model="wan", sink=sink)
    return read_clips(io.BytesIO(sink.getvalue()))


def test_a_preset_fixes_steps_guidance_and_broadcast(manifest: Write) -> None:
    rows = {"prompt": ["a"] * 4, "sampling": ["fast4", None, "dpm", "fast4"], "num_steps": [None, None, None, 4]}
    clips = clips_of(manifest(rows), wan())
    assert [(clip.sampling, clip.num_steps, clip.guidance_scale, clip.broadcast) for clip in clips] == [
        ("fast4", 4, 1.0, "none"),
        (None, 30, 5.0, "pab"),
        ("dpm", 30, 5.0, "pab"),
        ("fast4", 4, 1.0, "none"),
    ]


def test_what_the_run_says_is_for_rows_that_do_not_say_it(manifest: Write) -> None:
    rows = {"prompt": ["a", "b", "c"], "model": [None, "wan", "other"], "negative_prompt": [None, "mine", None]}
    clips = clips_of(manifest(rows), wan(sampling="fast4", negative_prompt="blurry"))
    assert [clip.sampling for clip in clips] == ["fast4", "fast4", None]
    assert [clip.negative_prompt for clip in clips] == ["blurry", "mine", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sampling": "slow"}, "sampling='slow', wan has fast4, dpm; leave it out to sample as published"),
        (
            {"sampling": "fast4", "num_steps": 50},
            "num_steps=50, sampling fast4 has num_steps=4; leave out one of the two",
        ),
        (
            {"sampling": "fast4", "guidance_scale": 5.0},
            "guidance_scale=5, sampling fast4 has guidance_scale=1; leave out",
        ),
        (
            {"sampling": "fast4", "broadcast": "pab"},
            "broadcast='pab', sampling fast4 reuses nothing: each of its 4 steps",
        ),
        (
            {"sampling": "fast4", "flow_shift": 8.0},
            "flow_shift=8, sampling fast4 has fixed noise levels; leave out one of",
        ),
        ({"sampling": "fast4", "guidance_scale_2": 3.0}, "guidance_scale_2=3, guidance is off at guidance_scale=1"),
        ({"flow_shift": 0.0}, "flow_shift=0, wan needs 0.1 to 100"),
        ({"guidance_scale_2": 21.0}, "guidance_scale_2=21, wan needs 0 to 20"),
        (
            {"model": "other", "sampling": "fast4"},
            "sampling='fast4', other has none; leave it out to sample as published",
        ),
        (
            {"model": "other", "flow_shift": 5.0},
            "flow_shift=5, the noise levels of other have no such shift; leave it out",
        ),
        (
            {"model": "other", "guidance_scale_2": 5.0},
            "guidance_scale_2=5, other has one transformer and one scale; leave",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_row(
    manifest: Write, tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    url = manifest({"prompt": ["a"], **{name: [value] for name, value in columns.items()}})
    rules = {"wan": wan(), "other": family("other")}
    with pytest.raises(ManifestError) as caught:
        validate(url, rules, default_model="wan", errors_path=tmp_path / "errors.jsonl")
    assert f"row 0: {message}" in str(caught.value)


def test_a_reusing_broadcast_that_the_user_chose_for_all_rows_is_refused_too(manifest: Write, tmp_path: Path) -> None:
    url = manifest({"prompt": ["a"], "sampling": ["fast4"]})
    with pytest.raises(ManifestError, match="broadcast='pab', sampling fast4 reuses nothing"):
        validate(
            url, {"wan": replace(wan(), broadcast_asked=True)}, default_model="wan", errors_path=tmp_path / "e.jsonl"
        )


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"sampling": "slow"}, "--sampling='slow': wan has fast4, dpm"),
        ({"sampling": "fast4", "flow_shift": 8.0}, "--flow-shift=8: sampling fast4 has fixed noise levels"),
        ({"sampling": "fast4", "guidance_scale_2": 3.0}, "--guidance-scale-2=3: guidance is off"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_any_row(defaults: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_defaults(wan(**defaults))
    check_defaults(wan(sampling="fast4"))


def test_a_digest_changes_only_with_what_is_not_published(manifest: Write) -> None:
    plain = clips_of(manifest({"prompt": ["a"], "clip_id": ["c"]}), wan())[0]
    said = {
        "sampling": [None, "dpm", None, None, None, None],
        "flow_shift": [3.0, None, 8.0, None, None, None],
        "guidance_scale_2": [5.0, None, None, 3.0, 4.0, None],
    }
    rows = {"prompt": ["a"] * 6, "clip_id": [f"c{i}" for i in range(6)], "seed": [plain.seed] * 6, **said}
    clips = clips_of(manifest(rows), wan())
    assert clips[0].digest == plain.digest, "the published shift of this size, and the first scale"
    assert clips[5].digest == plain.digest
    assert (clips[0].flow_shift, clips[0].guidance_scale_2) == (None, None)
    assert len({clip.digest for clip in clips}) == 5


def test_default_clip_ids_differ_where_rows_differ_in_sampling_alone(manifest: Write) -> None:
    rows = {"prompt": ["a"] * 4, "sampling": [None, "dpm", None, "dpm"], "flow_shift": [None, None, 8.0, 8.0]}
    assert len({clip.clip_id for clip in clips_of(manifest(rows), wan())}) == 4
    assert not any("-" in clip.clip_id for clip in clips_of(manifest(rows), wan())), "none is a repetition"
    (plain,) = clips_of(manifest({"prompt": ["a"]}), wan())
    assert clips_of(manifest(rows), wan())[0].clip_id == plain.clip_id


def test_only_manifests_that_say_it_are_of_the_newest_version(manifest: Write) -> None:
    for columns, rules, version, there in (
        ({}, wan(), b"3", False),
        ({"sampling": ["fast4"]}, wan(), b"4", True),
        ({}, wan(sampling="fast4"), b"4", True),
    ):
        sink = io.BytesIO()
        accept(manifest({"prompt": ["a"], **columns}), {"wan": rules}, default_model="wan", sink=sink)
        schema = pq.read_schema(io.BytesIO(sink.getvalue()))
        assert schema.metadata[VERSION_KEY] == version
        assert ("sampling" in schema.names) == there


def test_planning_tells_clips_apart_that_are_sampled_differently(manifest: Write) -> None:
    rows = {"prompt": ["a"] * 3, "sampling": ["fast4", None, None], "flow_shift": [None, 8.0, None]}
    sink = io.BytesIO()
    accept(manifest(rows), {"wan": wan()}, default_model="wan", sink=sink)
    batches = pq.ParquetFile(io.BytesIO(sink.getvalue())).iter_batches()
    plan = plan_shards(batches, (), cost=lambda _: 1.0, job_minutes=60, load_s={"wan": 1.0})
    kinds = {(group.sampling, group.flow_shift, group.guided) for group in plan.clip_groups}
    assert kinds == {("fast4", 0.0, False), ("", 8.0, True), ("", 0.0, True)}
    assert all(isinstance(group, ClipGroup) for group in plan.clip_groups)
