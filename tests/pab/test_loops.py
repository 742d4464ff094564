"""Clips of several loops: their texts, and that each goes on from the frames of the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jobs.render_settings import RenderSettings
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.clip_work import render_baseline, render_clip
from jobs.rendering.loaded_family import LoadedFamily
from jobs.rendering.loops import clip_requests
from jobs.rendering.rules_of_clips import clip_rules
from jobs.settings import JobSettings, Mesh
from manifests.clip import Clip
from pab.broadcast.rules import KINDS
from pab.conditioning.loops import MAX_LOOPS, Loops, count_loops, loop_seed, loop_texts
from pab.execution.choice import Execution
from pab.families.demo.family import DEMO
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora.given_frames import reference_noise
from pab.family import LoadRequest
from pab.parallel.mesh import NodeGroup, open_group
from tests.pab.conftest import TinyWeights
from tests.pab.worlds import from_the_start
from tests.ranks import run_on_ranks

RULES = OPEN_SORA.references
EARLY = from_the_start(OPEN_SORA.presets["pab246"])
CLIP = Clip(
    clip_id="shore", digest="0", prompt="|0| A calm shore |2| A storm", negative_prompt=None, seed=3, model="open_sora",
    num_frames=34, height=112, width=128, fps=24, num_steps=4, guidance_scale=7.0, broadcast="early", loops=3,
    condition_frame_length=5, condition_frame_edit=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tiny_weights: TinyWeights) -> Path:
    return tiny_weights("open_sora") / "open_sora"


@pytest.fixture(scope="module")
def attempt(weights: Path) -> Attempt:
    """`CLIP` on one rank."""
    with torch.inference_mode():
        return rendered(weights, CLIP, 1)


def settings(folder: Path) -> JobSettings:
    render = RenderSettings(weights=str(folder), precision="float32", device="cpu")
    return JobSettings(
        output="", run_id="r", mesh=Mesh(), render=render, broadcast_rules={"early": EARLY.to_dict()}
    )  # fmt: skip


def rendered(folder: Path, clip: Clip, cfg: int) -> Attempt:
    world = dist.get_world_size() if dist.is_initialized() else 1
    group = open_group(dp=1, cfg=cfg, sp=world // cfg, device=torch.device("cpu")) if world > 1 else NodeGroup()
    attempt = Attempt(clip=clip, number=1)
    render_clip(loaded(folder, group), attempt, settings=settings(folder), group=group)
    return attempt


def loaded(folder: Path, group: NodeGroup) -> LoadedFamily:
    request = LoadRequest(weights=str(folder), precision="float32", device="cpu", clip_axis=group.clip)
    return LoadedFamily(family=OPEN_SORA, model=OPEN_SORA.load(request), load_s=0.0, execution=Execution())


def frames_on_ranks(folder: Path, clip: Clip, cfg: int) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    return frames_and_latents(rendered(folder, clip, cfg))


def frames_and_latents(attempt: Attempt) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    frames = None if attempt.coming.size is None else torch.from_numpy(attempt.coming.fetch())
    return frames, [loop.latents for loop in attempt.loops]


def test_each_loop_has_the_text_of_the_last_scene_that_has_begun() -> None:
    assert loop_texts("|0| a sunny day |2| a rainy day", 4) == (*["a sunny day"] * 2, *["a rainy day"] * 2)
    assert loop_texts("a plain | 1 | prompt", 2) == ("a plain | 1 | prompt",) * 2
    assert [count_loops(prompt) for prompt in ("plain", "|0| a", "|0| a |1| b", "|0| a |4| b")] == [1, 1, 2, 5]
    assert [request.prompt for request in clip_requests(CLIP)] == ["A calm shore", "A calm shore", "A storm"]
    seeds = [loop_seed(3, loop) for loop in range(4)]
    assert seeds[0] == 3
    assert len(set(seeds)) == 4


@pytest.mark.parametrize(
    ("prompt", "asked", "told"),
    [
        ("|0| a |2| b |1| c", {}, r"scenes begin at loops 0, 2, 1, they must rise"),
        ("|0| a |1|  |2| c", {}, r"scene \|1\| has no text"),
        ("|0| a |16| b", {}, f"1 to {MAX_LOOPS} loops are rendered, not 17"),
        ("a", {"count": 0}, f"1 to {MAX_LOOPS} loops are rendered, not 0"),
        ("|0| a |2| b", {"count": 2}, "the prompt has a text for loop 2, the clip has loops 0 to 1"),
        ("a", {"length": 5}, "a clip of one loop has no condition_frame_length"),
        ("a", {"count": 2, "length": 4}, r"length=4 .* of 51 frames a loop it can be a multiple of 5 from 5 to 10"),
        ("a", {"count": 2, "length": 15}, "from 5 to 10"),
        ("a", {"count": 2, "edit": 1.5}, "condition_frame_edit=1.5, allowed 0 to 1"),
    ],
)  # fmt: skip
def test_loops_that_a_clip_cannot_have_are_refused(prompt: str, asked: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RULES.loops(prompt, 51, **{"count": None, "length": None, "edit": None} | asked)


def test_a_loop_must_be_longer_than_what_it_repeats() -> None:
    with pytest.raises(ValueError, match="of 17 frames a loop there is none: a loop must be longer than that"):
        RULES.loops("a", 17, count=2, length=None, edit=None)
    with pytest.raises(ValueError, match="of 1 frames a loop there is none"):
        RULES.loops("a", 1, count=2, length=None, edit=None)


def test_loops_begin_with_the_last_frames_of_the_one_before_behind_the_rows_own_references() -> None:
    loops = RULES.loops("|0| a |2| b", 51, count=None, length=None, edit=0.25)
    assert loops == Loops(count=3, condition_frame_length=5, condition_frame_edit=0.25)
    first, second, third = RULES.masks("0;2,1,0,-5,5", [1, 34], 51, loops)
    assert [source for source in first.sources if source] == [(0, 0)]
    assert second.sources == (*((2, 10 + i) for i in range(5)), *[None] * 10)
    assert second.levels == (*[0.25] * 5, *[1.0] * 10)
    assert third.sources == (*((2, 10 + i) for i in range(5)), *[None] * 5, *((1, i) for i in range(5)))
    assert RULES.masks(None, [], 51, loops)[0] is None
    assert (RULES.repeated_frames(loops), RULES.video_frames(51, loops)) == (17, 3 * 51 - 2 * 17)
    assert (DEMO.references.repeated_frames(DEMO.references.loops("a", 16, count=2, length=None, edit=None))) == 4


@torch.inference_mode()
def test_a_clip_of_loops_is_each_loop_going_on_and_what_it_repeats_is_shown_once(
    weights: Path, attempt: Attempt
) -> None:
    model, requests = loaded(weights, NodeGroup()).model, clip_requests(CLIP)
    latents = [loop.latents for loop in attempt.loops]
    for loop in (1, 2):
        before, seed = requests[loop - 1], requests[loop - 1].seed
        whole = model.codec.vae.decode(latents[loop - 1], before.num_frames)
        end = model.codec.vae.encode(whole[:, :, 17:], reference_noise(seed))
        torch.testing.assert_close(latents[loop][:, :, :5], end, rtol=0, atol=1e-5)
        assert (latents[loop][:, :, 5:] - latents[loop - 1][:, :, 5:]).abs().max() > 0.1
    parts = [model.decode(latents[loop], requests[loop], NodeGroup()).frames[0, 17 * (loop > 0) :] for loop in range(3)]
    assert torch.equal(torch.from_numpy(attempt.coming.fetch()), torch.cat(parts))
    assert attempt.warnings == ()
    assert len(attempt.patterns) == len(attempt.denoised.step_seconds) == 12
    one = attempt.loops[0]
    for kind in KINDS:
        assert attempt.denoised.computed.get(kind) == 3 * one.computed[kind], kind


@torch.inference_mode()
def test_the_first_loop_is_the_clip_of_one_loop_and_without_broadcast_loops_go_on_from_their_own(
    weights: Path, attempt: Attempt
) -> None:
    family = loaded(weights, NodeGroup())
    alone = clip_requests(CLIP)[0]
    again = render_baseline(
        family,
        attempt,
        settings=settings(weights),
        group=NodeGroup(),
    )
    assert not torch.equal(again.loops[1].latents[:, :, :5], attempt.loops[1].latents[:, :, :5])
    assert len(again.coming.fetch()) == len(attempt.coming.fetch()) == 3 * 34 - 2 * 17
    single = Clip(**{name: getattr(CLIP, name) for name in Clip.__slots__} | {"loops": 1, "prompt": alone.prompt})
    assert torch.equal(rendered(weights, single, 1).loops[0].latents, attempt.loops[0].latents)
    assert clip_rules(CLIP, OPEN_SORA, settings(weights)) == EARLY


def test_loops_come_out_the_same_on_any_ranks(weights: Path, attempt: Attempt) -> None:
    frames, latents = frames_and_latents(attempt)
    for cfg in (2, 1):
        parts = run_on_ranks(2, frames_on_ranks, weights, CLIP, cfg)
        assert parts[1][0] is None
        assert (parts[0][0].int() - frames.int()).abs().max() <= 1
        for part in parts:
            for mine, one in zip(part[1], latents, strict=True):
                torch.testing.assert_close(mine, one, rtol=0, atol=1e-4)
