"""demo_wan as a family: the library's own pipeline without reuse, its guidance with it, and what names its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pab.broadcast.rules import NO_BROADCAST, pyramid
from pab.broadcast.state import COND, UNCOND, BroadcastState
from pab.families import find_family
from pab.families.demo_wan.config import FLOW_SHIFT
from pab.families.demo_wan.transformer import load_transformer
from pab.families.demo_wan.weights import demo_wan_digest
from pab.families.wan.load import SCHEDULER
from pab.family import ClipRequest, LoadRequest
from pab.library.parts import library_class
from pab.library.video import DiffusersVideo
from pab.model import StepInput
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import initial_noise, plan_for
from pab.weights.checkpoint import CheckpointError
from tests.pab.denoised import denoised, relative

FAMILY = find_family("demo_wan")


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights("demo_wan") / "demo_wan"


def load(weights: Path, precision: str = "float32") -> DiffusersVideo:
    model = FAMILY.load(LoadRequest(weights=str(weights), precision=precision, device="cpu"))
    assert isinstance(model, DiffusersVideo)
    return model


def clip(**changes) -> ClipRequest:
    values = {
        "prompt": "a red circle moving left", "negative_prompt": None, "seed": 3, "num_frames": 8, "height": 32,
        "width": 32, "fps": 8, "num_steps": 3, "guidance_scale": 4.0,
    } | changes  # fmt: skip
    return ClipRequest(**values)


def latents(model: DiffusersVideo, request: ClipRequest) -> Tensor:
    return denoised(model, request, plan_for(FAMILY, request, NO_BROADCAST, "float32")).latents


@pytest.mark.parametrize(("guidance_scale", "shift"), [(4.0, None), (1.0, 5.0)])
def test_without_broadcast_latents_are_the_library_pipeline_s_bit_for_bit(weights, guidance_scale, shift):
    model, request = load(weights), clip(guidance_scale=guidance_scale, flow_shift=shift)
    states = model.encode_prompts([request])[0].states
    pipeline = library_class("WanPipeline")(
        tokenizer=None, text_encoder=None, vae=None,
        scheduler=library_class("UniPCMultistepScheduler").from_config({**SCHEDULER, "flow_shift": shift or FLOW_SHIFT}),
        transformer=load_transformer(weights / "demo_wan.safetensors"),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    (theirs,) = pipeline(
        prompt_embeds=states(COND), negative_prompt_embeds=states(UNCOND), height=32, width=32, num_frames=9,
        num_inference_steps=3, guidance_scale=guidance_scale, output_type="latent", return_dict=False,
        latents=initial_noise(request, model.latent_shape(request)),
    )  # fmt: skip
    ours = latents(model, request)
    assert torch.equal(ours, theirs)
    assert ours.std() > 0.1


def test_guidance_survives_reuse_in_two_passes():
    """With the shipped weights, whose branches differ by what the text says."""
    model, request = load(Path("pab/families/demo_wan")), clip(num_steps=30)
    prompt, noise = model.encode_prompts([request])[0], initial_noise(request, model.latent_shape(request))

    def difference(rules) -> float:
        plan = plan_for(FAMILY, request, rules, "float32")
        state = BroadcastState(plan)
        outputs: list[Tensor] = []
        with torch.inference_mode():
            for step in (0, 1):
                given = StepInput(request=request, step=step, timestep=plan.timesteps[step], active_frames=None)
                outputs = [
                    model.predict(noise, given, prompt.states(branch), state.visit(step, branch), NodeGroup())
                    for branch in (COND, UNCOND)
                ]
        assert bool(state.reused) == (rules is not NO_BROADCAST)
        return relative(*outputs)

    exact = difference(NO_BROADCAST)
    assert difference(pyramid(2, None, 2, window=(0, 1000))) > 0.5 * exact > 0.01


def test_bfloat16_stays_near_float32(weights):
    exact, rounded = (latents(load(weights, precision), clip()) for precision in ("float32", "bfloat16"))
    assert 0 < ((rounded - exact).norm() / exact.norm()).item() < 0.05


def test_both_files_that_loading_reads_name_the_weights(weights, tmp_path):
    own, shipped = FAMILY.weights_digest(str(weights)), FAMILY.weights_digest(None)
    assert own == FAMILY.weights_digest(str(weights / "demo_wan.safetensors")) != shipped
    other = tmp_path / "demo.safetensors"
    other.write_bytes(b"another autoencoder")
    assert demo_wan_digest(None) == shipped != demo_wan_digest(None, other)


def test_weights_of_another_family_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the demo_wan family needs a demo_wan\.safetensors"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="has format 'pab-demo-3'"):
        load(Path("pab/families/demo/demo.safetensors"))


def test_unknown_words_are_told():
    model = load(Path("pab/families/demo_wan"))
    (prompt,) = model.encode_prompts([replace(clip(), prompt="a red zebra")])
    assert prompt.warnings == ("the demo model does not know 'zebra'",)
