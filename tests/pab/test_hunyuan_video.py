"""HunyuanVideo and SkyReels V1 beside the library's own pipeline: what they have besides the library's other families."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pab.broadcast.rules import NO_BROADCAST
from pab.broadcast.state import COND, UNCOND
from pab.families import find_family
from pab.families.hunyuan_video.config import SHIFT
from pab.families.hunyuan_video.text import INSTRUCTION, INSTRUCTION_TOKENS
from pab.families.hunyuan_video.weights import SKYREELS_WEIGHTS
from pab.library.even_levels import even_levels, moved_timesteps
from pab.library.parts import library_class
from pab.library.video import UNREAD_NEGATIVE
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import branches, initial_noise, plan_for
from pab.weights.checkpoint import CheckpointError
from tests.pab.denoised import relative
from tests.pab.library_world import displayed, edited, library_module, scheduler
from tests.pab.library_worlds import WORLDS

TOLD, BRANCHES = WORLDS["hunyuan_video"], WORLDS["skyreels_v1"]
"""One is told the guidance scale, the other has two branches."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    TOLD.write(folder / "hunyuan_video")
    (folder / "skyreels_v1").symlink_to(folder / "hunyuan_video")
    return folder


def test_planned_levels_are_the_library_s(weights):
    flow = scheduler(weights / "hunyuan_video")
    for num_steps in (1, 2, 3, 7, 30, 50, 333, 1000):
        flow.set_timesteps(num_steps, sigmas=list(even_levels(num_steps)))
        assert moved_timesteps(num_steps, SHIFT) == tuple(flow.timesteps.tolist())
    with pytest.raises(ValueError, match="num_steps=0, allowed 1 to 1000"):
        moved_timesteps(0, SHIFT)


@pytest.mark.parametrize("name", ["hunyuan_video", "skyreels_v1"])
def test_the_preset_reuses_between_the_first_and_the_last_steps(name):
    family = find_family(name)
    plan = plan_for(family, TOLD.clip(num_steps=50), family.presets["pab2"], "bfloat16")
    reused = [step for step, pattern in enumerate(plan.patterns) if "." in pattern]
    assert (reused[0], reused[-1]) == (9, 41)
    assert [plan.computed(kind) / plan.total(kind) for kind in ("spatial", "mlp")] == [33 / 50, 1]
    assert [plan.total(kind) / 50 for kind in ("spatial", "mlp")] == [60, 40], "joint attention everywhere, MLPs of 20"


def test_a_whole_run_is_the_library_s_from_the_seed_alone(weights):
    model, request = TOLD.load(weights), TOLD.clip(num_steps=2, negative_prompt=None)
    pipeline = TOLD.pipeline(weights / "hunyuan_video", request)
    pipeline.register_modules(**TOLD.text_parts(weights / "hunyuan_video"))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        request.prompt, height=request.height, width=request.width, num_frames=request.num_frames,
        num_inference_steps=request.num_steps, guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed), output_type="pt", return_dict=False,
    )[0]  # fmt: skip
    ours = model.decode(TOLD.render(model, request, NO_BROADCAST).latents, request, NodeGroup()).frames
    assert (ours / 255 - theirs.permute(0, 1, 3, 4, 2)).abs().max() < 0.6 / 255


def test_a_large_and_a_long_clip_are_decoded_in_the_library_s_tiles(weights):
    model, vae = TOLD.load(weights), library_module(weights / "hunyuan_video" / "vae")
    for size in ({"num_frames": 1, "height": 272, "width": 288}, {"num_frames": 21}):
        request = TOLD.clip(**size)
        latents = initial_noise(request, model.latent_shape(request))
        with torch.inference_mode():
            vae.use_tiling = False
            whole = displayed(vae.decode(latents / vae.config.scaling_factor).sample)
            tiled = TOLD.library_frames(vae, latents, request)
        ours = model.decode(latents, request, NodeGroup()).frames / 255
        assert ours.shape == (1, request.num_frames, request.height, request.width, 3)
        assert (ours - tiled).abs().max() < 0.6 / 255
        assert (request.num_frames > 1) == torch.equal(whole, tiled), "in space only where it is large"


