"""A batch of clips, from the rows to the frames, in one denoising loop. Collective over the clips' ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from jobs.rendering.clip_attempt import Attempt, Stages
from jobs.rendering.clip_work import decode_loops, fill_in, note_way, wait_for_device
from jobs.rendering.frames import ClipOnDevice
from jobs.rendering.loaded_family import LoadedFamily
from jobs.rendering.loops import clip_requests
from jobs.settings import JobSettings
from pab.execution.compiled import Compiled
from pab.model import NotFiniteError
from pab.parallel.mesh import NodeGroup
from pab.sampling.batch import denoise_batch, noise_of, unbatch
from pab.sampling.denoise import plan_for
from pab.sampling.device_clock import DeviceClock


@torch.inference_mode()
def render_batch(
    loaded: LoadedFamily, attempts: Sequence[Attempt], *, settings: JobSettings, group: NodeGroup
) -> list[NotFiniteError | None]:
    """Renders clips that differ only in prompts and seed, and fills in their attempts.

    Returns one entry per clip: None, or the error of a clip whose latents are not finite. Clips are decoded one after the
    other, so only denoising takes more memory than for a clip alone. Each of N clips gets an N-th of shared times.
    """
    shared, requests = Stages(), [clip_requests(attempt.clip)[0] for attempt in attempts]
    first, request = attempts[0].clip, requests[0]
    before = loaded.make_room()
    with shared.time("plan"):
        way = loaded.way(first, settings)
        plan = plan_for(loaded.family, request, way.rules, settings.render.precision_of(loaded.family))
    with shared.time("encode_prompt"):
        prompts = [
            loaded.prompts_of(attempt.clip, [own])[0] for attempt, own in zip(attempts, requests, strict=True)
        ]  # fmt: skip
    with shared.time("denoise"):
        noise = noise_of(requests, loaded.model.latent_shape(request))
    wait_for_device(shared, group)
    with shared.time("denoise"):
        denoised = denoise_batch(
            loaded.model,
            requests,
            prompts=prompts,
            noise=noise,
            plan=plan,
            group=group,
            loop=loaded.loop_settings(request, plan, group, clips=len(attempts), keep=way.keep),
        )
    compiled = _share(loaded.compiled_since(before), len(attempts))
    parts = unbatch(denoised)
    for attempt in attempts:
        attempt.masks = (None,)
        attempt.stages.take(shared, share=1 / len(attempts))
    frames = [
        None if isinstance(part, NotFiniteError) else decode_loops(loaded, attempt, [part], group)
        for attempt, part in zip(attempts, parts, strict=True)
    ]
    for attempt, part, coming, prompt in zip(attempts, parts, frames, prompts, strict=True):
        if coming is not None and not isinstance(part, NotFiniteError):
            fill_in(attempt, loaded, loops=[part], frames=coming, prompts=[prompt], compiled=compiled)
            note_way(attempt, loaded, way, settings)
    return [part if isinstance(part, NotFiniteError) else None for part in parts]


def _share(compiled: Compiled, num_clips: int) -> Compiled:
    return replace(compiled, seconds=compiled.seconds / num_clips)


def on_device(attempts: Sequence[Attempt]) -> ClipOnDevice | None:
    """Returns when the device worked on a batch of clips; None if no clip of it succeeded."""
    rendered = [attempt for attempt in attempts if attempt.loops]
    if not rendered:
        return None
    clocks = [attempt.coming.clock for attempt in rendered]
    marks = [mark for clock in clocks for mark in clock.marks]
    return ClipOnDevice(
        denoise=rendered[0].denoised.clock,
        decode=DeviceClock(clocks[0].device, marks),
        compile_s=rendered[0].compiled.seconds * len(attempts),
    )
