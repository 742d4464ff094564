"""Which mesh is taken for what was measured, and what is said of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.render_settings import RenderSettings
from jobs.reports.report_measured import measured_times
from jobs.settings import Mesh
from jobs.store.bucket import Bucket
from manifests.shards import ClipGroup
from pab.families.cogvideox.family import COGVIDEOX_2B
from pab.families.demo.family import DEMO
from pab.families.open_sora.family import OPEN_SORA
from pab.family import Family
from pipeline.exits import UsageError
from pipeline.planning.clip_times import ClipTimes, source_of, weakest
from pipeline.planning.cost import ClipCosts
from pipeline.planning.measured import (
    NOTHING_MEASURED,
    MeasuredTimes,
    joined_measured,
    read_measured_file,
    read_measured_jobs,
)
from pipeline.planning.memory import rank_bytes
from pipeline.planning.mesh import MeshChoice, MeshQuestion, candidates, choose_mesh, mesh_table
from pipeline.run.rules import RunRules, run_rules

GROUP = ClipGroup(
    model="demo", num_frames=16, height=64, width=64, num_steps=30, guided=True, broadcast="pab246"
)  # fmt: skip
UNGUIDED = replace(GROUP, guided=False)


def entry(mesh: str, seconds: float, group: ClipGroup = GROUP, **more: object) -> dict[str, object]:
    values = {
        "family": group.model, "device": "NVIDIA H200", "precision": "float32", "num_frames": group.num_frames,
        "height": group.height, "width": group.width, "num_steps": group.num_steps, "guided": group.guided,
        "broadcast": group.broadcast, "mesh": mesh, "seconds_per_clip": seconds,
    }  # fmt: skip
    return values | more


def rules_of(**changes: object) -> RunRules:
    # As nobody had measured it.
    demo: Family = replace(DEMO, figures=(), weights_digest=lambda _weights: "0" * 16, **changes)
    render_settings = RenderSettings(
        model="demo", weights=None, broadcast=None, precision="float32", device="cpu", baseline=True
    )
    return run_rules(render_settings, {"demo": demo})


def times_of(folder: Path, *entries: dict[str, object], rules: RunRules | None = None) -> ClipTimes:
    file = folder / "measured.json"
    file.write_text(json.dumps({"measured": list(entries)}))
    measured = read_measured_file(str(file), precision="float32") if entries else NOTHING_MEASURED
    return ClipTimes(ClipCosts(rules or rules_of(), "float32"), measured)


def question(groups: Mapping[ClipGroup, int] | None = None, **changes: object) -> MeshQuestion:
    values: dict[str, object] = {
        "groups": groups or {GROUP: 1000}, "ranks": 2, "jobs": 4, "goal": "auto", "precision": "float32", "keep": "full",
        "memory_bytes": None, "memory_from": "not known",
    } | changes  # fmt: skip
    return MeshQuestion(**values)


def chosen(times: ClipTimes, asked: MeshQuestion, rules: RunRules | None = None) -> MeshChoice:
    return choose_mesh(asked, times, rules or rules_of())


@pytest.mark.parametrize(
    ("seconds", "winner", "per_hour"),
    [
        ({"sp=1": 10.0, "cfg=2": 5.1, "sp=2": 5.2}, Mesh(dp=2), 360.0),
        ({"sp=1": 10.0, "cfg=2": 4.8, "sp=2": 5.2}, Mesh(cfg=2), 375.0),
        ({"sp=1": 10.0, "cfg=2": 5.1, "sp=2": 4.5}, Mesh(sp=2), 400.0),
    ],
)
def test_the_most_clips_per_gpu_hour_win(
    tmp_path: Path, seconds: Mapping[str, float], winner: Mesh, per_hour: float
) -> None:
    times = times_of(tmp_path, *(entry(mesh, took) for mesh, took in seconds.items()))
    choice = chosen(times, question())
    assert choice.mesh == winner
    (picked,) = [facts for facts in choice.considered if facts.picked]
    assert (picked.mesh, picked.times) == (winner, "measured")
    assert picked.clips_per_gpu_hour == pytest.approx(per_hour)
    assert choice.reason.startswith(f"{winner} gives the most clips per GPU-hour, {per_hour:,.1f}; next is ")


def test_for_latency_guidance_and_sequence_are_shared_by_all_ranks(tmp_path: Path) -> None:
    times = times_of(tmp_path, entry("sp=1", 8.0), entry("cfg=2,sp=2", 2.3), entry("sp=4", 2.6), entry("cfg=2", 4.2))
    assert chosen(times, question(ranks=4)).mesh == Mesh(dp=4)
    choice = chosen(times, question(ranks=4, goal="latency"))
    assert choice.mesh == Mesh(cfg=2, sp=2)
    assert (
        choice.reason
        == "dp=1,cfg=2,sp=2 gives the shortest time of one clip, 2.30 s; next is dp=1,cfg=1,sp=4 with 2.60 s"
    )


def test_a_batchs_share_counts_for_throughput_and_the_whole_batch_for_latency(tmp_path: Path) -> None:
    times = times_of(tmp_path, entry("sp=1", 4.0, batch=2), entry("sp=1", 5.0), entry("cfg=2", 2.4))
    assert times.per_clip(GROUP, Mesh(dp=2)).seconds == 4.0
    assert times.latency(GROUP, Mesh(dp=2)).seconds == 5.0
    assert chosen(times, question()).mesh == Mesh(dp=2)
    only = times_of(tmp_path, entry("sp=1", 4.0, batch=2))
    assert only.latency(GROUP, Mesh(dp=2)).seconds == 8.0


def test_a_mesh_that_cannot_fit_is_not_taken_and_the_reason_names_it(tmp_path: Path) -> None:
    times = times_of(
        tmp_path, entry("sp=1", 10.0, peak_bytes=17e9), entry("cfg=2", 5.1, peak_bytes=11e9), entry("sp=2", 5.2)
    )
    bound = question(memory_bytes=16e9, memory_from="--gpu-memory")
    choice = chosen(times, bound)
    assert choice.mesh == Mesh(cfg=2)
    assert choice.reason.endswith("dp=2,cfg=1,sp=1 would be ahead, but needs 17.0 GB of 16.0 GB (--gpu-memory)")
    assert [facts.fits for facts in choice.considered] == [False, True, True]
    small = chosen(times, replace(bound, memory_bytes=1e6))
    assert "no mesh is expected to fit into 0.0 GB (--gpu-memory); this one needs least" in small.reason
    text = "\n".join(mesh_table(choice, bound, times.measured.source))
    assert "(does not fit)" in text
    assert "* dp=1,cfg=2,sp=1" in text
    assert "measured.json, NVIDIA H200" in text


def test_clips_of_one_branch_never_take_cfg_nor_do_families_that_are_told_their_guidance(tmp_path: Path) -> None:
    assert Mesh(cfg=2) not in candidates(2, two_branches=False)
    told = rules_of(embedded_guidance=True)
    fast = times_of(tmp_path, entry("cfg=2", 0.1), entry("sp=1", 10.0), rules=told)
    choice = choose_mesh(question(), fast, told)
    assert {facts.mesh.cfg for facts in choice.considered} == {1}
    unguided = chosen(times_of(tmp_path), question({UNGUIDED: 10}))
    assert {facts.mesh.cfg for facts in unguided.considered} == {1}


def test_of_equals_the_ranks_that_exchange_least_win_and_idle_ones_count(tmp_path: Path) -> None:
    times = times_of(tmp_path)
    many = chosen(times, question(ranks=4))
    assert many.mesh == Mesh(dp=4)
    assert {facts.times for facts in many.considered} == {"estimated"}
    # A job that has a single clip would leave three of four ranks idle.
    assert chosen(times, question({GROUP: 4}, ranks=4)).mesh == Mesh(cfg=2, sp=2)
    # Clips of one size share a job, whatever their plans.
    plans = {replace(GROUP, broadcast=name): 4 for name in ("none", "pab246", "pab357", "pab579")}
    assert chosen(times, question(plans, ranks=4)).mesh == Mesh(dp=4)


def test_a_mesh_that_was_not_measured_is_scaled_from_one_that_was(tmp_path: Path) -> None:
    times, plain = times_of(tmp_path, entry("sp=1", 20.0)), times_of(tmp_path)
    timed = times.per_clip(GROUP, Mesh(cfg=2))
    assert timed.source == "scaled from measured"
    ratio = plain.per_clip(GROUP, Mesh(cfg=2)).seconds / plain.per_clip(GROUP, Mesh()).seconds
    assert timed.seconds == pytest.approx(20.0 * ratio)
    assert times.without_broadcast(GROUP, Mesh()) > 20.0


def test_a_mesh_that_is_asked_for_is_taken_and_compared_with_the_others(tmp_path: Path) -> None:
    choice = choose_mesh(question(ranks=4), times_of(tmp_path), rules_of(), asked=Mesh(sp=4))
    assert (choice.mesh, choice.reason) == (Mesh(sp=4), "dp=1,cfg=1,sp=4 was asked for with --mesh")
    assert len(choice.considered) == 5


def choice_of(
    one: Family, broadcast: str, render: RenderSettings | None = None, loops: int = 1, **changes: object
) -> MeshChoice:
    size = one.defaults
    group = ClipGroup(
        model=one.name, num_frames=size.num_frames, height=size.height, width=size.width, num_steps=size.num_steps,
        guided=True, broadcast=broadcast, loops=loops,
    )  # fmt: skip
    rules = run_rules_of(one)
    asked = question({group: 1000}, precision="bfloat16", **changes)
    return choose_mesh(asked, ClipTimes(ClipCosts(rules, "bfloat16"), render=render), rules)


def test_ranks_that_share_a_clip_wait_for_the_host_where_its_loop_is_not_recorded() -> None:
    def fastest(record_loops: str, loops: int = 1, **changes: object) -> tuple[Mesh, float]:
        render = RenderSettings(
            model="open_sora", weights=None, broadcast=None, precision="bfloat16", device="cuda", baseline=True,
            record_loops=record_loops, **changes,
        )  # fmt: skip
        choice = choice_of(OPEN_SORA, "pab246", render, loops, ranks=4, goal="latency")
        (picked,) = [facts for facts in choice.considered if facts.picked]
        return choice.mesh, picked.latency_s

    by_itself, recorded, plain = fastest("auto"), fastest("on"), fastest("off")
    assert by_itself == recorded
    assert by_itself[0].cfg * by_itself[0].sp == 4
    assert plain[1] > by_itself[1]
    assert fastest("auto", guidance_rows="in-turn") == plain, "no GPU has recorded rows in turn"
    three = fastest("on", loops=3)
    assert three == fastest("off", loops=3), "loops that begin from frames are not recorded"
    assert three == (plain[0], pytest.approx(3 * plain[1])), "the host queues each loop"


def test_what_nobody_measured_is_called_estimated() -> None:
    choice = choice_of(COGVIDEOX_2B, "pab2")
    assert {(facts.times, facts.memory) for facts in choice.considered} == {("estimated", "estimated")}
    assert re.match(r"dp=2,cfg=1,sp=1 gives the most clips per GPU-hour, [\d.]+ \(estimated\); next is ", choice.reason)
    small = choice_of(COGVIDEOX_2B, "pab2", memory_bytes=1e9, memory_from="--gpu-memory")
    assert re.search(r"this one needs least, [\d.]+ GB \(estimated\)$", small.reason)


def test_what_was_measured_elsewhere_says_where() -> None:
    where = "from figures measured on one H200, bfloat16, fused kernels (loading estimated)"
    choice = choice_of(OPEN_SORA, "pab246")
    assert {facts.times for facts in choice.considered} == {where}
    assert f" ({where}); next is " in choice.reason
    memory = "from figures measured on one H200, bfloat16, PAB246: 16.8 GB in all"
    assert {facts.memory for facts in choice.considered} == {memory}
    text = "\n".join(mesh_table(choice, question(), None))
    assert f"what a mesh needs is {memory}" in text
    assert "times measured by earlier jobs: none" in text


def test_a_sum_is_labelled_by_its_least_certain_part(tmp_path: Path) -> None:
    assert weakest({"measured", "scaled from measured"}) == "scaled from measured"
    assert weakest({"measured", source_of("one H200"), "scaled from measured"}) == "from figures measured on one H200"
    assert weakest({source_of("one H200"), source_of(None)}) == "estimated"
    half = times_of(tmp_path, entry("sp=1", 9.0))
    choice = chosen(half, question({GROUP: 2, replace(GROUP, num_steps=20): 2}))
    assert {facts.times for facts in choice.considered} == {"estimated"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r"--measured .*: .*give a run's reports/run.json or a bench's JSON"),
        ('{"measured": 3}', r"has no list `measured`"),
        (json.dumps({"measured": [entry("sp=1", 1.0) | {"height": "x"}]}), r"entry 0: height='x', needs a int"),
        (json.dumps({"measured": [entry("sp=1", 0.0)]}), r"entry 0: seconds_per_clip=0.0, batch=1, need to be above 0"),
        (json.dumps({"measured": [entry("tp=2", 1.0)]}), r"entry 0='tp=2': 'tp=2', needs auto"),
        (json.dumps({"measured": [entry("sp=1", 1.0, precision="bfloat16")]}), r"has no entry of precision float32"),
    ],
)
def test_a_file_of_times_that_cannot_be_used_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "times.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=told):
        read_measured_file(str(file), precision="float32")


def test_times_of_two_devices_are_not_compared(tmp_path: Path) -> None:
    times = times_of(tmp_path, entry("sp=1", 9.0), entry("cfg=2", 5.0), entry("sp=2", 1.0, device="other"))
    assert times.measured.meshes(GROUP) == [(1, 1), (2, 1)]
    assert MeasuredTimes().seconds(GROUP, 1, 1) is None


def test_a_runs_report_joins_what_its_jobs_measured() -> None:
    jobs = [{"measured": [entry("sp=1", 9.0, batch=1)]}, {"measured": [entry("sp=1", 8.0, batch=1)]}, {}]
    assert [each["seconds_per_clip"] for each in joined_measured(jobs)] == [8.0]


def test_the_memory_of_open_sora_is_what_was_measured_on_an_h200() -> None:
    group = ClipGroup(
        model="open_sora", num_frames=51, height=480, width=848, num_steps=30, guided=True, broadcast="pab246"
    )
    costs = ClipCosts(run_rules_of(OPEN_SORA), "bfloat16")
    plan = costs.plan(group)

    def needed(mesh: Mesh) -> float:
        memory = OPEN_SORA.cost.memory
        found = rank_bytes(OPEN_SORA, memory, group, plan, mesh, two_branches=True, precision="bfloat16", keep="full")
        assert found is not None
        return found

    assert needed(Mesh()) == pytest.approx(16.8e9, rel=0.03)  # docs/performance.md
    assert needed(Mesh(dp=2)) == needed(Mesh())
    assert needed(Mesh(cfg=2)) == needed(Mesh(sp=2)) < 0.6 * needed(Mesh())


def run_rules_of(one: Family) -> RunRules:
    fake = replace(one, weights_digest=lambda _weights: "0" * 16, pin=lambda weights: weights)
    render_settings = RenderSettings(
        model=one.name, weights=None, broadcast=None, precision="bfloat16", device="cpu", baseline=True
    )
    return run_rules(render_settings, {one.name: fake})


def record(number: int, steps: list[float], **changes: object) -> dict[str, object]:
    return {
        "clip": {
            "model": "demo", "num_frames": 16, "height": 64, "width": 64, "num_steps": 3, "broadcast": "pab246",
            "guidance_scale": 4.0,
        },
        "steps": {"pattern": ["stcm", "s.cm", "stcm"], "seconds": steps},
        "seconds": {"decode": 0.5, "denoise": sum(steps)},
        "job": {"device": "NVIDIA H200", "precision": "float32", "mesh": "dp=2,cfg=2,sp=1"},
        "batch": {"size": 1, "clips": []},
    } | changes  # fmt: skip


def test_what_a_job_measured_is_what_the_next_submit_plans_with(tmp_path: Path) -> None:
    records = [record(0, [9.0, 1.0, 2.0]), record(1, [2.0, 1.0, 2.0])]
    starts = [{"peak_cuda_bytes": 5_000_000_000, "device_bytes": 80_000_000_000}, {"peak_cuda_bytes": 0}]
    (told,) = measured_times(records, starts)
    # The warm-up of the first step is left out: two full steps of 2 s, one of 1 s, and 0.5 s of decoding.
    assert (told["mesh"], told["batch"], told["clips"], told["seconds_per_clip"]) == ("cfg=2,sp=1", 1, 2, 5.5)
    bucket = Bucket(str(tmp_path))
    assert read_measured_jobs(bucket, precision="float32") == NOTHING_MEASURED
    others: dict[str, object] = {key: {} for key in ("counts", "speedup", "throughput", "all_to_alls", "calls")}
    parts = {**others, "mesh": "cfg=2,sp=1", "clips": []}
    bucket.write_json("reports/job-00003.json", {"job": "job-00003", "starts": starts, "measured": [told], **parts})
    # Of a version that measured nothing, and one that is damaged.
    bucket.write_json("reports/job-00004.json", {"job": "job-00004", "starts": [], **parts})
    bucket.write_json("reports/job-00005.json", {})
    times = read_measured_jobs(bucket, precision="float32")
    group = replace(GROUP, num_steps=3)
    assert (times.seconds(group, 2, 1), times.peak_bytes(group, 2, 1)) == (5.5, 5e9)
    assert (times.device_bytes, times.source) == (8e10, "earlier jobs of this run, NVIDIA H200")
    assert read_measured_jobs(bucket, precision="bfloat16").clips == ()


def test_what_was_measured_in_8_bit_floats_is_not_taken_for_a_run_without_them(tmp_path: Path) -> None:
    eight = {"execution": {"linears": "float8", "attention": "default"}}
    told = measured_times([record(0, [4.0, 1.0, 4.0]), record(1, [2.0, 1.0, 2.0], **eight)], [])
    assert [each.get("float8") for each in told] == [None, ["linears"]]
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"measured": joined_measured([{"measured": told}])}))
    group = replace(GROUP, num_steps=3)
    for float8, seconds in (((), 9.5), (("linears",), 5.5)):
        assert read_measured_file(str(file), precision="float32", float8=float8).seconds(group, 2, 1) == seconds
    with pytest.raises(UsageError, match="no entry of precision float32 with 8-bit linears and attention, the run's"):
        read_measured_file(str(file), precision="float32", float8=("linears", "attention"))


def test_what_is_measured_of_batches_is_told_by_size_and_without_memory() -> None:
    pair = {"size": 2, "clips": ["a", "b"]}
    told = measured_times(
        [record(0, [2.0, 1.0, 2.0]), record(1, [1.0, 1.0, 1.0], batch=pair), record(2, [1.0, 1.0, 1.0], batch=pair)],
        [{"peak_cuda_bytes": 7}],
    )
    assert [(each["batch"], each["seconds_per_clip"], each["peak_bytes"]) for each in told] == [
        (1, 5.5, None), (2, 3.5, None),
    ]  # fmt: skip
