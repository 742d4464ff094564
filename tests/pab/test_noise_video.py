"""Latte and Open-Sora-Plan in the one loop: branches, failed clips, counted calls, ranks, bfloat16."""

import pytest
import torch
import torch.distributed as dist

from pab.broadcast.rules import KINDS, NO_BROADCAST
from pab.execution.compiled import graphs_compiled, many_graphs
from pab.families.open_sora_plan.transformer import split_axis
from pab.nn.noise_video import StepNoise
from pab.parallel.mesh import Axis, SequenceParallel, open_group
from pab.sampling.denoise import initial_noise
from tests.pab.denoised import relative
from tests.pab.noise_worlds import TEXT_CHANNELS, WORLDS, World, clip
from tests.pab.worlds import OneBranchAtATime
from tests.ranks import run_on_ranks

BOUND = 2e-6
"""Times the largest latent."""


@pytest.fixture(params=WORLDS)
def world(request) -> World:
    return WORLDS[request.param]


def test_reuse_never_crosses_guidance_branches(world):
    """Two passes a step with their own kept outputs give what one pass over both rows gives."""
    model, request = world.model(), clip(negative_prompt="a blue square far away")
    together = world.render(model, request).latents
    assert relative(world.render(OneBranchAtATime(model, request), request).latents, together) < BOUND
    assert relative(world.render(model, request, rules=NO_BROADCAST).latents, together) > 1e-4


def test_calls_counted_are_calls_planned(world):
    result = world.render(world.model(), clip())
    for kind in KINDS:
        assert result.computed.get(kind, 0) == result.plan.computed(kind)
        assert result.computed.get(kind, 0) + result.reused.get(kind, 0) == result.plan.total(kind)
    assert result.reused["mlp"] > 0


def test_both_texts_are_cut_to_the_prompt_only_where_the_published_model_does(world):
    """A long negative prompt keeps its tokens, or is cut to the length of a short prompt."""
    model = world.model()
    request = clip(prompt="a", negative_prompt="one two three four five")
    states = model.encode_prompts([request])[0].states("both")
    assert states.keys_values[0].shape[3] == (2 if world.cut else 6)
    assert (states.text_bias is None) == world.cut


SHAPES = [clip(), clip(num_frames=3, height=80, width=48, negative_prompt="a b c d e"), clip(num_frames=1)]
MESHES = [{"dp": 1, "cfg": 1, "sp": 2}, {"dp": 1, "cfg": 2, "sp": 2}]


def render_all(mesh):
    group = open_group(device=torch.device("cpu"), **mesh)
    return {
        name: [world.render(world.model(), request, group=group) for request in SHAPES]
        for name, world in WORLDS.items()
    }


@pytest.fixture(scope="module")
def one_rank():
    return render_all({"dp": 1, "cfg": 1, "sp": 1})


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_several_ranks_render_the_latents_of_one(mesh, one_rank):
    for rank in run_on_ranks(mesh["cfg"] * mesh["sp"], render_all, mesh):
        for name, results in rank.items():
            for result, alone in zip(results, one_rank[name], strict=True):
                assert relative(result.latents, alone.latents) < BOUND, name
                assert result.traffic.all_to_alls == result.plan.all_to_alls
                assert result.plan.all_to_alls == 2 * result.plan.computed(WORLDS[name].communicating)
                assert result.plan.all_to_alls < result.plan.all_to_alls_without_broadcast


SIZES = (1, 2, 3, 4, 8)
LATENTS = [(2, 5, 6, 10), (1, 1, 8, 6), (3, 4, 2, 14), (1, 3, 10, 10)]
"""Rows, frames, height, width: odd patch counts, one frame, fewer places than ranks along every axis."""


