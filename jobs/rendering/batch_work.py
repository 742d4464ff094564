"""Several clips from their rows to their frames in one denoising loop. Collective over their ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from jobs.rendering.clip_work import Begun, ClipFrames, Conditioning, Rendering, Stages, wait_for_device
from jobs.rendering.frames import ClipOnDevice
from jobs.rendering.loaded_family import LoadedFamily, clip_rules
from jobs.rendering.loops import clip_requests
from jobs.settings import JobSettings
from pab.execution.compiled import Compiled
from pab.parallel.mesh import NodeGroup
from pab.sampling.batch import apart, denoise_together, noise_of
from pab.sampling.denoise import NotFiniteError, plan_for
from pab.sampling.device_clock import DeviceClock

ClipResult = ClipFrames | NotFiniteError
_NOTHING_GIVEN = Conditioning(masks=(None,))


@torch.inference_mode()
def render_together(
    loaded: LoadedFamily, begun: Sequence[Begun], *, settings: JobSettings, group: NodeGroup
) -> list[ClipResult]:
    """Renders clips that differ in prompt and seed alone; returns each one's frames, or that its latents are not finite.

    Clips are decoded one after the other, as when they are alone, so only denoising takes more memory. What they went
    through together counts with an N-th for each.
    """
    shared, requests = Stages(), [clip_requests(each.clip)[0] for each in begun]
    first = begun[0].clip
    before = loaded.make_room()
    with shared.time("plan"):
        plan = plan_for(
            loaded.family, requests[0], clip_rules(first, loaded.family, settings), settings.render.precision
        )
    with shared.time("encode_prompt"):
        prompts = [
            loaded.prompts_of(each.clip, [request])[0] for each, request in zip(begun, requests, strict=True)
        ]  # fmt: skip
    with shared.time("denoise"):
        noise = noise_of(requests, loaded.model.latent_shape(requests[0]))
    wait_for_device(shared, group)
    with shared.time("denoise"):
        denoised = denoise_together(
            loaded.model,
            requests,
            prompts=prompts,
            noise=noise,
            plan=plan,
            group=group,
            loop=loaded.loop_settings(requests[0], plan, group, clips=len(begun)),
        )
    compiled = _share(loaded.compiled_since(before), len(begun))
    results: list[ClipResult] = []
    for each, request, prompt, part in zip(begun, requests, prompts, apart(denoised), strict=True):
        each.stages.take(shared, share=1 / len(begun))
        if isinstance(part, NotFiniteError):
            results.append(part)
            continue
        rendering = Rendering(
            loaded=loaded, clip=each.clip, requests=(request,), prompts=(prompt,), conditioning=_NOTHING_GIVEN
        )
        results.append(rendering.decoded([part], compiled, group, each.stages))
    return results


def _share(compiled: Compiled, num_clips: int) -> Compiled:
    return replace(compiled, seconds=compiled.seconds / num_clips)


def on_device(results: Sequence[ClipResult]) -> ClipOnDevice | None:
    """Returns when the device worked on clips that were rendered together; None where none came out."""
    frames = [result for result in results if isinstance(result, ClipFrames)]
    if not frames:
        return None
    marks = [mark for each in frames for mark in each.decode.marks]
    return ClipOnDevice(
        denoise=frames[0].denoised.clock,
        decode=DeviceClock(frames[0].decode.device, marks),
        compile_s=frames[0].compiled.seconds * len(results),
    )
