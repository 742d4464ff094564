"""A clip's references: fetched, compared with the file that `submit` saw, decoded, and resized for the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from jobs.log import log_event
from jobs.media.reference_access import ReferenceAccess, UnusableReferenceError
from jobs.media.reference_files import Reference, decode_frames, fetch_reference
from jobs.rendering.loops import clip_loops
from jobs.store.retry import RetryPolicy
from manifests.clip import Clip
from pab.conditioning.frame_masks import FrameMask
from pab.conditioning.reference_pixels import ReferenceImage, ReferencePixels, fit_frame
from pab.conditioning.references import ReferenceRules

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
MAX_FITTED_BYTES = 8 << 30
"""Of a reference's frames at the clip's size, all held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReferences:
    """A clip's frame masks, one per loop, and its references' pixels; None for a loop or reference without any.

    `image`: the picture that the clip begins with, for a model that brings it to size itself.
    """

    masks: tuple[FrameMask | None, ...]
    pixels: tuple[ReferencePixels | None, ...]
    num_frames: tuple[int, ...]
    image: ReferenceImage | None = None


def take_references(
    clip: Clip, rules: ReferenceRules, retry_policy: RetryPolicy, *, access: ReferenceAccess
) -> ClipReferences:
    """Returns the clip's references in the form that the model takes.

    The URLs come from a shard, which others may have written to, so `access` is asked again. Raises UnusableReferenceError
    naming a reference that is not allowed or cannot be read, or whose file has changed since the submit; ValueError if the
    mask strategy does not fit.
    """
    fetched = [
        _fetched(url, sha256, access, retry_policy)
        for url, sha256 in zip(clip.references, clip.reference_digests, strict=True)
    ]
    num_frames = tuple(reference.num_frames for reference in fetched)
    assert clip.mask_strategy is not None, "a clip with references has a mask strategy"
    masks = rules.masks(clip.mask_strategy, num_frames, clip.num_frames, clip_loops(clip))
    if rules.first_image:
        image = _named(clip.references[0], lambda: _image(fetched[0]))
        log_event(_LOG, "image_read", clip=clip.clip_id, size=tuple(image.frame_HW3.shape[:2]))
        return ClipReferences(masks=masks, pixels=(), num_frames=num_frames, image=image)
    pixels = tuple(_pixels(clip, at, fetched[at], masks, rules) for at in range(len(fetched)))
    log_event(_LOG, "references_read", clip=clip.clip_id, references=len(fetched), frames=num_frames)
    return ClipReferences(masks=masks, pixels=pixels, num_frames=num_frames)


def _fetched(url: str, sha256: str, access: ReferenceAccess, retry_policy: RetryPolicy) -> Reference:
    reference = _named(url, lambda: fetch_reference(url, access, retry_policy))
    if reference.sha256 != sha256:
        raise UnusableReferenceError(
            f"reference {url} has changed since the clip was submitted: its SHA-256 is {reference.sha256}, was {sha256}; "
            "put the file back and `retry`, or submit the manifest anew with another --output"
        )
    return reference


def _image(reference: Reference) -> ReferenceImage:
    (frame,) = decode_frames(reference, range(1))
    try:
        return ReferenceImage(frame_HW3=torch.from_numpy(frame.copy()))
    except ValueError as error:
        raise UnusableReferenceError(str(error)) from error


def _pixels(
    clip: Clip, at: int, reference: Reference, masks: Sequence[FrameMask | None], rules: ReferenceRules
) -> ReferencePixels | None:
    sources = [source for mask in masks if mask is not None for source in mask.sources]
    taken = [source[1] for source in sources if source is not None and source[0] == at]
    if not taken:
        return None
    span = rules.chunk_span(taken, reference.num_frames)
    size = rules.pixel_size(clip.height, clip.width)
    size_bytes = 3 * 4 * size[0] * size[1] * len(span)
    if size_bytes > MAX_FITTED_BYTES:
        raise UnusableReferenceError(
            f"reference {clip.references[at]}: the mask strategy takes its frames {span.start} to {span.stop - 1}, which "
            f"need {size_bytes / 1e9:.0f} GB at the clip's size, at most {MAX_FITTED_BYTES / 1e9:.0f} GB are used; take fewer"
        )

    def fitted() -> torch.Tensor:
        frames = (torch.from_numpy(frame.copy()) for frame in decode_frames(reference, span))
        return torch.stack([fit_frame(frame, size, still=reference.still) for frame in frames], dim=1)[None]

    return ReferencePixels(pixels_13THW=_named(clip.references[at], fitted), start=span.start)


def _named(url: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except UnusableReferenceError as error:
        raise UnusableReferenceError(f"reference {url}: {error}", away=error.away) from error
