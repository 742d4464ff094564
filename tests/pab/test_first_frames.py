"""Families that may be given the first frame of a clip: the library's image-to-video pipelines, and unchanged without."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pab.broadcast.rules import NO_BROADCAST
from pab.conditioning.reference_noise import reference_generator
from pab.conditioning.reference_pixels import ReferenceImage
from pab.family import ClipRequest
from pab.library.image import clip_pixels, image_of
from pab.library.video import DiffusersVideo
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import Denoised, initial_noise, plan_for
from tests.pab.denoised import denoised, relative
from tests.pab.library_ranks import prompt
from tests.pab.library_world import picture, plain_pipeline
from tests.pab.library_worlds import WORLDS
from tests.pab.test_library_families import EVERY_OTHER
from tests.pab.wan_worlds import wan_image_pipeline
from tests.ranks import run_on_ranks

PIPELINES: dict[str, Callable[..., Any]] = {
    "wan22_5b": wan_image_pipeline,
    "ltx": partial(plain_pipeline, name="LTXImageToVideoPipeline"),
}


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*PIPELINES, "wan_14b_i2v_480p")


def render(
    name: str, model: DiffusersVideo, rules=NO_BROADCAST, group: NodeGroup | None = None, image: bool = True, **changes
) -> Denoised:
    world = WORLDS[name]
    request = world.clip(**changes)
    return denoised(
        model,
        request,
        plan_for(world.family, request, rules, "float32"),
        prompt=prompt(model, name),
        group=group,
        given=model.given_image(request, picture()) if image else None,
    )


def library_latents(name: str, folder: Path, model: DiffusersVideo, request: ClipRequest) -> Tensor:
    """Final latents of the library's image-to-video pipeline, from the same noise and text states."""
    world = WORLDS[name]
    noise = initial_noise(request, model.latent_shape(request))
    pipeline = PIPELINES[name](folder / name, request)
    pipeline.set_progress_bar_config(disable=True)
    begun = noise
    if name == "ltx":  # it takes latents with the image's in them
        begun = first_latents(pipeline, request)
        begun = torch.cat([begun, noise[:, :, 1:]], dim=2)
    latents = pipeline(
        image=image_of(picture()), **world.texts(prompt(model, name).states), height=request.height,
        width=request.width, num_frames=request.num_frames, num_inference_steps=request.num_steps,
        guidance_scale=request.guidance_scale, output_type="latent", return_dict=False, latents=world.pack(begun),
        **world.options(request),
    )[0]  # fmt: skip
    return world.unpack(latents, noise)


def first_latents(pipeline: Any, request: ClipRequest) -> Tensor:
    """The first latent frame that the library's LTX pipeline makes of an image, with noise drawn as ours."""
    pixels = pipeline.video_processor.preprocess(image_of(picture()), height=request.height, width=request.width)
    with torch.inference_mode():
        packed, mask = pipeline.prepare_latents(
            pixels, height=request.height, width=request.width, num_frames=request.num_frames, dtype=torch.float32,
            generator=reference_generator(request.seed),
        )  # fmt: skip
    first = packed[:, mask[0] == 1]
    return first.transpose(1, 2).unflatten(2, (1, request.height // 32, request.width // 32))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_clip_that_begins_with_an_image_is_the_library_pipeline_s_bit_for_bit(weights, name):
    model = WORLDS[name].load(weights)
    for guidance_scale in (5.0, 1.0):
        changes = {"guidance_scale": guidance_scale, "num_frames": 17, "num_steps": 3}
        ours = render(name, model, **changes)
        assert torch.equal(ours.latents, library_latents(name, weights, model, WORLDS[name].clip(**changes)))
        assert ours.latents.std() > 0.1


@pytest.mark.parametrize("name", PIPELINES)
def test_the_first_frame_is_the_image_and_the_others_see_it_with_broadcast_and_on_ranks(weights, name):
    model = WORLDS[name].load(weights)
    alone = render(name, model, EVERY_OTHER, num_frames=17)
    first = model.given_image(WORLDS[name].clip(num_frames=17), picture()).condition.first_BCTHW
    assert torch.equal(alone.latents[:, :, :1], first)
    free = render(name, model, EVERY_OTHER, image=False, num_frames=17)
    assert (alone.computed, alone.reused) == (free.computed, free.reused)
    assert relative(alone.latents[:, :, 1:], free.latents[:, :, 1:]) > 1e-3
    for latents in run_on_ranks(2, render_shared, weights, name):
        assert relative(latents, alone.latents) < 1e-5


def render_shared(folder: Path, name: str) -> Tensor:
    group = open_group(dp=1, cfg=1, sp=2, device=torch.device("cpu"))
    return render(name, WORLDS[name].load(folder), EVERY_OTHER, group, num_frames=17).latents


def test_images_of_any_size_are_scaled_to_the_clip_s_and_strips_are_refused(weights):
    model = WORLDS["wan_14b_i2v_480p"].load(weights)
    for height, width in ((1, 1), (33, 32), (7, 100)):
        assert clip_pixels(picture(height, width), 32, 48, torch.device("cpu")).shape == (1, 3, 32, 48)
        given = model.given_image(WORLDS["wan_14b_i2v_480p"].clip(), picture(height, width))
        assert given.condition.channels_BCTHW.shape == (1, 20, 2, 4, 4)
        assert given.image_states.shape == (1, 5, 16)
    with pytest.raises(
        ValueError, match="it has 100 x 6 pixels; one side may be up to 16 times as long as the other; cut it"
    ):
        picture(6, 100)
    same = ReferenceImage(frame_HW3=torch.arange(32 * 48 * 3, dtype=torch.int64).remainder(256).byte().view(32, 48, 3))
    exact = clip_pixels(same, 32, 48, torch.device("cpu"))
    assert torch.equal(((exact[0].permute(1, 2, 0) + 1) * 127.5).round().byte(), same.frame_HW3)
