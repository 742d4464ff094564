"""`--compile auto`: what a run's jobs would save by compiled blocks is weighed against the seconds of compiling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.render_settings import CompileChoice, RenderSettings
from jobs.settings import Mesh
from manifests.shards import ClipGroup
from pab.families import FAMILIES
from pab.families.demo.family import DEMO as DEMO_FAMILY
from pipeline.planning.clip_times import ClipTimes
from pipeline.planning.compiling import GRAPH_S, START_S, weigh_compiling
from pipeline.planning.cost import ClipCosts
from pipeline.planning.figures import FiguresSource
from pipeline.run.rules import RunRules, run_rules
from pipeline.run.run import asked_run, load_run, open_bucket, start_run
from pipeline.run.settings import MachineSettings, RunSettings
from tests.pipeline.command import Command
from tests.pipeline.conftest import Manifest

GPU = RenderSettings(precision="auto", device="cuda", compile=True, decode="fast", baseline=False)
DEMO = ClipGroup(model="demo", num_frames=16, height=64, width=64, num_steps=30, guided=True, broadcast="pab246")
OPEN_SORA = replace(DEMO, model="open_sora", num_frames=51, height=480, width=848)
SMALL = replace(OPEN_SORA, height=144, width=256)
WITHOUT_FIGURES = replace(DEMO_FAMILY, figures=())
ONE = {
    each.name: replace(each, weights_digest=lambda _weights: "w", pin=lambda weights: weights)
    for each in (WITHOUT_FIGURES, FAMILIES["open_sora"])
}


COMPILED_DECODER = {**ONE, "open_sora": replace(ONE["open_sora"], decoder_compile_s=48.0)}


def rules_of(render: RenderSettings = GPU) -> RunRules:
    return run_rules(render, ONE)


def weighed(groups: dict[ClipGroup, int], render: RenderSettings = GPU, *, job_s: float = 3600.0, families=ONE):
    rules = run_rules(render, families)
    source = FiguresSource(device="NVIDIA H100 80GB HBM3", on_gpu=True)
    times = ClipTimes(ClipCosts(rules, render.precision, source))
    return weigh_compiling(groups, times, rules, render, mesh=Mesh(), job_s=job_s)


@pytest.mark.parametrize(
    ("groups", "compiled"),
    [
        ({DEMO: 8}, False),
        ({DEMO: 5_000}, True),
        ({OPEN_SORA: 2}, False),
        ({OPEN_SORA: 4}, False),
        ({OPEN_SORA: 200}, True),
        ({SMALL: 8}, False),
        ({SMALL: 100}, True),
    ],
)
def test_blocks_are_compiled_where_the_clips_save_more_than_compiling_takes(
    groups: dict[ClipGroup, int], compiled: bool
) -> None:
    (choice,) = weighed(groups).values()
    assert choice.compiled is compiled
    assert choice.why.startswith("compiled blocks, because 1 job" if compiled else "eager blocks, because 1 job")


def test_the_reason_has_graphs_seconds_and_what_is_saved() -> None:
    graphs = ClipCosts(rules_of(), "auto").plan(DEMO).graphs
    (choice,) = weighed({DEMO: 8}).values()
    seconds = START_S + GRAPH_S * graphs
    assert f"up to {graphs} graphs each, about {seconds:.0f} s in all, and save about 1 s of " in choice.why
    both = weighed({DEMO: 8}, replace(GPU, baseline=True))["demo"].why
    assert f"up to {graphs} graphs each, about {seconds:.0f} s in all, and save about 1 s of 7 s" in both


def test_every_job_compiles_and_a_compiled_decoder_counts() -> None:
    assert weighed({OPEN_SORA: 60})["open_sora"].compiled
    assert not weighed({OPEN_SORA: 60}, job_s=20.0)["open_sora"].compiled, "many short jobs"
    published = weighed({OPEN_SORA: 8}, replace(GPU, decode="published"), families=COMPILED_DECODER)["open_sora"]
    fast = weighed({OPEN_SORA: 8}, families=COMPILED_DECODER)["open_sora"]
    assert (published.compiled, fast.compiled) == (True, False)


def test_a_run_that_begins_says_what_was_weighed_and_keeps_it(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    url, output = manifest(1), tmp_path / "out"
    flags = ("--dry-run", "--device", "cuda", "--gpu-kind", "L4")
    _, told = command.submit(url, output, *flags)
    assert told["compile"]["demo"]["compiled"] is False
    assert told["figures"]["demo"].endswith("scaled to L4 by the peak rates of both: estimated")
    _, asked = command.submit(url, output, *flags, "--compile", "on")
    assert asked["compile"] == {}
    choice = CompileChoice(**told["compile"]["demo"])
    rules = run_rules(replace(GPU, weighed={"demo": choice}))
    settings = RunSettings(
        manifest="m", output=str(output), render=replace(GPU, weighed={"demo": choice}),
        machines=MachineSettings(cluster="local", max_parallel_jobs=1),
    )  # fmt: skip
    begun = asked_run(settings, rules, manifest_digest="d", num_clips=1)
    assert begun.pixels["--compile"] == "off"
    bucket = open_bucket(str(output))
    start_run(bucket, begun, settings)
    assert load_run(bucket).weighed == {"demo": choice}


def test_a_gpu_of_an_unknown_kind_is_not_planned_by_a_cpu_s_figures() -> None:
    unknown, known = FiguresSource(on_gpu=True), FiguresSource(device="NVIDIA H100 80GB HBM3", on_gpu=True)
    assert unknown.of(WITHOUT_FIGURES, "float32").linear_s == known.of(WITHOUT_FIGURES, "float32").linear_s
    assert "(nobody says what the jobs get: --gpu-kind)" in unknown.told(WITHOUT_FIGURES, "float32")
    assert FiguresSource().of(WITHOUT_FIGURES, "float32") == DEMO_FAMILY.cost


def test_eager_blocks_are_planned_by_figures_of_compiled_ones_scaled_and_by_their_own_as_they_are() -> None:
    rules, source = rules_of(), FiguresSource(device="NVIDIA H200", on_gpu=True)
    compiled, eager = (ClipCosts(rules, "auto", source, eager=names) for names in ((), ("open_sora",)))
    assert eager.figures("open_sora").linear_s == 1.8 * compiled.figures("open_sora").linear_s
    assert (eager.measured_on("open_sora"), compiled.measured_on("open_sora") is None) == (None, False)
    assert eager.told("open_sora").endswith("scaled for eager blocks: estimated")
    own = {"open_sora": (replace(FAMILIES["open_sora"].cost, measured="one H200, bfloat16, eager"),)}
    assert ClipCosts(rules, "auto", replace(source, own=own), eager=("open_sora",)).measured_on("open_sora")
