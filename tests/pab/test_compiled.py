import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST
from pab.execution.choice import Execution
from pab.execution.compile_cache import (
    KERNELS,
    UNUSED_S,
    CompileCacheError,
    cache_folder,
    compile_cache,
    operators_digest,
)
from pab.execution.compiled import CompileError, Graphs, compile_blocks, executing, graphs_compiled, many_graphs
from pab.families import FAMILIES
from pab.families.open_sora.stdit3_blocks import STDiT3Block
from pab.kernels import attention as kernels_attention
from pab.parallel.mesh import open_group
from pab.sampling.denoise import NotFiniteError
from tests.pab.test_denoise import RANKS_BOUND
from tests.pab.worlds import PAB246, clip, render, tiny_model
from tests.ranks import run_on_ranks


def block_patterns(plan: BroadcastPlan, blocks: Sequence[STDiT3Block]) -> set[tuple[object, ...]]:
    """What a block may be asked for: per site whether it reuses and whether it is kept, and its stack where that matters.

    A block whose attention is reused runs the same graph in both stacks.
    """
    found: set[tuple[object, ...]] = set()
    for step in range(plan.num_steps):
        for block in blocks:
            sites = [plan.index[name] for name in block.sites]
            stack = None if plan.reuses(step, sites[0]) else block.temporal
            found.add((stack, *((plan.reuses(step, i), plan.keeps(step, i)) for i in sites)))
    return found


def ranks_render_compiled() -> list[tuple[torch.Tensor, int, int, int]]:
    """Latents, all-to-alls counted and planned, and graphs so far, of clips with other prompts."""
    group = open_group(dp=1, cfg=1, sp=2, device=torch.device("cpu"))
    model = tiny_model()
    compile_blocks(model.block_stacks, backend="eager")
    told = []
    with many_graphs():
        for prompt in ("a red circle", "a green cat", "one two three four"):
            done = render(model, clip(prompt=prompt, num_steps=7), PAB246, group=group)
            told.append((done.latents, done.traffic.all_to_alls, done.plan.all_to_alls, graphs_compiled()))
    return told


def test_ranks_that_share_a_pass_compile_once_too_and_count_what_they_send():
    ranks = run_on_ranks(2, ranks_render_compiled)
    alone = render(tiny_model(), clip(num_steps=7), PAB246).latents
    for told in ranks:
        assert (told[0][0] - alone).abs().max() < RANKS_BOUND
        assert all(counted == planned > 0 for _, counted, planned, _ in told)
        assert told[0][3] == told[1][3] == told[2][3]


def test_blocks_compile_once_per_step_pattern_and_never_again_for_other_prompts_sizes_and_failures():
    """Traced by dynamo as on a GPU, run eagerly: what is counted is graphs, and the numbers stay bit by bit."""
    request = clip(num_steps=7)
    torch._dynamo.reset()
    model, plain = tiny_model(), tiny_model()
    compile_blocks(model.block_stacks, backend="eager")
    with many_graphs():
        before = graphs_compiled()
        assert torch.equal(render(model, request, PAB246).latents, render(plain, request, PAB246).latents)
        warm = graphs_compiled()
        plan = render(plain, request, PAB246).plan
        assert warm - before == len(block_patterns(plan, plain.transformer.blocks))
        for prompt in ("a green cat", "one two three four", "a b c d e f"):
            render(model, clip(prompt=prompt, num_steps=7), PAB246)
        assert graphs_compiled() == warm
        with pytest.raises(NotFiniteError):
            render(model, clip(guidance_scale=float("nan"), num_steps=7), PAB246)
        render(model, clip(prompt="a blue dog", num_steps=7), PAB246)
        assert graphs_compiled() == warm
        wide = clip(width=56, prompt="a red dog", num_steps=7)
        assert torch.equal(render(model, wide, PAB246).latents, render(plain, wide, PAB246).latents)
        both_sizes = graphs_compiled()
        assert both_sizes - warm == warm - before
        for request in (clip(seed=8, num_steps=7), wide, clip(prompt="one two", num_steps=7), wide):
            render(model, request, PAB246)
        assert graphs_compiled() == both_sizes
        render(model, request, NO_BROADCAST)
        assert graphs_compiled() <= both_sizes + 2


def test_graphs_are_dropped_when_they_are_too_many_and_what_they_cost_is_still_told():
    torch._dynamo.reset()
    model = tiny_model()
    compile_blocks(model.block_stacks, backend="eager")
    with executing(Execution(compiled=True)):
        graphs = Graphs()
        expected = render(model, clip(num_steps=3), PAB246).latents
        first = graphs.so_far()
        assert first.graphs > 3
        assert first.seconds > 0
        assert graphs.make_room(most=3)
        assert graphs.so_far() == first
        assert not graphs.make_room(most=3)
        assert torch.equal(render(model, clip(num_steps=3), PAB246).latents, expected)
        again = graphs.so_far()
    assert again.graphs == 2 * first.graphs
    assert again.seconds > first.seconds
    assert again.since(first).plus(first) == again


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor needs a C compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # inductor's own import
def test_blocks_compile_with_the_option_by_which_inductor_cuts_sums_by_rule(tmp_path):
    """By itself it takes what was fastest when it tried. What the option does is seen on a GPU (`test_families_gpu`)."""
    config = torch._inductor.config
    seen: list[bool] = []
    block = Doubled()
    torch._dynamo.reset()
    with (
        compile_cache(str(tmp_path), "auto"),
        config.patch(pre_grad_custom_pass=lambda _graph: seen.append(config.deterministic), fx_graph_cache=False),
        torch.no_grad(),
    ):
        compile_blocks([torch.nn.ModuleList([block])])
        assert torch.equal(block(torch.ones(3)), torch.full((3,), 2.0))
    assert seen == [True]
    assert not config.deterministic, "what others compile is theirs"


