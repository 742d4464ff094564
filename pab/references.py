"""Which frames of a clip its reference images and videos give, and which of their frames that takes. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pab.open_sora.frame_masks import FrameMask, frame_mask, read_strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRules:
    """How a family's clips take references.

    `chunk_frames` pixel frames of a reference are encoded together, to `chunk_latents` latent frames; the last chunk may
    be shorter. `latent_frames(num_frames)` counts the latent frames of a clip or a reference. `align`: starts in a
    mask strategy are moved to multiples of it. `pixel_size(height, width)` is what references of a clip are brought to.
    """

    chunk_frames: int
    chunk_latents: int
    latent_frames: Callable[[int], int]
    align: int | None
    pixel_size: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width)

    def mask(self, strategy: str, reference_frames: Sequence[int], num_frames: int) -> FrameMask:
        """Applies a strategy to a clip. `reference_frames`: pixel frames of each reference, 1 for an image.

        Raises ValueError for a strategy that does not parse, or an entry that gives no frame of this clip.
        """
        latents = self.latent_frames(num_frames)
        given = [self.latent_frames(frames) for frames in reference_frames]
        entries = read_strategy(strategy)
        if not entries:
            raise ValueError("a mask strategy needs an entry such as 0 (the first reference begins the clip)")
        for entry in entries:
            if entry.loop != 0:
                raise ValueError(f"it names loop {entry.loop}, a clip has one loop, 0")
            if not 0 <= entry.reference < len(given):
                raise ValueError(f"it names reference {entry.reference}, the row has {_numbered(len(given))}")
            if entry.length < 1:
                raise ValueError(f"it has length {entry.length}, at least 1 latent frame is needed")
            _check_start("reference", entry.reference_start, given[entry.reference])
            _check_start("clip", entry.target_start, latents)
        return frame_mask(strategy, given, latents, align=self.align)

    def chunk_span(self, latent_frames: Sequence[int], num_frames: int) -> range:
        """Returns the pixel frames of a reference of `num_frames` whose chunks hold these latent frames, and all between."""
        first, last = min(latent_frames) // self.chunk_latents, max(latent_frames) // self.chunk_latents
        return range(first * self.chunk_frames, min((last + 1) * self.chunk_frames, num_frames))


def _check_start(what: str, start: int, size: int) -> None:
    if not -size <= start < size:
        raise ValueError(f"it starts at latent frame {start} of the {what}, which has {size} (-{size} to {size - 1})")


def _numbered(count: int) -> str:
    return f"{count} (0 to {count - 1})" if count > 1 else f"{count} (0)"