def test_a_model_that_is_told_its_guidance_makes_one_pass_and_reads_no_negative_prompt(weights):
    model = TOLD.load(weights)
    weak, strong = (TOLD.clip(guidance_scale=scale, negative_prompt="waves") for scale in (1.0, 6.0))
    prompt = model.encode_prompts([strong])[0]
    assert prompt.warnings == (UNREAD_NEGATIVE,)
    assert model.encode_prompts([replace(strong, negative_prompt=None)])[0].warnings == ()
    for group in (NodeGroup(), NodeGroup(cfg=Axis(size=2, rank=1))):
        assert branches(strong, prompt, group) == (COND,)
    rendered = [TOLD.render(model, clip, NO_BROADCAST) for clip in (weak, strong)]
    assert {done.passes for done in rendered} == {1}
    assert relative(rendered[0].latents, rendered[1].latents) > 1e-4
    other = TOLD.render(model, replace(strong, negative_prompt="a dog"), NO_BROADCAST)
    assert torch.equal(other.latents, rendered[1].latents)


def test_one_cache_for_both_passes_as_in_the_library_takes_guidance_from_the_attention(weights):
    """The library's own hook beside ours, each reusing all attention of the second step."""
    model, request = BRANCHES.load(weights), BRANCHES.clip()
    text = model.encode_prompts([request])[0].states
    noise = initial_noise(request, model.latent_shape(request))
    transformer = library_module(weights / "skyreels_v1" / "transformer")
    given: list[torch.Tensor] = []
    attention = transformer.single_transformer_blocks[0].attn
    attention.register_forward_hook(lambda _module, _inputs, output: given.append(output[0]))

    def attentions() -> list[torch.Tensor]:
        given.clear()
        for branch in (COND, UNCOND):
            states, mask, pooled = text(branch)
            with transformer.cache_context(branch), torch.inference_mode():
                transformer(noise, torch.tensor([900.0]), states, mask, pooled, torch.tensor([1000.0]))
        return list(given)

    cond, uncond = attentions()
    assert relative(cond, uncond) > 0
    library_class("apply_pyramid_attention_broadcast")(
        transformer,
        library_class("PyramidAttentionBroadcastConfig")(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 700
        ),
    )
    cond, uncond = attentions()
    assert torch.equal(cond, uncond), "the unconditional pass takes what the conditional one left"


def test_prompts_are_read_within_the_instruction_and_long_ones_are_told(weights):
    model = TOLD.load(weights)
    short, long = model.encode_prompts([TOLD.clip(), TOLD.clip(prompt="a cat walks over a red carpet " * 60)])
    assert short.warnings == (UNREAD_NEGATIVE,)
    assert "the text encoder reads the first 256" in long.warnings[0]
    states, mask, pooled = short.states(COND)
    assert (states.shape, mask.shape, pooled.shape) == ((1, 256, 32), (1, 256), (1, 16))
    tokenizer = TOLD.text_parts(weights / "hunyuan_video")["tokenizer"]
    count = len(tokenizer(INSTRUCTION.format("a cat walks over a red carpet")).input_ids)
    assert mask.sum() == count - INSTRUCTION_TOKENS
    alone = TOLD.load(weights).encode_prompts([TOLD.clip()])[0].states(COND)
    assert all(torch.equal(a, b) for a, b in zip(alone, (states, mask, pooled), strict=True))


