"""Figures of families: how cost grows with a clip's size, whose device they are of, how they are measured and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench.figures import Size, grown, reusing, shares, two_sizes
from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.broadcast.plan import make_plan
from pab.broadcast.rules import BroadcastRules, rules_from_dict
from pab.families import FAMILIES
from pab.families.demo.family import DEMO
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora_plan.family import OPEN_SORA_PLAN_V110
from pab.families.tiny_weights import write_tiny_weights
from pab.families.wan.family import WAN, WAN22_A14B, WAN_14B
from pab.family import FLOAT8_PARTS, CostFigures, Family, figures_document, read_figures
from pipeline.exits import UsageError
from pipeline.planning.cost import clip_request, clip_seconds
from pipeline.planning.figures import FiguresSource, float8_parts, kind_of, read_figures_file
from pipeline.planning.memory import in_float8, rank_bytes
from tests.pipeline.command import Command
from tests.pipeline.conftest import Manifest

H100, H200, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-80GB"


def group_of(family: Family, **changes: object) -> ClipGroup:
    usual = family.defaults
    group = ClipGroup(
        model=family.name, num_frames=usual.num_frames, height=usual.height, width=usual.width, num_steps=usual.num_steps,
        guided=True, broadcast="none",
    )  # fmt: skip
    return replace(group, **changes)


def step_s(family: Family, *reused: str, figures: CostFigures | None = None, **size: object) -> float:
    """Returns the seconds of a step whose sites of some kinds reuse: half of two steps, less the first one, in full."""
    group = group_of(family, num_steps=2, **size)
    rule = {kind: {"range": 2, "window": [-1, 9999]} for kind in reused}
    rules = rules_from_dict(rule) if rule else BroadcastRules()
    cost = replace(figures or family.cost, decode_s_per_pixel=0.0)
    full, two = (
        clip_seconds(family, group, make_plan(each, (900.0, 800.0), family.sites), cost)
        for each in (BroadcastRules(), rules)
    )
    return two - full / 2


@pytest.mark.parametrize(
    ("family", "float8", "measured_ms"),
    [
        (WAN, (), (905, 845, 183)), (WAN_14B, (), (5030, 4574, 1158)),
        (WAN, FLOAT8_PARTS, (685, 635, 130)), (WAN_14B, FLOAT8_PARTS, (3569, 3237, 748)),
    ],
    ids=lambda each: str(each)[:20],
)  # fmt: skip
def test_steps_of_wan_are_planned_as_measured(
    family: Family, float8: tuple[str, ...], measured_ms: tuple[int, ...]
) -> None:
    size = {"height": 480, "width": 832, "num_frames": 81}
    figures = FiguresSource(device=H100).of(family, "bfloat16", float8)
    assert figures.measured is not None
    planned = [step_s(family, *reused, figures=figures, **size) for reused in ((), ("cross",), ("spatial", "cross"))]
    assert [1e3 * each for each in planned] == pytest.approx(measured_ms, rel=0.005)  # docs/performance.md


def test_a_step_of_open_sora_with_8_bit_products_is_planned_as_measured() -> None:
    figures = FiguresSource(device=H200).of(OPEN_SORA, "bfloat16", ("linears",))
    size = {"height": 480, "width": 848, "num_frames": 51}
    kinds = ("cross", "temporal", "spatial")
    planned = [step_s(OPEN_SORA, *kinds[:i], figures=figures, **size) for i in range(4)]
    assert [1e3 * each for each in planned] == pytest.approx((178, 154, 128, 77), rel=0.01)  # docs/performance.md


def test_8_bit_floats_that_were_not_measured_are_planned_by_the_ratios_of_others_and_called_estimated() -> None:
    source = FiguresSource(device=H100)
    products = source.of(WAN_14B, "bfloat16", ("linears",))
    assert products.measured is None
    assert step_s(WAN_14B, figures=products, height=480, width=832) < 4.2
    told = source.told(WAN_14B, "bfloat16", ("linears",))
    assert told.endswith(": estimated")
    video = FAMILIES["hunyuan_video"]
    plain, eight = source.of(video, "bfloat16"), source.of(video, "bfloat16", FLOAT8_PARTS)
    assert (eight.measured, eight.float8) == (None, FLOAT8_PARTS)
    assert eight.linear_s / plain.linear_s == pytest.approx(0.70)
    assert eight.quadratic_s / plain.quadratic_s == pytest.approx(0.77)
    assert "scaled for --linears float8 and --attention float8: estimated" in source.told(
        video, "bfloat16", FLOAT8_PARTS
    )
    # A card without them has no such figures to offer, one without Hopper's attention half of them.
    assert [float8_parts(name) for name in (H100, "NVIDIA L40S", A100, "cpu", "of tomorrow")] == [
        FLOAT8_PARTS, ("linears",), (), (), (),
    ]  # fmt: skip


@pytest.mark.parametrize(("broadcast", "keep", "measured_gb"), [("pab2-6", "int8", 46.4), ("none", "full", 18.9)])
def test_memory_with_8_bit_products_is_planned_as_measured(broadcast: str, keep: str, measured_gb: float) -> None:
    group = group_of(WAN_14B, height=480, width=832, broadcast=broadcast)
    plan = WAN_14B.plan(clip_request(WAN_14B, group), WAN_14B.presets[broadcast], "bfloat16")
    memory = WAN_14B.figures[0].memory
    assert memory is not None
    needed = rank_bytes(
        WAN_14B, in_float8(memory, "bfloat16"), group, plan, Mesh(), two_branches=True, precision="bfloat16", keep=keep
    )
    assert needed == pytest.approx(measured_gb * 1e9, rel=0.04)  # docs/performance.md


def test_a_dry_run_tells_what_8_bit_floats_would_take_and_plans_with_them_if_they_are_asked_for(
    command: Command, tmp_path: Path
) -> None:
    prompts, weights = tmp_path / "prompts.parquet", tmp_path / "wan"
    pq.write_table(pa.table({"prompt": ["a"], "height": [480], "width": [832], "num_frames": [81]}), prompts)
    write_tiny_weights("wan", weights)
    words = [
        "submit", prompts, "--output", tmp_path / "out", "--model", "wan", "--weights", weights, "--cluster", "local",
        "--device", "cuda", "--gpu-kind", "H100", "--gpu-memory", "80", "--dry-run",
    ]  # fmt: skip
    _, plain = command.json(*words)
    told = plain["float8"]["wan"]
    assert told["flags"] == "--linears float8 --attention float8"
    assert told["times"].startswith("from figures measured on one H100 80 GB, bfloat16, 8-bit products and attention")
    code, eight = command.json(*words, "--linears", "float8", "--attention", "float8")
    assert (code, eight["float8"]) == (0, {})
    assert told["seconds"] == pytest.approx(eight["groups"][0]["seconds_per_clip"])
    assert told["memory_bytes"] == eight["meshes"][0]["memory_bytes"]
    assert told["seconds"] < 0.8 * plain["groups"][0]["seconds_per_clip"]
    assert "8-bit products and attention" in eight["figures"]["wan"]
    text = command.run(*words).stdout
    assert "wan with --linears float8 --attention float8: " in text
    assert "it changes pixels, so it is only done if you say so" in text


def test_three_dimensional_attention_grows_with_all_tokens_and_factorised_with_a_latent_frames() -> None:
    for family in FAMILIES.values():
        size = family.defaults.num_frames, family.defaults.height, family.defaults.width
        tokens, frames = family.num_tokens(*size), family.latent_frames
        assert family.seen_tokens(*size) == (tokens if frames is None else tokens / frames(size[0])), family.name
    assert {name for name, family in FAMILIES.items() if family.latent_frames} == {
        "demo", "open_sora", "latte", "open_sora_plan_v110", "open_sora_plan_v110_221",
    }  # fmt: skip
    # Attention alone: twice the frames take four times as long in Wan, twice as long in Open-Sora.
    wan, sora = (
        replace(family, cost=replace(family.cost, linear_s=1e-30), latent_frames=family.latent_frames)
        for family in (WAN, OPEN_SORA)
    )
    ratio = step_s(wan, num_frames=81) / step_s(wan, num_frames=41)
    assert ratio == pytest.approx((21 / 11) ** 2)
    assert step_s(sora, num_frames=102) / step_s(sora, num_frames=51) == pytest.approx(2.0)
    assert step_s(OPEN_SORA) == pytest.approx(0.230, rel=0.01)  # as measured on an H200


def test_a_run_that_decodes_fast_is_planned_with_what_that_was_measured_to_take(tmp_path: Path) -> None:
    pixels = 81 * 480 * 832
    published, fast = (FiguresSource(device=H100, fast_decode=each).of(WAN, "bfloat16") for each in (False, True))
    assert published.decode_s_per_pixel * pixels == pytest.approx(6.9, rel=0.01)
    assert fast.decode_s_per_pixel * pixels == pytest.approx(1.33, rel=0.01)
    assert fast.memory is not None
    assert fast.memory.decode_bytes_per_pixel * 480 * 832 == pytest.approx(5.0e9, rel=0.01)
    assert replace(fast, decode_s_per_pixel=published.decode_s_per_pixel, memory=published.memory) == published
    half = FiguresSource(device=A100, fast_decode=True).of(WAN, "bfloat16").decode_s_per_pixel
    assert half == pytest.approx(fast.decode_s_per_pixel * 989 / 312), "scaled as all figures are"
    assert FiguresSource(fast_decode=True).of(OPEN_SORA_PLAN_V110, "bfloat16") == OPEN_SORA_PLAN_V110.cost
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures_document({"wan": [published]})))
    assert read_figures(path)["wan"] == (published,)


def test_decoding_of_open_sora_plan_is_planned_as_it_was_measured() -> None:
    assert OPEN_SORA_PLAN_V110.cost.decode_s_per_pixel * 65 * 512 * 512 == pytest.approx(2.7, rel=0.01)


def test_figures_of_the_runs_own_device_are_taken_and_others_are_scaled_and_called_estimated() -> None:
    own = FiguresSource(device=H100).of(WAN_14B, "bfloat16")
    assert own == WAN_14B.figures[0]
    assert own.measured is not None
    same_speed = FiguresSource(device=H200).of(WAN_14B, "bfloat16")
    assert (same_speed.measured, same_speed.linear_s) == (None, own.linear_s)
    older = FiguresSource(device=A100).of(WAN_14B, "bfloat16")
    assert older.measured is None
    assert older.quadratic_s / own.quadratic_s == pytest.approx(989 / 312)
    assert FiguresSource().of(WAN_14B, "bfloat16") == own, "if nobody says what the jobs get, it is what was measured"
    assert FiguresSource(device=H100).of(WAN_14B, "float32").measured is None
    assert FiguresSource(device=H100).of(WAN22_A14B, "bfloat16").measured is None
    told = FiguresSource(device=A100).told(WAN_14B, "bfloat16")
    assert told.startswith("measured on one H100 80 GB")
    assert told.endswith(f"scaled to {A100} by the peak rates of both: estimated")
    assert [kind_of(name) for name in (H100, "cpu (x86_64)", "NVIDIA GH1", "NVIDIA L40S")] == [
        "H100", "cpu", "NVIDIA GH1", "L40S",
    ]  # fmt: skip


def test_the_demo_on_a_gpu_is_planned_by_what_the_host_does_in_a_step() -> None:
    group = group_of(DEMO)
    plan = make_plan(BroadcastRules(), [1.0] * group.num_steps, DEMO.sites)
    on_cpu, on_gpu = (
        clip_seconds(DEMO, group, plan, FiguresSource(device=device).of(DEMO, "float32")) for device in ("cpu", H200)
    )
    (measured,) = DEMO.figures
    assert measured.fixed_step_s == pytest.approx(8.2e-3, rel=0.01)
    assert on_gpu == pytest.approx(group.num_steps * measured.fixed_step_s, rel=0.02)
    assert on_cpu / on_gpu > 8, "the first plan for GPUs, made by a CPU's figures, told 17 minutes of 94 s"


def test_what_the_user_measured_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    mine = replace(WAN_14B.figures[0], device=A100, measured="one A100", linear_s=1.0)
    file.write_text(json.dumps(figures_document({"wan_14b": [mine]})))
    own = read_figures_file(str(file), FAMILIES)
    assert FiguresSource(device=A100, own=own).of(WAN_14B, "bfloat16") == mine
    assert FiguresSource(device=H100, own=own).of(WAN_14B, "bfloat16") == WAN_14B.figures[0]


def test_all_figures_that_come_with_the_program_are_measured_and_name_families() -> None:
    files = sorted((Path(__file__).parent.parent.parent / "pab/families").glob("*/figures.json"))
    assert len(files) >= 4
    for file in files:
        for name, held in read_figures(file).items():
            assert FAMILIES[name].figures == held
            assert all(each.measured for each in held)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("{", r"--figures .*mine.json: .*write it with: python -m pipeline bench --figures FAMILY"),
        ({"format": 9}, "needs an object with format=1"),
        ({"family": "sora"}, "family 'sora' is not known, allowed: demo, "),
        ({"linear_s": -1.0}, "figures 0: linear_s=-1.0, needs a number of 0 or more"),
        ({"linear_s": 0}, "figures 0: linear_s=0, needs more than 0"),
        ({"float8": ["norms"]}, r"float8=\['norms'\]: 'norms' is not known, allowed: linears, attention"),
        ({"kind_shares": {"mlp": 1.5}}, "may add up to 1 at most"),
        ({"speed": 3}, "figures 0: .*speed"),
    ],
)
def test_a_file_of_figures_that_cannot_be_used_is_refused(tmp_path: Path, change: object, told: str) -> None:
    file = tmp_path / "mine.json"
    document = json.loads(json.dumps(figures_document({"wan": WAN.figures})))
    if isinstance(change, dict):
        target = document if "format" in change else document["figures"][0]
        target.update(change)
    file.write_text(change if isinstance(change, str) else json.dumps(document))
    with pytest.raises(UsageError, match=told):
        read_figures_file(str(file), FAMILIES)


def test_two_sizes_say_what_grows_with_tokens_and_what_with_those_each_one_sees() -> None:
    request = clip_request(WAN, group_of(WAN))
    sizes = [
        Size(request=request, tokens=tokens, seen=tokens, seconds=2e-3 * tokens + 3e-6 * tokens**2)
        for tokens in (500, 1000)
    ]
    linear_s, quadratic_s, fixed_step_s = grown(*sizes)
    assert (linear_s, quadratic_s, fixed_step_s) == pytest.approx((2e-3, 3e-6, 0.0))
    found = shares({"spatial": 4.0, "cross": 0.5, "mlp": 0.7}, linear_s, quadratic_s, sizes[1])
    assert found == pytest.approx({"spatial": 0.5, "cross": 0.25, "mlp": 0.35}, abs=0.051)
    assert sum(found.values()) <= 1
    assert sum(shares({"spatial": 0.0, "mlp": 9.0}, linear_s, quadratic_s, sizes[1]).values()) <= 1


@pytest.mark.parametrize(
    ("seconds", "grows"),
    [((0.5, 0.6), (2e-4, 0.4)), ((0.0102, 0.0083), (8.3e-8, 0.008217))],
    ids=["partly", "not at all, and noise"],
)
def test_a_step_that_does_not_grow_with_its_tokens_is_the_hosts(
    seconds: tuple[float, float], grows: tuple[float, float]
) -> None:
    request = clip_request(DEMO, group_of(DEMO))
    sizes = [
        Size(request=request, tokens=tokens, seen=tokens / 8, seconds=taken)
        for tokens, taken in zip((500, 1000), seconds, strict=True)
    ]
    linear_s, quadratic_s, fixed_step_s = grown(*sizes)
    assert quadratic_s == 0.0
    assert (linear_s, fixed_step_s) == pytest.approx(grows)


def test_a_family_of_one_size_is_told_that_figures_need_two() -> None:
    family = FAMILIES["cogvideox_5b_i2v"]
    with pytest.raises(ValueError, match="no clip is smaller than 49x480x720, and figures need two sizes"):
        two_sizes(family, clip_request(family, group_of(family)))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "cogvideox_5b_i2v"])
def test_every_family_has_two_sizes_and_steps_that_reuse_one_kind_alone(name: str) -> None:
    family = FAMILIES[name]
    small, large = two_sizes(family, clip_request(family, group_of(family)))
    tokens = [family.num_tokens(each.num_frames, each.height, each.width) for each in (small, large)]
    assert tokens[0] < tokens[1]
    timesteps = family.timesteps(large, "bfloat16")
    for kind in {site.kind for site in family.sites}:
        plan = make_plan(reusing(kind, family.sites, len(timesteps)), timesteps, family.sites)
        for i, site in enumerate(family.sites):
            reused = [step for step in range(plan.num_steps) if plan.reuses(step, i)]
            assert bool(reused) == (site.kind == kind)
            assert all(step % 2 == 1 for step in reused)


def test_the_command_measures_a_family_and_submit_plans_with_what_it_wrote(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    file = tmp_path / "mine" / "figures.json"
    file.parent.mkdir()
    older = [replace(DEMO.cost, measured="older"), replace(DEMO.cost, device=H200)]
    file.write_text(json.dumps(figures_document({"demo": older, "wan": WAN.figures})))
    words = ["bench", "--figures", "demo", "--size", "tiny", "--weights", str(command.weights), "--output"]
    code, entry = command.json(*words, file.parent)
    assert code == 0
    assert entry["measured"] == "one cpu, float32, eager, tiny models"
    assert entry["load_s"] > 0
    assert entry["decode_s_per_pixel"] > 0
    assert set(entry["kind_shares"]) == {"spatial", "temporal", "cross", "mlp"}
    assert len(entry["about"]["step_ms"]) == 2
    held = read_figures(file)
    assert held["wan"] == WAN.figures
    assert [(each.device, each.measured) for each in held["demo"]] == [(H200, None), ("cpu", entry["measured"])]
    _, shown = command.submit(manifest(1), tmp_path / "out", "--dry-run", "--figures", str(file))
    assert shown["times"] == "from figures measured on one cpu, float32, eager, tiny models"
    assert shown["figures"] == {"demo": "measured on one cpu, float32, eager, tiny models"}


def test_the_command_measures_8_bit_floats_as_an_entry_of_their_own(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    plain = replace(WAN.cost, measured="one cpu", device="cpu", precision="float32")
    file.write_text(json.dumps(figures_document({"wan": [plain, replace(plain, float8=FLOAT8_PARTS)]})))
    words = ["bench", "--figures", "wan", "--size", "tiny", "--output", tmp_path]
    _, entry = command.json(*words, "--linears", "float8", "--attention", "float8")
    assert entry["measured"] == (
        "one cpu, float32, 8-bit products and attention, eager, tiny models (loading and decoding estimated)"
    )
    assert entry["memory"]["float8_parameters"] > 0
    held = read_figures(file)["wan"]
    assert [(each.float8, each.measured) for each in held] == [((), "one cpu"), (FLOAT8_PARTS, entry["measured"])]
    assert FiguresSource(device="cpu", own={"wan": held}).of(WAN, "float32", FLOAT8_PARTS) == held[1]
    _, refused = command.json("bench", "--figures", "demo", "--linears", "float8")
    assert "demo has no 8-bit matrix products, only full" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sora", "--figures 'sora' is no family, allowed: demo, "),
        ("open_sora_plan_v120", "open_sora_plan_v120 has no random weights here, open_sora, latte, "),
    ],
)
def test_a_family_that_cannot_be_measured_is_told(command: Command, name: str, told: str) -> None:
    ran = command.run("bench", "--figures", name)
    assert ran.returncode == 2
    assert told in ran.stderr
