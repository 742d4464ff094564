"""Every family in small on a GPU: the numbers of a CPU, and compiled as eager, decoded to finite frames."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import kernels_by_rule
from pab.broadcast.rules import NO_BROADCAST, Rules
from pab.execution.compiled import compile_blocks, many_graphs
from pab.family import LoadRequest
from pab.model import VideoModel
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised
from tests.pab.every_family import EVERY_OTHER, SMALL, family, load, render, request_of

CUDA = torch.device("cuda")
FLOAT32_BOUND = 1e-3
"""Norm of the difference of float32 latents from a CPU's over the norm of these: sums in another order, and no TF32."""
COMPILED_BOUND = 0.05
"""The same of bfloat16 latents of compiled blocks from those of eager ones."""

pytestmark = [
    pytest.mark.gpu,
    # Inductor tells it of every float32 product; TF32 is off on purpose.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32"),
]


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*SMALL)


def on_gpu(name: str, folder: Path, precision: str) -> VideoModel:
    return family(name).load(LoadRequest(weights=str(folder / name), precision=precision, device="cuda"))


def clip(name: str, model: VideoModel, precision: str, rules: Rules = EVERY_OTHER) -> Denoised:
    with torch.inference_mode():
        return render(name, model, rules, NodeGroup(device=CUDA), precision)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", SMALL)
def test_a_clip_on_a_gpu_has_the_latents_of_a_cpu(weights, name):
    with torch.inference_mode():
        on_cpu = render(name, load(name, weights), EVERY_OTHER)
    model = on_gpu(name, weights, "float32")
    done = clip(name, model, "float32")
    assert done.computed == on_cpu.computed
    assert done.reused == on_cpu.reused
    assert apart(done.latents, on_cpu.latents) < FLOAT32_BOUND
    decoded: Any = model.decode(done.latents, request_of(name), NodeGroup(device=CUDA))
    assert decoded.fetch().shape[:2] == (1, request_of(name).num_frames)


@pytest.mark.parametrize("name", [name for name in SMALL if family(name).compiles])
@pytest.mark.parametrize("rules", [NO_BROADCAST, EVERY_OTHER], ids=["none", "pab"])
def test_compiled_blocks_on_a_gpu_have_the_latents_of_eager_ones(weights, name, rules):
    if "bfloat16" not in family(name).precisions:
        pytest.skip("renders in float32 only")
    torch._dynamo.reset()
    model = on_gpu(name, weights, "bfloat16")
    eager = clip(name, model, "bfloat16", rules)
    with many_graphs():
        compile_blocks(model.block_stacks)
        assert apart(clip(name, model, "bfloat16", rules).latents, eager.latents) < COMPILED_BOUND


def test_latents_do_not_hang_on_which_kernels_came_out_fastest(tmp_path):
    """LTX in a process whose timings are upside down: by timing its latents are others, by rule the same."""
    words = ["--out", str(tmp_path), "--rows", "ltx: compiled none", "--num-steps", "2", "--repeat", "1"]
    assert kernels_by_rule.main(words) == 0
    by_timing, by_rule = (line["apart"] for line in json.loads((tmp_path / "kernels_by_rule.json").read_text()))
    assert by_timing > 0
    assert by_rule == 0
