"""Blocks of the diffusers library as compiled graphs: one for each step pattern, the numbers of eager blocks, any ranks.

Traced by dynamo as on a GPU, run eagerly: what is counted is graphs, and the numbers stay bit by bit.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pab.broadcast.foresight import ForesightRules
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST, Rules, pyramid
from pab.execution.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.family import ClipRequest
from pab.kernels import flash3, float8
from pab.library.broadcast_module import BlockKernels, BroadcastModule, CurrentPass
from pab.library.fused import GeluRows, LinearGelu, fuse
from pab.library.video import DiffusersVideo
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import Denoised, LoopSettings, NotFiniteError, initial_noise, plan_for
from tests.pab.denoised import denoised, relative
from tests.pab.library_ranks import TINY, prompt
from tests.pab.library_worlds import WORLDS
from tests.ranks import run_on_ranks

PAB = pyramid(2, None, 3, window=(0, 1000))
EVERY_OTHER = pyramid(2, None, 2, window=(0, 1000))
CALM = ForesightRules(gamma=1e9)
"""At which whatever may be reused is."""
RANKS_BOUND = 1e-5


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*WORLDS)


@pytest.fixture(autouse=True)
def _no_graphs():
    torch._dynamo.reset()
    with many_graphs():
        yield


def compiled(name: str, folder: Path, backend: str = "eager") -> DiffusersVideo:
    model = WORLDS[name].load(folder)
    compile_blocks(model.block_stacks, backend=backend)
    return model


def small(name: str, **changes) -> ClipRequest:
    return WORLDS[name].clip(**{"num_steps": 4} | changes)


def other_size(name: str) -> ClipRequest:
    num_frames, height, width = TINY[name].uneven
    return small(name, num_frames=num_frames, height=height, width=width, num_steps=2)


def render(
    name: str, model: DiffusersVideo, request: ClipRequest, rules: Rules, *, keep: str = "full",
    group: NodeGroup | None = None, words: tuple[int, int] = (40, 9), noise: float = 1.0,
) -> Denoised:  # fmt: skip
    return denoised(
        model,
        request,
        plan_for(WORLDS[name].family, request, rules, "float32"),
        prompt=prompt(model, name, words),
        noise=initial_noise(request, model.latent_shape(request)) * noise,
        group=group,
        loop=LoopSettings(cache_dtype=keep),
        given=WORLDS[name].given(model, request),
    )


def patterns(name: str, plans: Sequence[BroadcastPlan]) -> int:
    """What the blocks may be asked for: by kind of block, per site whether it reuses and whether it is kept."""
    found = set()
    for plan in plans:
        for members in plan.blocks:
            kind = tuple(plan.sites[i].name.replace(f".{plan.sites[i].block}.", ".") for i in members)
            kind = tuple(text.partition(".")[0] for text in kind)
            for step in range(plan.num_steps):
                found.add((kind, *((plan.reuses(step, i), plan.keeps(step, i)) for i in members)))
    return len(found)


def held(model: DiffusersVideo) -> list[str]:
    """Sites that hold anything of a pass."""
    sites = [m for stack in model.block_stacks for m in stack.modules() if isinstance(m, BroadcastModule)]
    assert sites
    return [site.site for site in sites if (site.kept, site.wanted, site.output) != (None, False, None)]


@pytest.mark.parametrize("name", WORLDS)
def test_one_graph_for_each_step_pattern_and_kind_of_block_gives_the_eager_numbers(weights, name):
    """Both experts of Wan 2.2, both guidance branches and all blocks share them."""
    model, plain = compiled(name, weights), WORLDS[name].load(weights)
    before = graphs_compiled()
    done = render(name, model, small(name), PAB)
    assert torch.equal(done.latents, render(name, plain, small(name), PAB).latents)
    assert graphs_compiled() - before == patterns(name, [done.plan])
    assert not held(model)


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "cogvideox_5b", "ltx"])
def test_other_prompts_failures_and_sizes_seen_before_compile_nothing(weights, name):
    model, plain = compiled(name, weights), WORLDS[name].load(weights)
    first, large, before = small(name, num_steps=2), other_size(name), graphs_compiled()
    render(name, model, first, EVERY_OTHER)
    warm = graphs_compiled()
    render(name, model, replace(first, seed=4), EVERY_OTHER, words=(7, 21))
    with pytest.raises(NotFiniteError):
        render(name, model, first, EVERY_OTHER, noise=float("nan"))
    assert not held(model)
    again = render(name, model, first, EVERY_OTHER).latents
    assert torch.equal(again, render(name, plain, first, EVERY_OTHER).latents)
    assert graphs_compiled() == warm
    latents = render(name, model, large, EVERY_OTHER).latents
    assert torch.equal(latents, render(name, plain, large, EVERY_OTHER).latents)
    both = graphs_compiled()
    assert both - warm == warm - before
    for request in (first, large):
        render(name, model, request, EVERY_OTHER)
    assert graphs_compiled() == both


@pytest.mark.parametrize("name", ["wan", "cogvideox_2b"])
def test_outputs_kept_as_int8_are_reused_by_graphs_too(weights, name):
    model, plain = compiled(name, weights), WORLDS[name].load(weights)
    ours = render(name, model, small(name), PAB, keep="int8")
    assert torch.equal(ours.latents, render(name, plain, small(name), PAB, keep="int8").latents)
    assert ours.kept_bytes_peak < render(name, plain, small(name), PAB).kept_bytes_peak / 2


@pytest.mark.parametrize("name", ["wan", "cogvideox_2b", "hunyuan_video", "ltx", "ltx2"])
def test_foresight_leaves_out_whole_blocks_eager_or_compiled(weights, name):
    request = small(name, num_steps=6)
    model, plain = compiled(name, weights), WORLDS[name].load(weights)
    before = graphs_compiled()
    done, eager = render(name, model, request, CALM), render(name, plain, request, CALM)
    assert torch.equal(done.latents, eager.latents)
    assert done.plan.decisions(0) == eager.plan.decisions(0) == "CCCCBC"
    assert done.reused["spatial"] == WORLDS[name].depth * done.passes
    kinds = len(model.block_stacks)
    assert graphs_compiled() - before == kinds
    exact = render(name, plain, request, NO_BROADCAST)
    assert relative(done.latents, exact.latents) > 0
    never = render(name, plain, request, ForesightRules(gamma=1e-9))
    assert torch.equal(never.latents, exact.latents)


def test_a_graph_of_plain_operations_has_the_eager_numbers(weights):
    """Beyond dynamo: what inductor would be given."""
    model, plain = compiled("wan", weights, backend="aot_eager"), WORLDS["wan"].load(weights)
    ours, eager = (render("wan", each, small("wan"), PAB).latents for each in (model, plain))
    assert relative(ours, eager) < 1e-6


def test_fused_operations_have_the_numbers_of_the_library_s_where_there_is_no_gpu(weights):
    model, plain = WORLDS["wan"].load(weights), WORLDS["wan"].load(weights)
    model.use_kernels()
    assert sum(isinstance(m, LinearGelu) for stack in model.block_stacks for m in stack.modules()) == 2
    assert model.current.kernels == BlockKernels(), "a CPU has none"
    model.current.kernels = BlockKernels(flash3=True, norm=True)
    compile_blocks(model.block_stacks, backend="eager")
    before = graphs_compiled()
    ours = render("wan", model, small("wan"), PAB)
    assert torch.equal(ours.latents, render("wan", plain, small("wan"), PAB).latents)
    assert graphs_compiled() - before == patterns("wan", [ours.plan])


PRODUCTS_BOUND, ATTENTION_BOUND = 0.1, 0.05
"""Of the latents' root mean square, after four steps of models with random weights."""