def predict_masked(name: str, shape: tuple[int, ...], sp: SequenceParallel) -> torch.Tensor:
    transformer = WORLDS[name].model().transformer
    rows, *size = shape
    generator = torch.Generator().manual_seed(sum(shape))
    latents = torch.randn(rows, 4, *size, generator=generator)
    text = torch.randn(rows, 5, TEXT_CHANNELS, generator=generator)
    text_mask = torch.arange(5) < torch.tensor([[2 + row] for row in range(rows)])
    latent_mask = torch.ones(rows, *size)
    latent_mask[0, :, :, size[2] // 2 :] = 0
    dim, multiple = transformer.latent_split(tuple(size), sp.size)
    conditions = transformer.prepare(text, size=tuple(size), text_mask_BL=text_mask, latent_mask_BTHW=latent_mask)
    out = transformer.denoise(sp.split(latents, dim, multiple=multiple), 501.0, conditions, sp=sp)
    return sp.gather(out, dim, size[dim - 2], multiple=multiple)


@torch.inference_mode()
def predict_on_all_sizes():
    """On one of the ranks: every case at every number of ranks that this one belongs to."""
    rank, outputs = dist.get_rank(), {}
    for size in SIZES:
        group = dist.new_group(list(range(size))) if size > 1 else None
        if rank >= size:
            continue
        sp = SequenceParallel(axis=Axis(size=size, rank=rank, group=group))
        for name in ("latte", "open_sora_plan_v120"):
            for shape in LATENTS:
                outputs[name, shape, size] = predict_masked(name, shape, sp)
    return outputs


def test_masked_and_odd_clips_on_1_2_3_4_and_8_ranks_equal_one_process():
    ranks = run_on_ranks(max(SIZES), predict_on_all_sizes)
    alone = {key[:2]: value for key, value in ranks[0].items() if key[2] == 1}
    assert len(alone) == 2 * len(LATENTS)
    for rank in ranks:
        for (name, shape, size), output in rank.items():
            assert relative(output, alone[name, shape]) < BOUND, (name, shape, size)


def test_the_axis_that_fits_the_ranks_is_split():
    assert split_axis((24, 30, 40), 8) == 0
    assert split_axis((1, 30, 40), 8) == 2
    assert split_axis((1, 30, 40), 6) == 1
    assert split_axis((7, 30, 40), 1) == 0


def test_step_noise_follows_the_initial_noise_of_the_seed():
    request, shape = clip(seed=3), (4, 5, 6, 10)
    stream = torch.Generator().manual_seed(3)
    drawn = [torch.randn(1, *shape, generator=stream) for _ in range(3)]
    noise = StepNoise([3], shape, lambda whole: whole)
    assert torch.equal(initial_noise(request, shape), drawn[0])
    assert torch.equal(noise(0), drawn[1])
    assert torch.equal(noise(1), drawn[2])


def block_patterns(plan, stacks):
    """What blocks are asked for: the stack, and per site whether it reuses and whether it is kept."""
    found = set()
    for step in range(plan.num_steps):
        for number, stack in enumerate(stacks):
            for block in stack:
                sites = [plan.index[name] for name in block.sites]
                found.add((number, *((plan.reuses(step, i), plan.keeps(step, i)) for i in sites)))
    return found


def test_blocks_are_whole_graphs_that_prompts_of_any_length_share(world):
    """Traced without a break, once for every step pattern; another prompt length traces nothing anew."""
    torch._dynamo.reset()
    model, request = world.model(), clip()
    longer = clip(prompt="one two three four five six")
    expected = [world.render(model, each).latents for each in (request, longer)]
    for name in {site.name.split(".")[0] for site in world.sites}:
        for block in getattr(model.transformer, name):
            block.compile(fullgraph=True, backend="eager")
    before = graphs_compiled()
    with many_graphs():
        first = world.render(model, request).latents
        traced = graphs_compiled()
        second = world.render(model, longer).latents
    assert traced - before == len(block_patterns(world.plan(request), model.transformer.block_stacks))
    assert traced == graphs_compiled()
    assert relative(first, expected[0]) < BOUND
    assert relative(second, expected[1]) < BOUND
