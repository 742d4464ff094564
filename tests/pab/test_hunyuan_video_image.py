"""HunyuanVideo's two models of image to video beside the library's own pipeline: the text that sees the image, whole runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pab.broadcast.rules import NO_BROADCAST
from pab.broadcast.state import COND, UNCOND
from pab.conditioning.reference_pixels import ReferenceImage
from pab.families import find_family
from pab.family import LoadRequest
from pab.library.image import image_of
from pab.library.video import DiffusersVideo
from pab.parallel.mesh import NodeGroup, open_group
from pab.weights.checkpoint import CheckpointError
from tests.pab.denoised import relative
from tests.pab.hunyuan_worlds import WholeLatents
from tests.pab.library_world import edited, picture
from tests.pab.library_worlds import WORLDS
from tests.ranks import run_on_ranks

REPLACED, BESIDE = "hunyuan_video_i2v", "hunyuan_video_i2v_33ch"
"""The image is the first frame's tokens, or its latents stand beside the noise."""
LONG = "a cat walks over a red carpet " * 60


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(REPLACED, BESIDE, "hunyuan_video")


def whole_pipeline(folder: Path, name: str) -> Any:
    world = WORLDS[name]
    pipeline = world.pipeline(folder / name, world.clip())
    pipeline.register_modules(**world.text_parts(folder / name))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline._pipeline if isinstance(pipeline, WholeLatents) else pipeline


@pytest.mark.parametrize(("name", "scale"), [(REPLACED, 6.0), (BESIDE, 1.0), (BESIDE, 4.0)])
def test_a_whole_run_is_the_library_s_from_the_seed_and_the_picture_alone(weights, name, scale):
    world = WORLDS[name]
    model, request = world.load(weights), world.clip(num_steps=2, guidance_scale=scale)
    guided = {"true_cfg_scale": scale, "negative_prompt": request.negative_prompt, "guidance_scale": 1.0}
    with torch.inference_mode():
        theirs = whole_pipeline(weights, name)(
            image_of(picture()), request.prompt, height=request.height, width=request.width,
            num_frames=request.num_frames + world.lead_frames, num_inference_steps=request.num_steps,
            generator=torch.Generator().manual_seed(request.seed), output_type="pt", return_dict=False,
            **({"guidance_scale": scale} if name == REPLACED else guided),
        )[0]  # fmt: skip
    ours = model.decode(world.render(model, request, NO_BROADCAST).latents, request, NodeGroup()).frames
    assert ours.shape == (1, request.num_frames, request.height, request.width, 3)
    assert (ours / 255 - theirs.permute(0, 1, 3, 4, 2)).abs().max() < 0.6 / 255


@pytest.mark.parametrize("prompt", ["a cat", "", LONG])
def test_a_prompt_is_read_after_the_image_and_long_ones_are_cut_as_in_the_library(weights, prompt):
    world = WORLDS[REPLACED]
    model, request = world.load(weights), world.clip(prompt=prompt)
    states, mask, pooled = world.prompt(model, request).states(COND)
    (theirs,) = world.encode(whole_pipeline(weights, REPLACED), request, 256)
    assert (states.shape, mask.shape) == ((1, 144 + 252, 32), (1, 144 + 252))
    assert torch.equal(mask, theirs[1].to(mask.dtype))
    for ours, part in ((states, theirs[0]), (pooled, theirs[2])):
        assert relative(ours, part) < 1e-5
    warned = model.encode_prompts([request])[0].warnings
    assert ["the text encoder reads the first 251" in warning for warning in warned[:1]] == [prompt == LONG]


def test_states_depend_on_the_image_and_the_negative_prompt_is_read_with_black(weights):
    world = WORLDS[BESIDE]
    model, request = world.load(weights), world.clip()
    black = ReferenceImage(frame_HW3=torch.zeros(8, 8, 3, dtype=torch.uint8))
    own, other = (model.given_image(request, image).own_states for image in (picture(), black))
    first, second = (states(COND)[0] for states in (own, other))
    assert relative(first[:, :288], second[:, :288]) > 1e-3, "of the image"
    assert relative(first[:, 288:], second[:, 288:]) > 1e-4, "of the prompt behind it"
    assert torch.equal(own(UNCOND)[0], other(UNCOND)[0])
    unguided = model.given_image(world.clip(guidance_scale=1.0), picture()).own_states
    with pytest.raises(KeyError, match=UNCOND):
        unguided(UNCOND)
    with pytest.raises(AssertionError, match="with the image where there is one"):
        model.encode_prompts([request])[0].states(COND)


def test_a_prompt_that_names_the_placeholder_and_a_tokenizer_that_does_not_know_it_are_refused(weights, tmp_path):
    world = WORLDS[REPLACED]
    with pytest.raises(
        ValueError, match="the prompt 'a <image> of a cat' has <image> in it, which stands for the clip's"
    ):
        world.given(world.load(weights), world.clip(prompt="a <image> of a cat"))
    edited(weights / REPLACED, tmp_path / REPLACED, "text_encoder/config.json", image_token_index=3)
    with pytest.raises(CheckpointError, match=r"tokenizer: the image's placeholder is at \[3, .* needs 5"):
        world.given(world.load(tmp_path), world.clip())


def test_ranks_of_a_clip_share_its_texts(weights):
    alone = texts(WORLDS[BESIDE].load(weights))
    for rank in run_on_ranks(2, shared_texts, weights):
        assert all(relative(ours, theirs) < 1e-5 for ours, theirs in zip(rank, alone, strict=True))


def shared_texts(folder: Path) -> list[Tensor]:
    group = open_group(dp=1, cfg=2, sp=1, device=torch.device("cpu"))
    request = LoadRequest(weights=str(folder / BESIDE), precision="float32", device="cpu", clip_axis=group.clip)
    model = WORLDS[BESIDE].family.load(request)
    assert isinstance(model, DiffusersVideo)
    return texts(model)


def texts(model: DiffusersVideo) -> list[Tensor]:
    prompt = WORLDS[BESIDE].prompt(model, WORLDS[BESIDE].clip())
    return [part for branch in (COND, UNCOND) for part in prompt.states(branch)]


def test_frames_before_the_clip_are_counted_and_left_out(weights):
    world, family = WORLDS[BESIDE], find_family(BESIDE)
    model, request = world.load(weights), world.clip(num_frames=5)
    assert model.latent_shape(request) == (16, 3, 4, 4)
    assert family.num_tokens(5, 32, 32) == 3 * 2 * 2
    assert (family.defaults.num_frames, max(family.limits.num_frames)) == (125, 125)
    assert family.limits.max_tokens == find_family("hunyuan_video").limits.max_tokens


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        (REPLACED, "hunyuan_video", "hunyuan_video_i2v. has no image_processor/"),
        ("hunyuan_video", REPLACED, "image_condition_type='token_replace', this family's model has None"),
        (BESIDE, REPLACED, "in_channels=16, this family's model has 33"),
    ],
)
def test_weights_of_another_model_are_refused(weights, tmp_path, name, of, message):
    (tmp_path / name).symlink_to(weights / of)
    with pytest.raises(CheckpointError, match=message):
        WORLDS[name].load(tmp_path)