@pytest.mark.parametrize("gelu8", [False, True])
@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "cogvideox_5b", "ltx", "ltx2"])
def test_products_of_8_bit_floats_stay_near_the_others_in_the_same_graphs(weights, name, gelu8):
    model, plain = WORLDS[name].load(weights), WORLDS[name].load(weights)
    model.use_kernels()
    model.current.kernels = BlockKernels(gelu8=gelu8)
    model.use_float8()
    layers = [m for stack in model.block_stacks for m in stack.modules()]
    widened = [m for m in layers if isinstance(m, GeluRows)]
    assert [m.fused for m in widened] == 2 * [gelu8], "one for each block with an MLP over the video's tokens"
    assert sum(isinstance(m, float8.Float8Linear) for m in layers) >= 6 * 2
    compile_blocks(model.block_stacks, backend="eager")
    before = graphs_compiled()
    ours = render(name, model, small(name), PAB)
    off = relative(ours.latents, render(name, plain, small(name), PAB).latents)
    assert 0 < off < PRODUCTS_BOUND
    assert graphs_compiled() - before == patterns(name, [ours.plan])


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "hunyuan_video_15_480p"])
def test_attention_of_8_bit_floats_stays_near_the_other_and_leaves_masked_words_out(weights, name):
    model, plain = WORLDS[name].load(weights), WORLDS[name].load(weights)
    model.current.kernels = BlockKernels(flash3=True, norm=True)
    model.use_float8()
    model.use_float8_attention()
    compile_blocks(model.block_stacks, backend="eager")
    before = graphs_compiled()
    for words in ((40, 9), (7, 21)):
        ours, eager = (render(name, each, small(name), PAB, words=words) for each in (model, plain))
        assert 0 < relative(ours.latents, eager.latents) < ATTENTION_BOUND
    assert graphs_compiled() - before == patterns(name, [ours.plan])


