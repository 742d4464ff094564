"""A recorded loop gives what the loop gives, of every clip of its kind; on a CPU a recording calls its steps again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pab.broadcast.foresight import FORESIGHT_PRESETS
from pab.broadcast.rules import NO_BROADCAST
from pab.families import FAMILIES
from pab.families.open_sora.stdit3 import STDiT3
from pab.kernels.choice import Kernels
from pab.parallel.mesh import Axis, NodeGroup, SequenceParallel
from pab.sampling import recorded_loop
from pab.sampling.denoise import LoopSettings, NotFiniteError, plan_for, records_loop
from pab.sampling.recorded_loop import LoopRecorder, run_again
from tests.pab.worlds import CONFIG, PAB246, clip, render, tiny_model

CUDA = torch.cuda.is_available()
GROUP = NodeGroup(device=torch.device("cuda" if CUDA else "cpu"))


def recorder() -> LoopRecorder:
    return LoopRecorder() if CUDA else LoopRecorder(capture=lambda: run_again)


def model():
    loaded = tiny_model()
    loaded.transformer.to(GROUP.device)
    return loaded


def test_replayed_clips_are_the_clips_whatever_their_prompts_seeds_and_text_lengths():
    loaded, records = model(), recorder()
    requests = [
        clip(prompt="a red circle"), clip(prompt="one", seed=6), clip(prompt="a b c d e f", seed=7, negative_prompt="x y"),
        clip(prompt="a red circle"), clip(prompt="one", seed=6),
    ]  # fmt: skip
    plain = [render(loaded, request, group=GROUP) for request in requests]
    recorded = [render(loaded, request, group=GROUP, loop=LoopSettings(recorder=records)) for request in requests]
    assert records.recordings == 1
    for mine, expected in zip(recorded, plain, strict=True):
        assert torch.allclose(mine.latents, expected.latents, atol=1e-5)
        assert (mine.computed, mine.reused) == (expected.computed, expected.reused)
        assert mine.kept_bytes_peak == expected.kept_bytes_peak > 0
        assert len(mine.step_seconds) == requests[0].num_steps
    # The first ran plainly, the fourth was replayed; the second was recorded, the last replayed.
    assert torch.equal(recorded[3].latents, recorded[0].latents)
    assert torch.equal(recorded[4].latents, recorded[1].latents)
    assert not torch.equal(recorded[1].latents, recorded[0].latents)


class TellsLengths:
    """A model that notes how many text tokens each of its passes was given."""

    def __init__(self, model: Any) -> None:
        self.model, self.lengths = model, set[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, latents: Any, step_input: Any, text: Any, *rest: Any) -> Any:
        self.lengths.add(text.keys_values[0].shape[3])
        return self.model.predict(latents, step_input, text, *rest)


def test_a_clip_is_the_same_bit_for_bit_when_recordings_have_gone():
    """As after a device had no more memory. Texts of other lengths would round differently in GPUs' 16 bits."""
    loaded, records = TellsLengths(model()), recorder()
    settings = LoopSettings(recorder=records)
    for prompt in ("one", "a b c", "a red circle"):
        replayed = render(loaded, clip(prompt=prompt), group=GROUP, loop=settings)
    assert records.recordings == 1
    records.stop()
    for _ in range(3):
        again = render(loaded, clip(prompt="a red circle"), group=GROUP, loop=settings)
        assert torch.equal(again.latents, replayed.latents)
    assert not records.recordings
    assert not records.takes_memory
    alone = render(
        loaded, clip(prompt="a red circle"), group=GROUP, loop=LoopSettings(recorder=LoopRecorder(stopped=True))
    )
    assert torch.equal(alone.latents, replayed.latents)
    assert alone.same_length
    assert loaded.lengths == {CONFIG.model_max_length}
    assert not render(loaded, clip(prompt="a red circle"), group=GROUP).same_length
    assert len(loaded.lengths) == 2


def test_texts_of_one_length_lie_as_the_fused_attention_reads_them():
    config = replace(CONFIG, depth=1, num_heads=2)
    loaded = replace(tiny_model(), transformer=STDiT3(config).eval().to(GROUP.device))
    plain = render(loaded, clip(prompt="a b"), group=GROUP, depth=1)
    text = loaded.encode_prompts([clip(prompt="a b")])[0].states("both")
    filled = loaded.same_length(text)
    for each in filled.keys_values:
        assert each.shape[3] == CONFIG.model_max_length > text.keys_values[0].shape[3]
        assert each.stride()[2] == config.head_dim
    loaded.transformer.choose_kernels = lambda **_: Kernels(cross=True)
    fused = render(loaded, clip(prompt="a b"), group=GROUP, depth=1, loop=LoopSettings(recorder=recorder()))
    assert torch.allclose(fused.latents, plain.latents, atol=1e-5)


