"""Renders one clip, from its row to its frames, and its baseline without broadcast. Collective over the clip's ranks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from jobs.log import log_event
from jobs.rendering.clip_attempt import Attempt, Stages
from jobs.rendering.frames import ComingFrames
from jobs.rendering.keep_ways import KeepWay
from jobs.rendering.loaded_family import LoadedFamily
from jobs.rendering.loops import clip_loops, clip_requests
from jobs.rendering.references import ClipReferences
from jobs.settings import JobSettings
from manifests.clip import Clip
from pab.broadcast.plan import BroadcastPlan
from pab.broadcast.rules import NO_BROADCAST
from pab.conditioning.frame_masks import FrameMask
from pab.execution.compiled import Compiled
from pab.family import ClipRequest, Family
from pab.model import Beginning, EncodedPrompt, NotFiniteError, Sound, TakesImage, TakesReferences, not_finite_pixels
from pab.parallel.mesh import NodeGroup
from pab.sampling.denoise import Denoised, LoopSettings, denoise, initial_noise, plan_for
from pab.sampling.device_clock import DeviceClock

_LOG = logging.getLogger(__name__)
OUT_OF_MEMORY = "out_of_memory"
"""The event of a device that has no more memory, and what is done instead."""
NO_LOOPS = "no recorded loops"


@torch.inference_mode()
def render_clip(
    loaded: LoadedFamily,
    attempt: Attempt,
    *,
    settings: JobSettings,
    group: NodeGroup,
    references: ClipReferences | None = None,
) -> None:
    """Renders one clip; stages and results are filled into `attempt`. Collective over the clip's ranks."""
    clip, stages = attempt.clip, attempt.stages
    requests = clip_requests(clip)
    with stages.time("plan"):
        way = loaded.way(clip, settings)
        plan = plan_for(loaded.family, requests[0], way.rules, settings.render.precision_of(loaded.family))
    with stages.time("encode_prompt"):
        prompts = loaded.prompts_of(clip, requests)
    if references is None:
        attempt.masks = _masks(clip, loaded.family)
    else:
        with stages.time("encode_references"):
            attempt.masks = references.masks
            if references.image is None:
                attempt.encoded = tuple(_taker(loaded).encode_references(requests[0], references.pixels))
            else:
                taker = cast(TakesImage, loaded.model)  # its family says that it takes one
                attempt.beginning = taker.given_image(requests[0], references.image)
    _render_loops(loaded, attempt, prompts, plan, group, keep=way.keep)
    note_way(attempt, loaded, way, settings)


@torch.inference_mode()
def render_baseline(loaded: LoadedFamily, attempt: Attempt, *, settings: JobSettings, group: NodeGroup) -> Attempt:
    """Renders a clip again with every site computed at every step: same prompt, seed, steps and references.

    Collective. Returns the result as a separate attempt, without mark and record.
    """
    baseline = Attempt(clip=attempt.clip, number=attempt.number, masks=attempt.masks, encoded=attempt.encoded)
    baseline.beginning = attempt.beginning
    requests = clip_requests(attempt.clip)
    plan = plan_for(loaded.family, requests[0], NO_BROADCAST, settings.render.precision_of(loaded.family))
    prompts = loaded.prompts_of(attempt.clip, requests)
    _render_loops(loaded, baseline, prompts, plan, group, keep=loaded.execution.keep)
    return baseline


def wait_for_device(stages: Stages, group: NodeGroup) -> None:
    """Waits until the device has decoded the previous clip, so that this time does not count for the next one."""
    with stages.time("wait"):
        if group.device.type == "cuda":
            torch.cuda.current_stream(group.device).synchronize()


def decode_loops(loaded: LoadedFamily, attempt: Attempt, loops: Sequence[Denoised], group: NodeGroup) -> ComingFrames:
    """Decodes the latents of all loops; does not wait for the device if there is only one loop. Collective."""
    clock = DeviceClock(group.device)
    with attempt.stages.time("decode"):
        clock.mark()
        frames_THWC, not_finite, sound, pieces = _decode(loaded, attempt.clip, loops, group)
        coming = ComingFrames(
            frames_THWC.contiguous() if group.is_clip_root else None, clock, not_finite, sound, pieces
        )
        clock.mark()
    return coming


