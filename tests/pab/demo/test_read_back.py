import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pab.families.demo.scene import Scene, draw_scenes, is_held_out
from pab.families.demo.training.check import check_attributes, held_out_prompts
from pab.families.demo.training.generator import ClipSize, draw_clips
from pab.families.demo.training.read_back import NOTHING, READ_ATTRIBUTES, read_scenes

SMALL = ClipSize(num_frames=8, height=32, width=48)


@pytest.mark.parametrize("size", [SMALL, ClipSize(num_frames=16, height=64, width=64)])
def test_every_attribute_of_a_drawn_clip_is_read_right(size: ClipSize):
    scenes = draw_scenes(40, random.Random(0))
    read = read_scenes(draw_clips(scenes, size, seed=1))
    for name in READ_ATTRIBUTES:
        assert [getattr(seen, name) for seen in read] == [getattr(scene, name) for scene in scenes]


def test_slight_noise_and_blur_do_not_change_what_is_read():
    scenes = draw_scenes(24, random.Random(3))
    clips = draw_clips(scenes, ClipSize(num_frames=8, height=64, width=64), seed=1)
    noisy = clips + 0.04 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.nn.functional.avg_pool3d(noisy, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    read = read_scenes(noisy)
    hits = sum(scene.combination == (r.shape, r.colour, r.background, r.direction) for scene, r in zip(scenes, read))  # noqa: B905
    assert hits >= 23


def test_an_empty_clip_and_a_formless_one_show_no_shape():
    empty = torch.full((1, 3, 8, 32, 32), -1.0)
    seen = read_scenes(empty)[0]
    assert (seen.shape, seen.colour, seen.background, seen.direction) == (NOTHING, NOTHING, "black", NOTHING)
    noise = torch.rand(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert read_scenes(noise)[0].shape == NOTHING


def test_the_check_asks_for_held_out_combinations_only():
    asked = held_out_prompts(64, 0)
    assert len({scene.combination for _, scene in asked}) == 64
    assert all(is_held_out(scene.combination) for _, scene in asked)


def test_the_check_counts_hits_and_names_misses():
    asked = dict(held_out_prompts(12, 5))
    fault = next(iter(asked))

    def render(prompts: Sequence[str]) -> Tensor:
        return torch.cat([draw_clips([wrong(prompt)], SMALL, seed=len(prompt)) for prompt in prompts])

    def wrong(prompt: str) -> Scene:
        scene = asked[prompt]
        colour = "white" if scene.colour == "red" else "red"
        return Scene(
            shape=scene.shape,
            colour=colour if prompt == fault else scene.colour,
            background=scene.background,
            direction=scene.direction,
            size=scene.size,
            speed=scene.speed,
        )

    result = check_attributes(render, num_prompts=12, seed=5, batch_size=5)
    assert result.hits == {"shape": 12, "colour": 11, "background": 12, "direction": 12}
    assert [(miss.prompt, miss.attribute) for miss in result.misses] == [(fault, "colour")]
    assert "91.7%" in result.table()
    assert result.document()["rates"] == {"shape": 1.0, "colour": 11 / 12, "background": 1.0, "direction": 1.0}
