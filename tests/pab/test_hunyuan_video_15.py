"""HunyuanVideo 1.5 beside the library's own pipeline: what it has besides the library's other families."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pab.broadcast.rules import NO_BROADCAST
from pab.broadcast.state import COND
from pab.families import find_family
from pab.families.hunyuan_video_15.config import MODEL_720P
from pab.families.hunyuan_video_15.text import INSTRUCTION, INSTRUCTION_TOKENS, shown_text
from pab.library.even_levels import even_levels, moved_timesteps
from pab.library.parts import library_class
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import initial_noise, plan_for
from pab.weights.checkpoint import CheckpointError
from tests.pab.hunyuan_worlds import hunyuan_15_world
from tests.pab.library_world import displayed, edited, library_module
from tests.pab.library_worlds import WORLDS

NAME = "hunyuan_video_15_480p"
WORLD = WORLDS[NAME]


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(NAME)


@pytest.mark.parametrize("shift", [5.0, 9.0])
def test_planned_levels_are_the_library_s(shift):
    flow = library_class("FlowMatchEulerDiscreteScheduler")(shift=shift)
    for num_steps in (1, 2, 3, 7, 30, 50, 333, 1000):
        flow.set_timesteps(num_steps, sigmas=list(even_levels(num_steps)))
        assert moved_timesteps(num_steps, shift) == tuple(flow.timesteps.tolist())
    with pytest.raises(ValueError, match="num_steps=0, allowed 1 to 1000"):
        moved_timesteps(0, shift)


@pytest.mark.parametrize("name", ["hunyuan_video_15_480p", "hunyuan_video_15_720p"])
def test_the_preset_reuses_between_the_first_and_the_last_steps(name):
    family = find_family(name)
    plan = plan_for(family, WORLD.clip(num_steps=50), family.presets["pab2"], "bfloat16")
    reused = [step for step, pattern in enumerate(plan.patterns) if "." in pattern]
    assert (reused[0], reused[-1]) == (9, 41)
    assert [plan.total(kind) / 50 for kind in ("spatial", "mlp")] == [54, 108]


def test_a_whole_run_with_text_to_be_shown_is_the_library_s_from_the_seed_alone(weights):
    model = WORLD.load(weights)
    request = WORLD.clip(num_steps=2, prompt='a shop with the sign "open" and “late”', negative_prompt=None)
    pipeline = WORLD.pipeline(weights / NAME, request)
    pipeline.register_modules(**WORLD.text_parts(weights / NAME))
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length = 60, 20
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.system_message == INSTRUCTION
    assert pipeline.prompt_template_encode_start_idx == INSTRUCTION_TOKENS
    theirs = pipeline(
        request.prompt, height=request.height, width=request.width, num_frames=request.num_frames,
        num_inference_steps=request.num_steps, generator=torch.Generator().manual_seed(request.seed), output_type="pt",
        return_dict=False,
    )[0]  # fmt: skip
    ours = model.decode(WORLD.render(model, request, NO_BROADCAST).latents, request, NodeGroup()).frames
    assert (ours / 255 - theirs.permute(0, 1, 3, 4, 2)).abs().max() < 0.6 / 255


def test_text_in_quotes_is_read_by_a_second_encoder(weights):
    assert shown_text("a plain prompt") is None
    assert shown_text('“a” and "b" and "a"') == 'Text "a". Text "b". '
    model = WORLD.load(weights)
    plain, shown = model.encode_prompts([WORLD.clip(), WORLD.clip(prompt='a sign "open"')])
    (_, _, no_states, no_mask), (_, _, states, mask) = plain.states(COND), shown.states(COND)
    assert no_mask.sum() == no_states.abs().sum() == 0
    assert mask.sum() == len('Text "open". ') + 1
    assert states[:, : int(mask.sum())].abs().min() > 0


def test_long_prompts_are_told(weights):
    model = WORLD.load(weights)
    (long,) = model.encode_prompts([WORLD.clip(prompt="a cat walks over a red carpet " * 40)])
    assert "the text encoder reads the first 60" in long.warnings[0]


def test_a_large_clip_is_decoded_in_the_library_s_tiles(weights):
    model, vae = WORLD.load(weights), library_module(weights / NAME / "vae")
    request = WORLD.clip(num_frames=1, height=272, width=32)
    latents = initial_noise(request, model.latent_shape(request))
    with torch.inference_mode():
        whole = displayed(vae.decode(latents / vae.config.scaling_factor).sample)
        tiled = WORLD.library_frames(vae, latents, request)
    ours = model.decode(latents, request, NodeGroup()).frames / 255
    assert (ours - tiled).abs().max() < 0.6 / 255
    assert not torch.equal(whole, tiled)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"num_layers": 20}, "num_layers=20, this family's model has 2"),
        ("transformer/config.json", {"image_embed_dim": 24}, r"misshaped .*: image_embedder"),
        ("scheduler/scheduler_config.json", {"shift": 9.0}, "shift=9.0, this family's model has 5.0"),
        (
            "text_encoder/config.json",
            {"num_hidden_layers": 5, "layer_types": None},
            r"Qwen2.5-VL in .*\n  missing .*: layers.3.self_attn",
        ),
        ("tokenizer/tokenizer_config.json", {"chat_template": None}, "has no chat template"),
    ],
)
def test_weights_of_another_model_are_refused(weights, tmp_path, file, changes, message):
    edited(weights / NAME, tmp_path / NAME, file, **changes)
    with pytest.raises(CheckpointError, match=message):
        WORLD.load(tmp_path).encode_prompts([WORLD.clip()])


def test_the_larger_model_moves_its_levels_further(tmp_path):
    world = hunyuan_15_world(replace(MODEL_720P, num_layers=1, max_text_tokens=20, max_glyph_tokens=20))
    world.write(tmp_path / world.family.name)
    model, request = world.load(tmp_path), world.clip(num_steps=2, guidance_scale=1.0)
    done = world.render(model, request, NO_BROADCAST)
    assert done.plan.timesteps == (1000.0, 900.0)
    assert torch.equal(done.latents, world.library_latents(tmp_path, model, request))