def fill_in(
    attempt: Attempt,
    loaded: LoadedFamily,
    *,
    loops: Sequence[Denoised],
    frames: ComingFrames,
    prompts: Sequence[EncodedPrompt],
    compiled: Compiled,
) -> None:
    """Fills the results into an attempt, for its record. This comes last, so that a failed attempt holds no frames."""
    attempt.loops, attempt.frames = tuple(loops), frames
    attempt.execution, attempt.precision, attempt.compiled = loaded.execution, loaded.precision, compiled
    attempt.warnings = _warnings(attempt.clip, loaded.family, prompts, loops[0].plan, frames.size)


def note_way(attempt: Attempt, loaded: LoadedFamily, way: KeepWay, settings: JobSettings) -> None:
    """Notes in a filled-in attempt what was not as asked for, and warns of it: its plan, and how its outputs were kept."""
    if (instead := loaded.instead_of(attempt.clip, settings)) is not None:
        note_instead(attempt, instead)
    asked = loaded.ways(attempt.clip, settings)[0]
    if way == asked:
        return
    attempt.less = way
    attempt.execution = replace(attempt.execution, keep=way.keep)
    warning = f"out of memory with {asked}, so it was rendered with {way}; its digest names what was asked for"
    attempt.warnings = (*attempt.warnings, warning)


def note_instead(attempt: Attempt, broadcast: str) -> None:
    """Notes in a filled-in attempt that the guard had it rendered with a milder broadcast, and warns of it."""
    attempt.instead = broadcast
    warning = (
        f"samples of broadcast {attempt.clip.broadcast} were not good enough in this job, so it was rendered with "
        f"{broadcast}; its digest names what was asked for"
    )
    attempt.warnings = (*attempt.warnings, warning)


def _render_loops(
    loaded: LoadedFamily,
    attempt: Attempt,
    prompts: Sequence[EncodedPrompt],
    plan: BroadcastPlan,
    group: NodeGroup,
    *,
    keep: str,
) -> None:
    before = loaded.make_room()
    loops: list[Denoised] = []
    for request, prompt in zip(clip_requests(attempt.clip), prompts, strict=True):
        given = _given(loaded, attempt, request, loops, group)
        try:
            done = _denoise(
                loaded, attempt.stages, request, prompt=prompt, plan=plan, group=group, given=given, keep=keep
            )
        except NotFiniteError:
            # On every rank alike. A loop begins with what was decoded of the loop before: the decoder may be at fault.
            _check_decoder(loaded, attempt, loops, group)
            raise
        loops.append(done)
    compiled = loaded.compiled_since(before)
    frames = _decode_in_memory(loaded, attempt, loops, group)
    fill_in(attempt, loaded, loops=loops, frames=frames, prompts=prompts, compiled=compiled)


def _decode_in_memory(
    loaded: LoadedFamily, attempt: Attempt, loops: Sequence[Denoised], group: NodeGroup
) -> ComingFrames:
    """Decodes, and once more after an empty cache if the device had no more memory and no other rank waits for this one.

    Recorded loops may be what memory is lacking for, so none is recorded any more.
    """
    try:
        return decode_loops(loaded, attempt, loops, group)
    except torch.OutOfMemoryError as error:
        if group.clip.size > 1:
            raise
        if loaded.record_no_more():
            told = {"clip": attempt.clip.clip_id, "error": str(error), "next": NO_LOOPS}
            log_event(_LOG, OUT_OF_MEMORY, level=logging.WARNING, **told)
    # Outside of `except`, so that the traceback no longer holds what was decoded so far.
    loaded.let_go()
    return decode_loops(loaded, attempt, loops, group)


def _check_decoder(loaded: LoadedFamily, attempt: Attempt, loops: Sequence[Denoised], group: NodeGroup) -> None:
    """Decodes the loops before one that failed. Raises NotFiniteError on every rank, at stage decode, if they do not decode.

    Waits for the device. Collective.
    """
    if not loops:
        return
    failed_stage, attempt.stages.current = attempt.stages.current, "decode"
    frames_THWC, not_finite, *_ = _decode(loaded, attempt.clip, loops, group)
    (count, *_) = group.clip.all_gather(not_finite.to(group.device).reshape(1))
    if int(count):
        raise NotFiniteError(not_finite_pixels(int(count), frames_THWC.numel()))
    attempt.stages.current = failed_stage


