"""The loops of a clip: the request of each loop, and the joined results of all loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce

from manifests.clip import Clip
from pab.conditioning.loops import Loops, loop_seed, loop_texts
from pab.family import ClipRequest
from pab.parallel.exchange import Traffic, Waiting
from pab.sampling.denoise import Denoised
from pab.sampling.device_clock import DeviceClock


def clip_loops(clip: Clip) -> Loops:
    """Returns how each of a clip's loops continues from the previous one."""
    return Loops(
        count=clip.loops,
        condition_frame_length=clip.condition_frame_length or 0,
        condition_frame_edit=clip.condition_frame_edit or 0.0,
    )


def clip_requests(clip: Clip) -> tuple[ClipRequest, ...]:
    """Returns the request to the model for each loop; each has its own text and noise."""
    return tuple(
        ClipRequest(
            prompt=text,
            negative_prompt=clip.negative_prompt,
            seed=loop_seed(clip.seed, loop),
            num_frames=clip.num_frames,
            height=clip.height,
            width=clip.width,
            fps=clip.fps,
            num_steps=clip.num_steps,
            guidance_scale=clip.guidance_scale,
            sampling=clip.sampling,
            flow_shift=clip.flow_shift,
            guidance_scale_2=clip.guidance_scale_2,
        )
        for loop, text in enumerate(loop_texts(clip.prompt, clip.loops))
    )


def joined(loops: Sequence[Denoised]) -> Denoised:
    """Joins the results of a clip's loops: measurements and counts as if of one long loop, latents and plan of the first."""
    first = loops[0]
    if len(loops) == 1:
        return first
    return replace(
        first,
        step_seconds=tuple(seconds for loop in loops for seconds in loop.step_seconds),
        computed=_summed(loop.computed for loop in loops),
        reused=_summed(loop.reused for loop in loops),
        traffic=Traffic(**_summed(asdict(loop.traffic) for loop in loops)),
        waiting=reduce(Waiting.plus, (loop.waiting for loop in loops)),
        kept_bytes_peak=max(loop.kept_bytes_peak for loop in loops),
        clock=DeviceClock(first.clock.device, [mark for loop in loops for mark in loop.clock.marks]),
    )


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