def test_clip_s_keys_are_read_with_and_without_their_prefix(weights, tmp_path):
    edited(weights / "hunyuan_video", tmp_path / "hunyuan_video", "text_encoder_2/config.json")
    file = tmp_path / "hunyuan_video" / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    assert all(key.startswith("text_model.") for key in tensors)
    file.unlink()
    save_file({key.removeprefix("text_model."): value for key, value in tensors.items()}, file)
    ours, theirs = (
        TOLD.load(folder).encode_prompts([TOLD.clip()])[0].states(COND)[2] for folder in (tmp_path, weights)
    )
    assert relative(ours, theirs) < 1e-6


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"guidance_embeds": False}, "guidance_embeds=False, this family's model has True"),
        ("transformer/config.json", {"num_single_layers": 40}, "num_single_layers=40, this family's model has 2"),
        ("transformer/config.json", {"pooled_projection_dim": 24}, r"misshaped .*: time_text_embed.text_embedder"),
        ("vae/config.json", {"mid_block_add_attention": False}, r"surplus .*: decoder.mid_block.attentions"),
        ("scheduler/scheduler_config.json", {"shift": 5.0}, "shift=5.0, this family's model has 7.0"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 0.1}, "gives timesteps .* this family plans"),
        ("text_encoder/config.json", {"num_hidden_layers": 5}, r"LLaMA in .*\n  missing .*: layers.4.self_attn"),
        ("text_encoder_2/config.json", {"num_hidden_layers": 1}, r"CLIP in .*\n  surplus .*encoder.layers.1"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused(weights, tmp_path, file, changes, message):
    edited(weights / "hunyuan_video", tmp_path / "hunyuan_video", file, **changes)
    with pytest.raises(CheckpointError, match=message):
        TOLD.load(tmp_path).encode_prompts([TOLD.clip()])


def test_skyreels_takes_its_transformer_from_its_own_repository(weights, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commits = {"Skywork--SkyReels-V1-Hunyuan-T2V": "a" * 40, "hunyuanvideo-community--HunyuanVideo": "b" * 40}
    own, companions = (tmp_path / f"models--{name}/snapshots/{commit}" for name, commit in commits.items())
    own.parent.mkdir(parents=True)
    for part in SKYREELS_WEIGHTS.companions.components:
        (companions / part).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="download Skywork/SkyReels-V1-Hunyuan-T2V at revision main"):
        SKYREELS_WEIGHTS.find(None)
    own.mkdir()
    for folder, commit in ((own, "a" * 40), (companions, "b" * 40)):
        (folder / "config.json").write_text("{}")
        (folder.parent.parent / "refs").mkdir()
        (folder.parent.parent / "refs" / "main").write_text(commit)
    assert SKYREELS_WEIGHTS.find(None) == (own, companions)
    pinned = f"Skywork/SkyReels-V1-Hunyuan-T2V@{'a' * 40},hunyuanvideo-community/HunyuanVideo@{'b' * 40}"
    assert SKYREELS_WEIGHTS.pin(None) == SKYREELS_WEIGHTS.pin(pinned) == pinned
    assert SKYREELS_WEIGHTS.find(pinned) == (own, companions)
    assert (
        SKYREELS_WEIGHTS.digest(None) == SKYREELS_WEIGHTS.digest(pinned) != SKYREELS_WEIGHTS.digest("a/b@" + "c" * 40)
    )
    with pytest.raises(CheckpointError, match="d/e holds no part of this model, allowed after the first: hunyuanvideo"):
        SKYREELS_WEIGHTS.find("a/b,d/e")
    local = str(weights / "skyreels_v1")
    assert SKYREELS_WEIGHTS.find(local) == (weights / "skyreels_v1" / "transformer", weights / "skyreels_v1")
    assert len(SKYREELS_WEIGHTS.digest(local)) == 16
    with pytest.raises(CheckpointError, match="has no transformer/, vae/"):
        SKYREELS_WEIGHTS.find(str(own))
    with pytest.raises(CheckpointError, match="neither a folder on this machine nor a hub id"):
        SKYREELS_WEIGHTS.find("not/a/folder")