def _given(
    loaded: LoadedFamily, attempt: Attempt, request: ClipRequest, before: Sequence[Denoised], group: NodeGroup
) -> Beginning | None:
    """Returns the frames that the next loop begins with; None if it begins from noise only."""
    if attempt.beginning is not None:
        return attempt.beginning
    mask, encoded = attempt.masks[len(before)], list(attempt.encoded)
    if mask is None:
        return None
    with attempt.stages.time("condition_frames"):
        if before:
            length = clip_loops(attempt.clip).condition_frame_length
            last = clip_requests(attempt.clip)[len(before) - 1]
            encoded.append(_taker(loaded).encode_end(before[-1].latents, last, latent_frames=length, group=group))
        return _taker(loaded).given_frames(request, encoded, mask)


def _denoise(
    loaded: LoadedFamily,
    stages: Stages,
    request: ClipRequest,
    *,
    prompt: EncodedPrompt,
    plan: BroadcastPlan,
    group: NodeGroup,
    given: Beginning | None,
    keep: str,
) -> Denoised:
    loop = LoopSettings(cache_dtype=keep, rows_in_turn=loaded.rows_in_turn)
    if given is None:
        loop = loaded.loop_settings(request, plan, group, clips=1, keep=keep)
    with stages.time("denoise"):
        noise = initial_noise(request, loaded.model.latent_shape(request))
    wait_for_device(stages, group)
    with stages.time("denoise"):
        return denoise(
            loaded.model,
            request,
            prompt=prompt,
            noise=noise,
            plan=plan,
            group=group,
            given=given,
            loop=loop,
        )


def _decode(
    loaded: LoadedFamily, clip: Clip, loops: Sequence[Denoised], group: NodeGroup
) -> tuple[Tensor, Tensor, Sound | None, str | None]:  # fmt: skip
    """Returns the frames [T, H, W, 3] of these loops, without the frames that a loop repeats from the previous one.

    Beside them, on the same device, how many of all decoded values were NaN or infinite: one number. On ranks other than
    the clip's root there are no frames, and the number is 0. The third is the clip's sound [channels, S], which clips of
    several loops have none of, the last in which pieces the last loop was decoded.
    """
    rules = loaded.family.references
    repeated = 0 if rules is None else rules.repeated_frames(clip_loops(clip))
    parts, counts, sound = [], [], None
    for loop, (denoised, request) in enumerate(zip(loops, clip_requests(clip)[: len(loops)], strict=True)):
        decoded = loaded.model.decode(denoised.latents, request, group)
        frames_THWC = decoded.frames[0 if group.is_clip_root else slice(0)]
        if group.is_clip_root:
            frames_THWC = frames_THWC[repeated if loop else 0 :]
        not_finite = decoded.not_finite[: group.is_clip_root].sum()
        sound = None if decoded.sound is None else replace(decoded.sound, samples=decoded.sound.samples[0])
        # The device has room for the frames of one loop, but not of all loops.
        parts.append(frames_THWC.cpu() if len(loops) > 1 else frames_THWC)
        counts.append(not_finite.cpu() if len(loops) > 1 else not_finite)
    if len(parts) == 1:
        return parts[0], counts[0], sound, decoded.pieces
    return torch.cat(parts), torch.stack(counts).sum(), None, decoded.pieces


def _warnings(
    clip: Clip,
    family: Family,
    prompts: Sequence[EncodedPrompt],
    plan: BroadcastPlan,
    size: tuple[int, ...] | None,
) -> tuple[str, ...]:
    warnings = list(dict.fromkeys(warning for prompt in prompts for warning in prompt.warnings))
    if family.clean_prompt is not None and not family.clean_prompt(clip.prompt).strip():
        warnings.append("cleaning leaves nothing of the prompt, as in the family's own program")
    if held_back := plan.warning(clip.broadcast):
        warnings.append(held_back)
    rules = family.references
    num_frames = clip.num_frames if rules is None else rules.video_frames(clip.num_frames, clip_loops(clip))
    asked = (num_frames, clip.height, clip.width)
    if size is not None and size != asked:
        warnings.append(f"the model gave frames {size}, asked for was {asked}")
    return tuple(warnings)


def _masks(clip: Clip, family: Family) -> tuple[FrameMask | None, ...]:
    rules = family.references
    if rules is not None and rules.required:
        raise ValueError(f"clip {clip.clip_id}: {family.name} needs an image, the first frame of the clip; name one")
    if rules is not None and not rules.first_image:
        return rules.masks(None, (), clip.num_frames, clip_loops(clip))
    if clip.loops > 1:
        raise ValueError(f"clip {clip.clip_id}: loops={clip.loops}, {family.name} renders clips of one loop")
    return (None,)


def _taker(loaded: LoadedFamily) -> TakesReferences:
    return cast(TakesReferences, loaded.model)  # its family says that it takes them
