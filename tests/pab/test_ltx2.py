"""LTX-2 beside the library's own pipeline: its sound, and what else it has besides the library's other families."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift

from pab.broadcast.rules import NO_BROADCAST
from pab.broadcast.state import COND
from pab.families import find_family
from pab.families.ltx2.config import ltx2_timesteps, ltx2_tokens
from pab.families.ltx2.load import streams
from pab.library.video import DiffusersVideo
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import initial_noise, plan_for
from pab.weights.checkpoint import CheckpointError
from tests.pab.denoised import relative
from tests.pab.library_world import edited, library_module, scheduler
from tests.pab.library_worlds import WORLDS

WORLD = WORLDS["ltx2"]


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights("ltx2")


@pytest.mark.parametrize("size", [(121, 512, 768), (9, 64, 64), (257, 704, 1280)])
def test_planned_levels_are_the_library_s(weights, size):
    flow, tokens = scheduler(weights / "ltx2"), ltx2_tokens(*size)
    for num_steps in (2, 3, 30, 40, 333):
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
        flow.set_timesteps(num_steps, sigmas=sigmas, mu=calculate_shift(tokens, 1024, 4096, 0.95, 2.05))
        frames, height, width = size
        clip = WORLD.clip(num_steps=num_steps, num_frames=frames, height=height, width=width)
        assert ltx2_timesteps(clip, "bfloat16") == tuple(flow.timesteps.tolist())


def test_the_preset_reuses_between_the_first_and_the_last_steps():
    family = find_family("ltx2")
    request = WORLD.clip(num_frames=121, height=512, width=768, num_steps=40)
    plan = plan_for(family, request, family.presets["pab2-6"], "bfloat16")
    reused = [step for step, pattern in enumerate(plan.patterns) if "." in pattern]
    assert (reused[0], reused[-1]) == (7, 33)
    assert [plan.total(kind) // 40 for kind in ("spatial", "cross", "mlp")] == [48, 96, 96]


def test_a_whole_run_is_the_library_s_from_the_seed_alone_sound_too(weights):
    model, request, folder = WORLD.load(weights), WORLD.clip(num_steps=2), weights / "ltx2"
    pipeline = WORLD.pipeline(folder, request)
    del pipeline.connectors
    pipeline.register_modules(
        **WORLD.text_parts(folder), vae=library_module(folder / "vae"), audio_vae=library_module(folder / "audio_vae")
    )
    pipeline.set_progress_bar_config(disable=True)
    video, sound = pipeline(
        prompt=request.prompt, negative_prompt=request.negative_prompt, height=request.height, width=request.width,
        num_frames=request.num_frames, num_inference_steps=request.num_steps, guidance_scale=request.guidance_scale,
        output_type="pt", return_dict=False, max_sequence_length=16, **WORLD.options(request),
    )  # fmt: skip
    decoded = model.decode(WORLD.render(model, request, NO_BROADCAST).latents, request, NodeGroup())
    assert (decoded.frames / 255 - video.permute(0, 1, 3, 4, 2)).abs().max() < 0.6 / 255
    assert decoded.sound is not None
    assert decoded.sound.rate == 24000
    assert decoded.sound.samples.shape == sound.shape
    assert relative(decoded.sound.samples, sound) < 1e-4
    assert sound.std() > 0


def test_video_and_sound_hear_each_other_and_the_text(weights):
    model, request = WORLD.load(weights), WORLD.clip(num_steps=2)
    exact = WORLD.render(model, request, NO_BROADCAST).latents
    other = WORLD.render(model, WORLD.clip(num_steps=2, prompt="a dog"), NO_BROADCAST).latents
    assert all(relative(*pair) > 1e-5 for pair in zip(streams(other, request), streams(exact, request), strict=True))
    quiet = WORLD.load(weights)
    quiet_blocks = quiet.denoise.experts[0].transformer_blocks
    for block in quiet_blocks:
        block.block.audio_to_video_attn.to_out[0].weight.mul_(0)
        block.block.audio_to_video_attn.to_out[0].bias.mul_(0)
    deaf = WORLD.render(quiet, request, NO_BROADCAST).latents
    assert relative(streams(deaf, request)[0], streams(exact, request)[0]) > 1e-6


def test_sound_is_as_long_as_the_video_and_only_the_root_has_it(weights):
    model = WORLD.load(weights)
    for fps in (8, 24):
        request = WORLD.clip(fps=fps, num_frames=17)
        latents = initial_noise(request, model.latent_shape(request))
        video, sound = streams(latents, request)
        assert video.shape == (1, 128, 3, 2, 2)
        assert sound.shape == (1, 8, round(17 / fps * 25), 16)
        decoded = model.decode(latents, request, NodeGroup())
        assert decoded.sound is not None
        assert abs(decoded.sound.samples.shape[-1] / decoded.sound.rate - 17 / fps) < 0.1
    other = model.decode(latents, request, NodeGroup(clip=Axis(size=2, rank=1)))
    assert other.sound is None
    spoilt = latents.clone()
    spoilt[..., -1] = torch.nan
    assert model.decode(spoilt, request, NodeGroup()).not_finite.item() > 0


def test_text_is_read_from_the_left_and_registers_take_the_place_of_padding(weights):
    model = WORLD.load(weights)
    short, long = model.encode_prompts([WORLD.clip(), WORLD.clip(prompt="a cat walks over a red carpet " * 8)])
    video, sound, mask = short.states(COND)
    assert (video.shape, sound.shape) == ((1, 16, 16), (1, 16, 16))
    assert mask.min() == 1
    assert "the text encoder reads the first 16" in long.warnings[0]
    assert isinstance(model, DiffusersVideo)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"num_layers": 28}, "num_layers=28, this family's model has 2"),
        ("transformer/config.json", {"cross_attn_mod": True}, "cross_attn_mod=True is of LTX-2.3 or later"),
        ("audio_vae/config.json", {"sample_rate": 48000}, "sample_rate=48000, this family's model has 16000"),
        ("vocoder/config.json", {"hidden_channels": 64}, r"misshaped .*: conv_in"),
        ("connectors/config.json", {"video_connector_num_learnable_registers": 7}, "needs a number that divides 16"),
        ("scheduler/scheduler_config.json", {"shift_terminal": None}, "shift_terminal=None, this family's"),
    ],
)
def test_weights_of_another_model_are_refused(weights, tmp_path, file, changes, message):
    edited(weights / "ltx2", tmp_path / "ltx2", file, **changes)
    with pytest.raises(CheckpointError, match=message):
        WORLD.load(tmp_path).encode_prompts([WORLD.clip()])
