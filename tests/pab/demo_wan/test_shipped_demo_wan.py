from torch import Tensor

from pab.broadcast.rules import NO_BROADCAST
from pab.families import find_family
from pab.families.demo.training.check import main as check_demo
from pab.families.demo.training.generator import ClipSize
from pab.families.demo.training.read_back import read_scenes
from pab.families.demo.weights import load_demo
from pab.families.demo_wan.training.check import main
from pab.families.demo_wan.training.sample import SampledParts, SampleSettings, render_prompts
from pab.families.demo_wan.transformer import load_transformer
from pab.families.demo_wan.weights import WEIGHTS
from pab.family import ClipRequest, LoadRequest
from pab.library.broadcast_module import BlockKernels
from pab.library.video import DiffusersVideo
from pab.sampling.denoise import plan_for
from tests.pab.denoised import denoised

ASKED = (("star", "yellow", "navy", "left"), ("ring", "pink", "teal", "up"))


def test_the_shipped_weights_fit_into_sixteen_megabytes():
    assert WEIGHTS.stat().st_size <= 16e6


def test_the_shipped_model_draws_what_it_is_asked_for_and_moves_it_as_asked():
    """A look at two prompts; `python -m pab.families.demo_wan.training.check` counts 64."""
    demo = load_demo()
    parts = SampledParts(
        transformer=load_transformer(WEIGHTS), text_encoder=demo.text_encoder, autoencoder=demo.autoencoder
    )
    prompts = [
        f"a medium {colour} {shape} moving {direction} on a {background} background"
        for shape, colour, background, direction in ASKED
    ]
    settings = SampleSettings(size=ClipSize(num_frames=8, height=64, width=64), num_steps=6)
    clips = render_prompts(parts, prompts, seed=1, settings=settings)
    read = [(scene.shape, scene.colour, scene.background, scene.direction) for scene in read_scenes(clips)]
    assert read == list(ASKED)


def test_the_check_says_by_its_exit_code_whether_a_model_follows(capsys):
    for check in (main, check_demo):
        few = ["--prompts", "1", "--steps", "1"]
        assert [check([*few, "--least", least]) for least in ("0", "1.1")] == [0, 1]
        assert "direction" in capsys.readouterr().out


def latents(*, eight: bool, inside: bool = False) -> Tensor:
    """Of a clip of 6 steps by the shipped weights. `eight`: products of 8-bit floats; `inside`: with an MLP's GELU in one."""
    family = find_family("demo_wan")
    model = family.load(LoadRequest(weights=None, precision="float32", device="cpu"))
    assert isinstance(model, DiffusersVideo)
    if eight:
        model.current.kernels = BlockKernels(gelu8=inside)
        model.use_float8()
    usual = family.defaults
    request = ClipRequest(
        prompt="a red circle moving left", negative_prompt=None, seed=1, num_frames=usual.num_frames, height=usual.height,
        width=usual.width, fps=usual.fps, num_steps=6, guidance_scale=usual.guidance_scale,
    )  # fmt: skip
    return denoised(model, request, plan_for(family, request, NO_BROADCAST, "float32")).latents


def test_trained_weights_lose_no_more_by_gelu_inside_of_a_product_of_8_bit_floats() -> None:
    """Its rows are rounded by a bound, and not by their largest value: trained models have channels that stand out."""
    exact = latents(eight=False)
    by_row, by_bound = ((latents(eight=True, inside=inside) - exact).norm() / exact.norm() for inside in (False, True))
    assert 0 < by_bound < 1.3 * by_row
    assert by_row < 0.2
