import torch

from pab.compiled import compile_blocks, graphs_compiled, many_graphs
from pab.plan import NO_BROADCAST, BroadcastPlan
from tests.pab.worlds import PAB246, clip, render, tiny_model


def block_patterns(plan: BroadcastPlan) -> set[tuple[object, ...]]:
    """What a block may be asked for: its stack, and per site whether it reuses and whether it is kept."""
    found: set[tuple[object, ...]] = set()
    blocks = tiny_model().transformer.blocks
    for step in range(plan.num_steps):
        for block in blocks:
            sites = [plan.index[name] for name in block.sites]
            found.add((block.temporal, *((plan.reuses(step, i), plan.keeps(step, i)) for i in sites)))
    return found


def test_blocks_compile_once_per_step_pattern_and_never_again_for_other_prompts():
    """Traced by dynamo as on a GPU, run eagerly: what is counted is graphs, and the numbers stay bit by bit."""
    torch._dynamo.reset()
    model, plain = tiny_model(), tiny_model()
    compile_blocks([model.transformer.spatial_blocks, model.transformer.temporal_blocks], backend="eager")
    with many_graphs():
        before = graphs_compiled()
        assert torch.equal(render(model, clip(), PAB246).latents, render(plain, clip(), PAB246).latents)
        warm = graphs_compiled()
        plan = render(plain, clip(), PAB246).plan
        assert warm - before == len(block_patterns(plan))
        for prompt in ("a green cat", "one two three four", "a b c d e f"):
            render(model, clip(prompt=prompt), PAB246)
        assert graphs_compiled() == warm
        render(model, clip(), NO_BROADCAST)
        assert graphs_compiled() <= warm + 2
