"""Frames that references give: which, how they are brought to size, and that they come out as they went in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pab.conditioning.reference_pixels import ReferencePixels, filled_size, fit_frame
from pab.families import FAMILIES
from pab.families.demo.family import DEMO
from pab.families.demo.scene import Scene
from pab.families.demo.training.generator import ClipSize, draw_clips
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora.given_frames import reference_noise
from pab.family import ClipRequest, LoadRequest
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import plan_for
from tests.pab.conftest import TinyWeights
from tests.pab.denoised import denoised
from tests.pab.reference_ranks import CLIP, encoded, moving_picture, render_given
from tests.ranks import run_on_ranks

RULES = OPEN_SORA.references


@pytest.fixture(scope="module")
def weights(tiny_weights: TinyWeights) -> Path:
    return tiny_weights("open_sora") / "open_sora"


@pytest.mark.parametrize(
    ("strategy", "frames", "told"),
    [
        ("first", [1], "needs whole numbers, then an edit ratio"),
        ("0,0,0,0,1,0,0", [1], "has 7 parts, needs at most 6"),
        ("0,0,0,0,1,1.5", [1], "edit ratio 1.5, allowed 0 to 1"),
        (" ; ", [1], "a mask strategy needs an entry such as 0"),
        ("1", [1], "it names loop 1, the clip has one loop, 0"),
        ("0,1", [1], r"it names reference 1, the row has 1 \(0\)"),
        ("0,2", [1, 1], r"it names reference 2, the row has 2 \(0 to 1\)"),
        ("0,0,0,0,0", [1], "it has length 0, at least 1 latent frame is needed"),
        ("0,0,1", [1], r"it starts at latent frame 1 of the reference, which has 1 \(-1 to 0\)"),
        ("0,0,-16", [51], r"it starts at latent frame -16 of the reference, which has 15 \(-15 to 14\)"),
        ("0,0,0,15", [1], r"it starts at latent frame 15 of the clip, which has 15 \(-15 to 14\)"),
    ],
)
def test_a_strategy_that_gives_no_frame_of_the_clip_is_refused(strategy: str, frames: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RULES.mask(strategy, frames, 51)


def test_strategies_point_at_latent_frames_and_spans_at_whole_chunks() -> None:
    mask = RULES.mask("0;0,1,-5,-5,5,0.5", [1, 44], 51)
    assert mask.levels == (0.0, *[1.0] * 9, *[0.5] * 5)
    assert [source for source in mask.sources if source] == [(0, 0), *((1, 5 + i) for i in range(5))]
    assert RULES.chunk_span([5, 6, 9], 44) == range(17, 34)
    assert RULES.chunk_span([4, 12], 44) == range(44)
    assert RULES.chunk_span([0], 1) == range(1)
    assert RULES.pixel_size(480, 848) == (480, 854)
    takers = [name for name, family in FAMILIES.items() if family.references and not family.references.first_image]
    assert takers == ["demo", "open_sora"]


def test_a_model_of_one_image_takes_nothing_else() -> None:
    takers = {name: family.references for name, family in FAMILIES.items() if family.references}
    given = {name: rules for name, rules in takers.items() if rules.first_image}
    assert [name for name, rules in given.items() if not rules.required] == ["wan22_5b", "ltx"]
    required = ["wan_14b_i2v_480p", "wan_14b_i2v_720p", "wan22_a14b_i2v", "cogvideox_5b_i2v"]
    required += ["hunyuan_video_i2v", "hunyuan_video_i2v_33ch"]
    assert [name for name, rules in given.items() if rules.required] == required
    rules = given["ltx"]
    assert rules.mask("0", [1], 9).levels == (0.0, 1.0)
    for strategy, frames, num_frames, told in (
        ("0,0,0,-1", [1], 9, "as the first frame of the clip; leave the mask strategy empty"),
        ("0", [1, 1], 9, "takes one image, the first frame of the clip, not 2 references"),
        ("0", [33], 9, "takes one image, not a video of 33 frames"),
        ("0", [1], 1, "num_frames=1 leaves no other to render"),
    ):
        with pytest.raises(ValueError, match=told):
            rules.mask(strategy, frames, num_frames)


@pytest.mark.parametrize(("size", "target"), [((100, 173), (64, 64)), ((173, 100), (64, 96)), ((30, 20), (64, 64))])
def test_references_fill_the_clip_and_keep_their_middle(size: tuple[int, int], target: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = filled_size(size, target)
    assert height == target[0] or width == target[1]
    assert height >= target[0]
    assert width >= target[1]
    top, left = round((height - target[0]) / 2), round((width - target[1]) / 2)
    scaled = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    found = ((fit_frame(torch.from_numpy(frame), target, still=True).permute(1, 2, 0) + 1) * 127.5).round()
    expected = scaled[top : top + target[0], left : left + target[1]]
    assert (found - torch.from_numpy(expected.copy())).abs().max() <= 1
    moving = fit_frame(torch.from_numpy(frame), target, still=False)
    assert moving.shape == (3, *target)
    assert abs(float(moving.mean()) - float(found.mean() / 127.5 - 1)) < 0.05
    same = torch.from_numpy(frame[: target[0], : target[1]])
    exact = fit_frame(same, (same.shape[0], same.shape[1]), still=False)
    torch.testing.assert_close(exact, same.permute(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-6)


def test_given_frames_come_out_as_they_went_in_on_any_ranks_and_with_broadcast(weights: Path) -> None:
    strategy, frames = "0,0,0,0,5;0,1,0,-1,1,0.4", [34, 1]
    given, latents, done = render_given(weights, strategy, frames, "pab246", 1)
    assert torch.equal(latents[:, :, :5], given[:, :, :5])
    assert not torch.equal(latents[:, :, 5:6], given[:, :, 5:6]), "an edit ratio draws the frame anew"
    assert given[:, :, 6:].abs().max() == 0
    assert torch.isfinite(latents).all()
    _, plain, other = render_given(weights, "0,0,0,-1,1", [1], "pab246", 1)
    assert (latents[:, :, 6:] - plain[:, :, 6:]).abs().max() > 1e-3, "the generated frames see the given ones"
    assert (done.computed, done.reused) == (other.computed, other.reused)
    for cfg, world in ((2, 2), (1, 2)):
        for part in run_on_ranks(world, render_given, weights, strategy, frames, "pab246", cfg):
            torch.testing.assert_close(part[1], latents, rtol=0, atol=2e-5)


def test_encoding_is_the_vaes_with_noise_of_the_clips_seed(weights: Path) -> None:
    model = OPEN_SORA.load(LoadRequest(weights=str(weights), precision="float32", device="cpu"))
    given = encoded(model, "0,0,0,0,10", [34])
    with torch.inference_mode():
        whole = model.codec.vae.encode(moving_picture(34), reference_noise(CLIP.seed))
    assert torch.equal(given.latents_BCTHW, whole)
    last = encoded(model, "0,0,5,0,5", [34])
    with torch.inference_mode():
        chunk = model.codec.vae.encode(moving_picture(34)[:, :, 17:], reference_noise(CLIP.seed))
    assert torch.equal(last.latents_BCTHW[:, :, :5], chunk)


@torch.inference_mode()
def test_the_demo_model_goes_on_from_an_image() -> None:
    model = DEMO.load(LoadRequest(weights=None, precision="float32", device="cpu"))
    request = ClipRequest(
        prompt="a red circle moving right on a navy background", negative_prompt=None, seed=1, num_frames=8, height=64,
        width=64, fps=8, num_steps=4, guidance_scale=4.0,
    )  # fmt: skip
    scene = Scene(shape="star", colour="red", background="navy", direction="right", size="large", speed="slow")
    image = draw_clips([scene], ClipSize(num_frames=1, height=64, width=64), seed=3)
    mask = DEMO.references.mask("0", [1], request.num_frames)
    given = model.given_frames(
        request, model.encode_references(request, [ReferencePixels(pixels_13THW=image, start=0)]), mask
    )
    done = denoised(model, request, plan_for(DEMO, request, DEMO.presets["none"], "float32"), given=given)
    frames = model.decode(done.latents, request, NodeGroup()).frames[0].float() / 127.5 - 1
    error = (frames[0].permute(2, 0, 1) - image[0, :, 0]).square().mean()
    assert error < 4 * 10 ** (-25 / 10), "the first frame is the image, to 25 dB"
