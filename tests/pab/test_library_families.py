"""Families over transformers of the diffusers library: equal to its pipelines without broadcast, guidance kept with it."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pab.broadcast.plan import BroadcastPlan, make_plan
from pab.broadcast.rules import NO_BROADCAST, BroadcastRules, pyramid, rules_from_dict
from pab.broadcast.sites import Site
from pab.broadcast.state import COND, UNCOND, BroadcastState
from pab.families import find_family
from pab.families.cogvideox.levels import trailing_timesteps
from pab.families.wan.levels import shifted_timesteps
from pab.families.wan.load import clean_text
from pab.library.broadcast_module import BroadcastModule, CurrentPass, install_sites
from pab.library.parts import library_class
from pab.library.video import DiffusersVideo
from pab.model import StepInput
from pab.parallel.mesh import Axis, NodeGroup, SequenceParallel, open_group
from pab.sampling.denoise import initial_noise, plan_for
from pab.weights.checkpoint import CheckpointError
from tests.pab.denoised import relative
from tests.pab.library_world import LibraryWorld, edited, library_module, parts, scheduler
from tests.pab.library_worlds import WORLDS
from tests.pab.worlds import from_the_start
from tests.ranks import run_on_ranks

EVERY_OTHER = pyramid(2, None, 2, window=(0, 1000))
"""Reuses all attention at every second step."""

ONE_TRANSFORMER = [name for name in WORLDS if not name.startswith("wan22_a14b")]
GUIDED = [name for name in ONE_TRANSFORMER if not WORLDS[name].family.embedded_guidance]
"""Families with a conditional and an unconditional branch."""


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*WORLDS)


@pytest.mark.parametrize("name", WORLDS)
def test_without_broadcast_latents_are_the_library_pipeline_s_bit_for_bit(weights, name):
    world = WORLDS[name]
    model = world.load(weights)
    for guidance_scale in (5.0, 1.0):
        request = world.clip(guidance_scale=guidance_scale)
        ours = world.render(model, request, NO_BROADCAST).latents
        assert torch.equal(ours, world.library_latents(weights, model, request))
        assert ours.std() > 0.1


@pytest.mark.parametrize("name", ONE_TRANSFORMER)
def test_frames_are_the_library_pipeline_s(weights, name):
    world = WORLDS[name]
    model, request = world.load(weights), world.clip()
    latents = initial_noise(request, model.latent_shape(request))
    frames = model.decode(latents, request, NodeGroup()).frames
    assert frames.shape == (1, world.frames, world.side, world.side, 3)
    with torch.inference_mode():
        theirs = world.library_frames(library_module(weights / name / "vae"), latents, request)
    assert (frames / 255 - theirs).abs().max() < 0.6 / 255
    assert frames.float().std() > 1
    rank = NodeGroup(clip=Axis(size=2, rank=1))
    assert model.decode(latents, request, rank).frames.shape == (0, world.frames, world.side, world.side, 3)


@pytest.mark.parametrize("name", ONE_TRANSFORMER)
def test_text_states_are_the_library_pipeline_s(weights, name):
    world = WORLDS[name]
    model, request = world.load(weights), world.clip(prompt="a cat &amp; two  birds", negative_prompt=None)
    pipeline = world.pipeline(weights / name, request)
    pipeline.register_modules(**world.text_parts(weights / name))
    prompt = world.prompt(model, request)
    with torch.inference_mode():
        theirs = world.encode(pipeline, request, parts(prompt.states(COND))[0].shape[1])
    for branch, expected in zip((COND, UNCOND) if name in GUIDED else (COND,), theirs, strict=True):
        for ours, part in zip(parts(prompt.states(branch)), parts(expected), strict=True):
            assert relative(ours.float(), part.float()) < 1e-5


@pytest.mark.parametrize("name", WORLDS)
def test_sites_compute_and_reuse_as_planned(weights, name):
    world = WORLDS[name]
    model, request = world.load(weights), world.clip(num_steps=9)
    rules = from_the_start(world.family.presets[world.family.defaults.broadcast])
    done = world.render(model, request, rules)
    assert done.passes == len(model.guided_passes)
    assert {site.name for site in done.plan.sites} == installed(model)
    for kind in {site.kind for site in done.plan.sites}:
        assert done.computed[kind] == done.plan.computed(kind) * done.passes
        assert done.computed[kind] + done.reused.get(kind, 0) == done.plan.total(kind) * done.passes
    assert done.reused["spatial"] > 0
    assert done.kept_bytes_peak > 0
    exact = world.render(model, request, NO_BROADCAST)
    assert relative(done.latents, exact.latents) > 0


def installed(model: DiffusersVideo) -> set[str]:
    return {m.site for expert in model.denoise.experts for m in expert.modules() if isinstance(m, BroadcastModule)}


@pytest.mark.parametrize("name", ONE_TRANSFORMER)
def test_rules_of_a_user_reach_attention_and_mlp(weights, name):
    world = WORLDS[name]
    rules = rules_from_dict({
        "spatial": {"range": 4, "window": [0, 1000]},
        "mlp": [{"stack": "spatial", "blocks": [0, 1], "skip_count": 2, "position": 0.25}],
    })  # fmt: skip
    done = world.render(world.load(weights), world.clip(num_steps=4, guidance_scale=1.0), rules)
    assert done.computed["spatial"] < done.plan.total("spatial")
    mlps = [site for site in world.family.sites if site.kind == "mlp"]
    assert done.reused["mlp"] == 2 * sum(site.block in (0, 1) for site in mlps), "two steps"
    assert done.computed["mlp"] + done.reused["mlp"] == 4 * len(mlps)


@pytest.mark.parametrize("name", GUIDED)
def test_two_ranks_share_a_clip_by_guidance(weights, name):
    world = WORLDS[name]
    alone = world.render(world.load(weights), world.clip(), EVERY_OTHER)
    ranks = run_on_ranks(2, render_branch, weights, name)
    for latents, passes, computed in ranks:
        assert relative(latents, alone.latents) < world.tolerance
        assert passes == 1
        assert computed["spatial"] * len(WORLDS[name].load(weights).guided_passes) == alone.computed["spatial"]


def render_branch(folder: Path, name: str) -> tuple[Tensor, int, dict[str, int]]:
    group = open_group(dp=1, cfg=2, sp=1, device=torch.device("cpu"))
    done = WORLDS[name].render(WORLDS[name].load(folder), WORLDS[name].clip(), EVERY_OTHER, group)
    return done.latents, done.passes, done.computed


def passes(world: LibraryWorld, folder: Path, rules: BroadcastRules, steps: int) -> tuple[BroadcastState, list[Tensor]]:
    """Runs both branches of the first steps; returns the state, and |cond - uncond| of the last step."""
    model, request = world.load(folder), world.clip()
    plan = plan_for(world.family, request, rules, "float32")
    prompt = world.prompt(model, request)
    noise = initial_noise(request, model.latent_shape(request))
    state = BroadcastState(plan)
    outputs: list[Tensor] = []
    begun = world.given(model, request)
    image_states = begun.image_states if begun else None
    latents = begun.scheduler(NodeGroup().sp).model_input(noise, 0) if begun else noise
    with torch.inference_mode():
        for step in range(steps):
            given = StepInput(
                request=request, step=step, timestep=plan.timesteps[step], active_frames=None,
                image_states=image_states,
            )  # fmt: skip
            outputs = [
                model.predict(latents, given, prompt.states(branch), state.visit(step, branch), NodeGroup())
                for branch in (COND, UNCOND)
            ]
    return state, outputs


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_survives_reuse_in_two_passes(weights, name):
    world = WORLDS[name]
    _, (cond, uncond) = passes(world, weights, NO_BROADCAST, 2)
    state, (kept_cond, kept_uncond) = passes(world, weights, EVERY_OTHER, 2)
    assert state.reused["spatial"] == 2 * world.depth, "all of the second step"
    exact, reused = relative(cond, uncond), relative(kept_cond, kept_uncond)
    assert reused > 0.2 * exact > 0


def test_one_cache_for_both_passes_as_in_the_library_ends_guidance_on_wan(weights):
    """What the library's own hook does, for comparison: inside its window uncond takes cond's attention."""
    world = WORLDS["wan"]
    model, request = world.load(weights), world.clip()
    prompt = model.encode_prompts([request])[0]
    noise = initial_noise(request, model.latent_shape(request))

    def difference(window: tuple[int, int], timestep: int) -> float:
        transformer = library_module(weights / "wan" / "transformer")
        options = {f"{kind}_attention_block_skip_range": 2 for kind in ("spatial", "cross")}
        options |= {f"{kind}_attention_timestep_skip_range": window for kind in ("spatial", "cross")}
        library_class("apply_pyramid_attention_broadcast")(
            transformer,
            library_class("PyramidAttentionBroadcastConfig")(**options, current_timestep_callback=lambda: timestep),
        )
        with torch.inference_mode():
            cond, uncond = (
                transformer(noise, torch.tensor([timestep]), prompt.states(branch), return_dict=False)[0]
                for branch in (COND, UNCOND)
            )
        return relative(cond, uncond)

    first = int(world.family.timesteps(request, "float32")[0])
    assert first == 999
    assert difference((0, 1000), first) == 0, "the window holds the first step: no guidance there"
    assert difference((100, 800), first) > 0, "the library's default window does not hold it"
    assert difference((100, 800), 700) == 0, "inside the window there is none at any step"


def test_kept_outputs_of_both_branches_are_counted(weights):
    world = WORLDS["wan"]
    state, _ = passes(world, weights, EVERY_OTHER, 1)
    tokens, channels = world.family.num_tokens(world.frames, world.side, world.side), 24
    assert state.kept_bytes == 2 * 2 * world.depth * tokens * channels * 4
    assert {branch for _, branch in state.kept} == {COND, UNCOND}


class TwoStreams(torch.nn.Module):
    def forward(self, x, y):
        return x + 1, y * 2


def one_block(attn: torch.nn.Module) -> torch.nn.ModuleDict:
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = attn

        def forward(self, x, y):
            return self.attn(x, y)

    return torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([Block()])})


STREAMS_SITE = Site(name="blocks.0.attn", kind="spatial", stack="spatial", block=0)


def test_a_site_keeps_every_stream_that_its_module_returns():
    current, site = CurrentPass(), STREAMS_SITE
    model = one_block(TwoStreams())
    (stack,) = install_sites(model, [site], current)
    assert stack is model["blocks"]
    state = BroadcastState(make_plan(EVERY_OTHER, (900.0, 800.0, 700.0), [site]))
    seen = []
    for step, value in enumerate((1.0, 5.0, 7.0)):
        with current.running(state.visit(step, COND), SequenceParallel()):
            seen.append([stream.item() for stream in stack[0](torch.tensor(value), torch.tensor(value))])
        if step == 0:
            assert state.kept_bytes == 2 * 4
    assert seen == [[2.0, 2.0], [2.0, 2.0], [8.0, 14.0]]
    assert not state.kept
    with pytest.raises(AssertionError, match=r"block blocks\.0 runs outside of a pass"):
        stack[0](torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(AttributeError, match="attn2"):
        install_sites(model, [Site(name="blocks.0.attn2", kind="cross", stack="spatial", block=0)], current)


class Fails(TwoStreams):
    def forward(self, x, y):
        if x.item() == 0:
            raise ArithmeticError("zero")
        return super().forward(x, y)


def test_sites_hold_nothing_after_a_block_s_call_whether_it_ends_or_fails():
    current = CurrentPass()
    model = one_block(Fails())
    (stack,) = install_sites(model, [STREAMS_SITE], current)
    site = stack[0].sites[0]
    plan = make_plan(EVERY_OTHER, (900.0, 800.0), [STREAMS_SITE])
    for values in ((0.0,), (1.0, 5.0)):
        state = BroadcastState(plan)
        for step, value in enumerate(values):
            with contextlib.suppress(ArithmeticError), current.running(state.visit(step, COND), SequenceParallel()):
                stack[0](torch.tensor(value), torch.tensor(value))
            assert (site.kept, site.wanted, site.output) == (None, False, None)
            assert bool(state.kept) == (value == 1.0)
    assert current.visit is None


def sources(plan: BroadcastPlan, kind: str) -> list[int]:
    index = next(i for i, site in enumerate(plan.sites) if site.kind == kind)
    return [row[index] for row in plan.sources]


def test_nothing_kept_crosses_from_one_transformer_to_the_next():
    family = WORLDS["wan22_a14b"].family
    request = WORLDS["wan22_a14b"].clip(num_steps=40)
    plan = plan_for(family, request, pyramid(2, None, 6, window=(0, 1000)), "float32")
    (fresh,) = family.cache_reset_steps(request, "float32")
    assert plan.timesteps[fresh - 1] >= 875 > plan.timesteps[fresh]
    for kind in ("spatial", "cross"):
        assert all((source < fresh) == (step < fresh) for step, source in enumerate(sources(plan, kind)))
    alike = make_plan(plan.rules, plan.timesteps, family.sites)
    assert sources(alike, "cross")[fresh] < fresh, "without the border cross attention would cross it"


def test_mlp_reuse_ends_at_a_fresh_step():
    rules = rules_from_dict({"mlp": [{"stack": "spatial", "blocks": [0], "skip_count": 3, "position": 0.0}]})
    site = Site(name="ff", kind="mlp", stack="spatial", block=0)
    for fresh, told in (((), [0, 0, 0, 0, 4]), ((2,), [0, 0, 2, 3, 4])):
        plan = make_plan(rules, (900.0, 800.0, 700.0, 600.0, 500.0), [site], cache_reset_steps=fresh)
        assert sources(plan, "mlp") == told


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_wan_s_planned_levels_are_the_library_s(weights, shift):
    unipc = scheduler(weights / "wan", flow_shift=shift)
    for num_steps in (1, 2, 3, 7, 10, 30, 40, 50, 333, 1000):
        unipc.set_timesteps(num_steps)
        assert shifted_timesteps(num_steps, shift) == tuple(unipc.timesteps.tolist())
    with pytest.raises(ValueError, match="num_steps=0, allowed 1 to 1000"):
        shifted_timesteps(0, shift)


def test_wan_shifts_noise_further_for_large_frames():
    family = find_family("wan")
    small, large = (
        family.timesteps(WORLDS["wan"].clip(height=h, width=w, num_steps=50), "bfloat16")
        for h, w in ((480, 832), (720, 1280))
    )
    assert small == shifted_timesteps(50, 3.0)
    assert large == shifted_timesteps(50, 5.0)
    plan = plan_for(family, WORLDS["wan"].clip(num_steps=50), family.presets["pab2-6"], "bfloat16")
    assert [plan.computed(kind) // 30 for kind in ("spatial", "cross", "mlp")] == [35, 25, 50]


@pytest.mark.parametrize("name", ["cogvideox_2b", "cogvideox_5b"])
def test_cogvideox_s_planned_levels_are_the_library_s(weights, name):
    ddim = scheduler(weights / name)
    for num_steps in (1, 2, 3, 7, 30, 50, 333, 1000):
        ddim.set_timesteps(num_steps)
        assert trailing_timesteps(num_steps) == tuple(ddim.timesteps.tolist())
    with pytest.raises(ValueError, match="num_steps=1001, allowed 1 to 1000"):
        trailing_timesteps(1001)


def test_cogvideox_s_published_preset_reuses_every_other_step_of_its_window():
    family = find_family("cogvideox_5b")
    plan = plan_for(family, WORLDS["cogvideox_5b"].clip(num_steps=50), family.presets["pab2"], "bfloat16")
    assert [plan.computed(kind) // 42 for kind in ("spatial", "mlp")] == [32, 50]


def test_cogvideox_keeps_both_streams_of_its_attention(weights):
    world = WORLDS["cogvideox_2b"]
    state, _ = passes(world, weights, EVERY_OTHER, 1)
    tokens, channels, text = world.family.num_tokens(world.frames, world.side, world.side), 32, 226
    assert all([stream.shape[1] for stream in kept] == [tokens, text] for kept in state.kept.values())
    assert state.kept_bytes == 2 * world.depth * (tokens + text) * channels * 4


def test_cogvideox_takes_other_sizes_than_its_transformer_was_made_for(weights):
    for name in ("cogvideox_2b", "cogvideox_5b"):
        world = WORLDS[name]
        model, request = world.load(weights), world.clip(height=48, width=64, num_frames=17, num_steps=2)
        ours = world.render(model, request, NO_BROADCAST).latents
        assert torch.equal(ours, world.library_latents(weights, model, request))


def test_wan_s_prompts_are_cleaned():
    assert clean_text("  a &amp;amp; b\n\tc  schÃ¶n ") == "a & b c schön"


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("wan", "transformer/config.json", {"num_layers": 40}, "num_layers=40, this family's model has 2"),
        ("wan", "transformer/config.json", {"image_dim": 1280}, "image_dim=1280, this family's model has None"),
        ("wan", "transformer/config.json", {"ffn_dim": 50}, r"misshaped .*: blocks.0.ffn"),
        ("wan", "vae/config.json", {"z_dim": 48}, "z_dim=48, this family's model has 16"),
        ("wan", "scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "use_flow_sigmas=False, this family's"),
        ("wan", "scheduler/scheduler_config.json", {"shift_terminal": 0.5}, "gives timesteps .* this family plans"),
        ("cogvideox_2b", "transformer/config.json", {"num_layers": 42}, "num_layers=42, this family's model has 2"),
        ("cogvideox_2b", "scheduler/scheduler_config.json", {"snr_shift_scale": 1.0}, "snr_shift_scale=1.0, this family"),
        ("cogvideox_5b", "scheduler/scheduler_config.json", {"timestep_spacing": "leading"}, "timestep_spacing='leading'"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused(weights, tmp_path, name, file, changes, message):
    edited(weights / name, tmp_path / name, file, **changes)
    with pytest.raises(CheckpointError, match=message):
        WORLDS[name].load(tmp_path)


def test_norms_and_modulation_stay_in_float32_as_the_library_keeps_them(weights):
    model = WORLDS["wan"].load(weights, "bfloat16")
    types = {name: p.dtype for name, p in model.denoise.experts[0].named_parameters()}
    assert types["blocks.0.block.scale_shift_table"] == types["blocks.1.block.norm2.weight"] == torch.float32
    assert types["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert types["blocks.0.block.attn1.module.to_q.weight"] == types["proj_out.weight"] == torch.bfloat16
    request = WORLDS["wan"].clip(num_steps=2)
    assert WORLDS["wan"].render(model, request, EVERY_OTHER).latents.dtype == torch.float32