def test_without_a_c_compiler_nothing_is_compiled_and_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match=r"need a C compiler \(gcc or clang\) on every node; .*--compile off"):
        compile_blocks(tiny_model().block_stacks)


def test_cudnn_attention_is_preferred_only_where_asked_for():
    order = torch._C._get_sdp_priority_order
    plain = list(order())
    with executing(Execution(attention="cudnn")):
        preferred = list(order())
    with executing(Execution()):
        assert list(order()) == plain
    assert list(order()) == plain
    assert preferred[0] == int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION)


def test_float32_is_not_rounded_to_less_on_a_gpu():
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    with executing(Execution(), precision="float32"):
        assert [flag.allow_tf32 for flag in flags] == [False, False]
    with executing(Execution(), precision="bfloat16"):
        assert [flag.allow_tf32 for flag in flags] == before
    assert [flag.allow_tf32 for flag in flags] == before


def test_every_family_s_blocks_can_be_compiled():
    for name, family in FAMILIES.items():
        assert family.compiles, name


def test_compiled_kernels_lie_in_a_folder_of_ones_own_by_torch_version_and_attention(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "before")
    with compile_cache(str(tmp_path), "cudnn") as folder:
        from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

        kernels = operators_digest(KERNELS)
        assert folder.name == f"torch-{torch.__version__}-attention-cudnn-kernels-{kernels}"
        assert cache_dir() == str(folder / "inductor")
        assert triton_cache_dir(0) == str(folder / "triton")
        assert folder.stat().st_mode & 0o077 == 0
    assert triton_cache_dir(0) == "before"
    assert cache_folder(str(tmp_path), "default") != folder
    folder.chmod(0o770)
    with pytest.raises(CompileCacheError, match=r"mode drwxrwx---, needs to be this user's alone; .*--compile-cache"):
        compile_cache(str(tmp_path), "cudnn").__enter__()


def test_kernels_of_another_version_of_ours_are_not_taken(tmp_path):
    for name, text in (("a.py", "one"), ("gpu/b.py", "two")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = operators_digest(tmp_path)
    assert operators_digest(tmp_path) == before
    (tmp_path / "gpu/b.py").write_text("three")
    assert operators_digest(tmp_path) != before


def test_the_kernels_that_name_the_cache_are_those_that_run(tmp_path):
    named = {path.relative_to(KERNELS).as_posix() for path in KERNELS.rglob("*.py")}
    assert {"attention.py", "head_norm.py", "gpu/attention.py", "gpu/head_norm.py"} <= named
    assert Path(kernels_attention.__file__) == KERNELS / "attention.py"
    shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    assert operators_digest(tmp_path / "kernels") == operators_digest(KERNELS)
    for path in sorted((tmp_path / "kernels").rglob("*.py")):
        before = operators_digest(tmp_path / "kernels")
        path.write_text(path.read_text() + "#\n")
        assert operators_digest(tmp_path / "kernels") != before


def test_a_folder_without_kernels_has_no_digest(tmp_path):
    for folder in (tmp_path, tmp_path / "moved"):
        with pytest.raises(AssertionError, match=f"{folder} holds no kernels"):
            operators_digest(folder)


def test_a_cache_that_has_grown_too_large_is_emptied_unless_another_job_uses_it(tmp_path):
    with compile_cache(str(tmp_path), "default") as folder:
        kernel = folder / "inductor" / "ab" / "kernel.py"
        kernel.parent.mkdir(parents=True)
        kernel.write_text("x" * 1000)
        with compile_cache(str(tmp_path), "default", max_bytes=10):
            assert kernel.exists()
    with compile_cache(str(tmp_path), "default", max_bytes=2000):
        assert kernel.exists()
    with compile_cache(str(tmp_path), "default", max_bytes=10):
        assert not kernel.exists()


def test_caches_of_other_versions_are_emptied_when_no_job_has_used_them_for_long(tmp_path):
    kernels = []
    for attention in ("default", "cudnn"):
        with compile_cache(str(tmp_path), attention) as folder:
            kernels.append(folder / "triton" / "kernel.so")
            kernels[-1].parent.mkdir()
            kernels[-1].write_text("x")
    old, recent = kernels
    long_ago = time.time() - UNUSED_S - 60
    with compile_cache(str(tmp_path), "default") as folder:
        os.utime(folder / "in-use", (long_ago, long_ago))
        with compile_cache(str(tmp_path), "float8"):
            assert old.exists(), "a job uses it"
    with compile_cache(str(tmp_path), "float8"):
        assert not old.exists()
        assert recent.exists()
    with compile_cache(str(tmp_path), "default") as folder:
        assert time.time() - (folder / "in-use").stat().st_mtime < 60, "it is used again"
