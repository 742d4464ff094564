"""Applies a mask strategy's entries for one loop to a clip."""

from collections.abc import Sequence

from pab.conditioning.frame_masks import FrameMask, place_entries, read_strategy


def frame_mask(
    strategy: str, reference_frames: Sequence[int], latent_frames: int, *, loop: int, align: int | None
) -> FrameMask:
    entries = [entry for entry in read_strategy(strategy) if entry.loop == loop]
    return place_entries(entries, reference_frames, latent_frames, align=align)