def test_a_clip_of_another_kind_is_recorded_apart():
    loaded, records = model(), recorder()
    kinds = [
        (clip(), PAB246), (clip(width=56), PAB246), (clip(guidance_scale=2.0), PAB246), (clip(), NO_BROADCAST),
        (clip(num_steps=7), PAB246),
    ]  # fmt: skip
    for number, (request, rules) in enumerate(kinds):
        for _ in range(3):
            done = render(loaded, request, rules, group=GROUP, loop=LoopSettings(recorder=records))
        expected = render(loaded, request, rules, group=GROUP)
        assert torch.allclose(done.latents, expected.latents, atol=1e-5)
        assert done.plan.digest == expected.plan.digest
        assert records.recordings == min(number + 1, recorded_loop.MAX_RECORDINGS)
    records.forget()
    assert records.recordings == 0


def test_a_clip_that_is_not_finite_leaves_the_recording_sound():
    loaded, records = model(), recorder()
    settings = LoopSettings(recorder=records)
    good = [render(loaded, clip(), group=GROUP, loop=settings).latents for _ in range(2)][1]
    weight = loaded.transformer.final_layer.linear.weight
    with torch.no_grad():
        kept = weight[0, 0].clone()
        weight[0, 0] = float("nan")
        with pytest.raises(NotFiniteError):
            render(loaded, clip(), group=GROUP, loop=settings)
        weight[0, 0] = kept
    assert torch.equal(render(loaded, clip(), group=GROUP, loop=settings).latents, good)


def test_a_loop_of_little_work_on_each_rank_that_follows_a_plan_is_recorded():
    family = FAMILIES["open_sora"]
    small = clip(num_frames=17, height=144, width=256, num_steps=30)
    large = replace(small, num_frames=51, height=480, width=848)
    plan = plan_for(family, small, family.presets["pab246"], "bfloat16")
    guided, shared = NodeGroup(cfg=Axis(size=2)), NodeGroup(sp=SequenceParallel(axis=Axis(size=2)))
    assert records_loop(small, family, plan, NodeGroup())
    assert not records_loop(large, family, plan, NodeGroup()), "its 47,700 tokens of both rows were measured to lose"
    assert records_loop(large, family, plan, guided), "a row on each rank"
    assert records_loop(large, family, plan, shared), "half of both rows on each rank"
    assert records_loop(replace(large, guidance_scale=1.0), family, plan, NodeGroup()), "one row"
    assert not records_loop(large, family, plan, guided, clips=2)
    assert not records_loop(large, family, plan, shared, rows_in_turn=True)
    assert records_loop(large, family, plan, shared, rows_in_turn=True, all_loops=True)
    huge = replace(large, height=720, width=1280)
    assert not records_loop(huge, family, plan, guided)
    assert records_loop(huge, family, plan, guided, all_loops=True)
    for group in (NodeGroup(), guided):
        decided_later = plan_for(family, small, FORESIGHT_PRESETS["foresight"], "bfloat16")
        assert not records_loop(small, family, decided_later, group, all_loops=True)


def test_recordings_that_hold_much_memory_are_dropped_before_another_loop_runs():
    loaded, records = model(), recorder()

    def rendered(width: int, row_tokens: int) -> int:
        for _ in range(2):
            request = clip(width=width)
            render(loaded, request, group=GROUP, loop=LoopSettings(recorder=records, row_tokens=row_tokens))
        return records.recordings

    assert [rendered(32, 24000), rendered(40, 24000)] == [1, 2], "a plan, and no reuse beside it"
    assert rendered(48, 24000) == 2, "three would have 72,000 tokens"
    assert rendered(56, 60000) == 1
    assert rendered(64, 100000) == 1, "more than the bound: it is there alone, as it was asked for"
    assert rendered(56, 60000) == 1, "recorded again at once"
    for _ in range(2):
        render(loaded, clip(width=32), group=GROUP, loop=LoopSettings(recorder=records, row_tokens=2000))
    assert records.recordings == 2


def test_a_recording_that_an_error_ended_is_known_to_take_memory():
    def no_room(run: Callable[[], torch.Tensor]) -> object:
        raise torch.OutOfMemoryError

    records = LoopRecorder(capture=lambda: no_room)
    loaded, settings = model(), LoopSettings(recorder=records)
    assert not records.takes_memory
    render(loaded, clip(), group=GROUP, loop=settings)
    assert not records.takes_memory, "the first clip of a kind is plain"
    with pytest.raises(torch.OutOfMemoryError):
        render(loaded, clip(), group=GROUP, loop=settings)
    assert records.takes_memory
    records.forget()
    assert not records.takes_memory


class Graph:
    """Notes what is asked of a CUDA graph. `broken`: the recording cannot be ended, as after an error within."""

    def __init__(self, *, broken: bool) -> None:
        self.broken, self.asked = broken, []

    def capture_begin(self, **words: object) -> None:
        self.asked.append(("begin", words["capture_error_mode"]))

    def capture_end(self) -> None:
        self.asked.append(("end", ""))
        if self.broken:
            raise RuntimeError("the recording is invalid")


@pytest.mark.parametrize("broken", [False, True])
def test_a_recording_ends_whatever_happens_and_the_first_error_is_told(broken):
    graph = Graph(broken=broken)
    with pytest.raises(torch.OutOfMemoryError), recorded_loop._capturing(graph, (0, 0)):
        raise torch.OutOfMemoryError
    assert graph.asked == [("begin", "thread_local"), ("end", "")]