class Attention(torch.nn.Module):
    """What the choice of an attention looks at."""

    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(256, 256, device="cuda", dtype=torch.bfloat16)


@pytest.mark.gpu
def test_a_model_that_loads_with_gradients_on_still_gets_flash_attention():
    current = CurrentPass()
    assert torch.is_grad_enabled()
    fuse([torch.nn.ModuleList([BroadcastModule(Attention(), "attn1")])], current)
    assert current.kernels.flash3 == (flash3.runs_on(torch.device("cuda")) and flash3.installed())


RANKED = ("wan", "cogvideox_2b", "hunyuan_video")
"""One for each attention of ours; LTX-Video has Wan's."""


def clips_on(sp: int, name: str) -> tuple[Rules, ...]:
    if sp > 2:
        return (EVERY_OTHER,)
    return (EVERY_OTHER, EVERY_OTHER, CALM) if name == "cogvideox_2b" else (EVERY_OTHER, EVERY_OTHER)


def render_on_ranks(folder: Path, sp: int) -> list[tuple[str, torch.Tensor, int, int, int, list[str]]]:
    """Per family and clip: latents, all-to-alls counted and planned, graphs so far, and what sites still hold."""
    group = open_group(dp=1, cfg=1, sp=sp, device=torch.device("cpu"))
    told = []
    with many_graphs():
        for name in RANKED if sp == 2 else ("wan",):
            torch._dynamo.reset()
            model = compiled(name, folder)
            for rules in clips_on(sp, name):
                request = small(name, num_steps=6 if rules is CALM else 2)
                done = render(name, model, request, rules, group=group)
                planned = done.plan.all_to_alls * done.passes
                told.append((name, done.latents, done.traffic.all_to_alls, planned, graphs_compiled(), held(model)))
    return told


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_that_share_passes_compile_their_exchanges_within_the_blocks(weights, num_ranks):
    ranks = run_on_ranks(num_ranks, render_on_ranks, weights, num_ranks)
    plain = {name: WORLDS[name].load(weights) for name in RANKED}
    alone = {}
    for told in ranks:
        wanted = [(name, i, rules) for name in dict.fromkeys(t[0] for t in told)
                  for i, rules in enumerate(clips_on(num_ranks, name))]  # fmt: skip
        for (name, i, rules), (_, latents, counted, planned, graphs, holding) in zip(wanted, told, strict=True):
            if (name, rules) not in alone:
                request = small(name, num_steps=6 if rules is CALM else 2)
                alone[name, rules] = render(name, plain[name], request, rules).latents
            assert relative(latents, alone[name, rules]) < RANKS_BOUND
            assert counted == planned > 0
            assert not holding
            if i == 0:
                first = graphs
            if rules is EVERY_OTHER:
                assert graphs == first, "the second clip compiles nothing"
