import random
from itertools import pairwise

import pytest
import torch

from pab.families.demo.scene import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Scene,
    combinations,
    draw_scenes,
    is_held_out,
)
from pab.families.demo.training.feed import FeedSettings, plan_chunk, training_buckets
from pab.families.demo.training.generator import ClipSize, draw_clips, place

SIZE = ClipSize(num_frames=8, height=32, width=48)


def test_held_out_and_trained_combinations_share_nothing_and_are_all():
    held_out, trained = set(combinations(held_out=True)), set(combinations(held_out=False))
    assert not held_out & trained
    assert len(held_out | trained) == len(SHAPES) * len(COLOURS) * len(BACKGROUNDS) * len(DIRECTIONS)
    assert 0.07 < len(held_out) / (len(held_out) + len(trained)) < 0.14
    for position, values in enumerate((SHAPES, COLOURS, BACKGROUNDS, DIRECTIONS)):
        assert {combination[position] for combination in held_out} == set(values)


def test_training_never_draws_a_held_out_combination():
    scenes = draw_scenes(5000, random.Random(0))
    assert not any(is_held_out(scene.combination) for scene in scenes)
    assert {scene.combination for scene in scenes} == set(combinations(held_out=False))
    assert all(is_held_out(scene.combination) for scene in draw_scenes(200, random.Random(0), held_out=True))


def test_equal_seeds_draw_equal_clips_and_others_do_not():
    scenes = draw_scenes(4, random.Random(1))
    first = draw_clips(scenes, SIZE, seed=5)
    assert torch.equal(first, draw_clips(scenes, SIZE, seed=5))
    assert not torch.equal(first, draw_clips(scenes, SIZE, seed=6))
    assert first.shape == (4, 3, 8, 32, 48)
    assert first.min() >= -1
    assert first.max() <= 1


def test_a_chunk_of_training_data_depends_on_nothing_but_seed_and_index():
    settings = FeedSettings(seed=3, buckets=training_buckets(small=True), batches_per_chunk=1, max_words=32)
    first, again, other = (plan_chunk(settings, index) for index in (7, 7, 8))
    assert torch.equal(first.ids_BL, again.ids_BL)
    assert torch.equal(first.plan.motion.start_B2, again.plan.motion.start_B2)
    assert not torch.equal(first.ids_BL, other.ids_BL)


def test_the_whole_shape_stays_in_the_frame():
    scenes = draw_scenes(60, random.Random(2))
    for num_frames in (8, 32):
        clips = draw_clips(scenes, ClipSize(num_frames=num_frames, height=48, width=64), seed=0)
        background = clips[:, :, :1, :1, :1]
        border = torch.cat([clips[..., 0, :], clips[..., -1, :], clips[..., 0], clips[..., -1]], dim=-1)
        assert torch.allclose(border, background[..., 0].expand_as(border))


def test_speeds_and_sizes_are_told_apart():
    def scene(size: str, speed: str) -> Scene:
        return Scene(shape="star", colour="red", background="teal", direction="left", size=size, speed=speed)

    large = ClipSize(num_frames=16, height=64, width=64)
    radii = place([scene(size, "slow") for size in ("small", "medium", "large")], large, random.Random(0)).radius_B
    speeds = place([scene("small", s) for s in ("slow", "normal", "quick")], large, random.Random(0)).velocity_B2[:, 0]
    assert all(second > 1.2 * first for first, second in pairwise(radii.tolist()))
    assert all(second < 1.2 * first < 0 for first, second in pairwise(speeds.tolist()))


def test_a_scene_names_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"colour='mauve' is not drawn; choose one of red, green"):
        Scene(shape="star", colour="mauve", background="teal", direction="left", size="small", speed="slow")
