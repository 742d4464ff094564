"""Which frames of a clip its reference images and videos give, and which of their frames that takes. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pab.conditioning.frame_masks import FrameEntry, FrameMask, place_entries, read_strategy
from pab.conditioning.loops import MAX_LOOPS, ONE_LOOP, Loops, count_loops

FIRST_FRAME = "0"
"""The strategy of one image that begins the clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRules:
    """How a family's clips take references.

    `chunk_frames` pixel frames of a reference are encoded together, to `chunk_latents` latent frames; the last chunk may
    be shorter. `latent_frames(num_frames)` counts the latent frames of a clip or a reference. `align`: starts in a
    mask strategy are moved to multiples of it. `condition_frame_length`: latent frames of the loop before that a
    clip's next loop begins with unless its row says another number. `pixel_size(height, width)` is what references of a clip
    are brought to.

    `first_image`: the only reference is one image, the clip's first frame, which the model brings to size itself; clips have
    one loop. `required`: every clip needs one.
    """

    chunk_frames: int
    chunk_latents: int
    latent_frames: Callable[[int], int]
    align: int | None
    condition_frame_length: int
    pixel_size: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width)
    first_image: bool = False
    required: bool = False

    def masks(
        self, strategy: str | None, reference_frames: Sequence[int], num_frames: int, loops: Loops = ONE_LOOP
    ) -> tuple[FrameMask | None, ...]:
        """Applies a strategy to each loop of a clip; None for one that no reference gives anything.

        `reference_frames`: pixel frames of each reference, 1 for an image. Loops after the first begin with frames of the
        loop before, which stands behind the references as one more. `num_frames` are a loop's. Raises ValueError for a
        strategy that does not parse, or an entry that gives no frame of this clip.
        """
        latents = self.latent_frames(num_frames)
        if self.first_image and strategy is not None:
            _check_first_image(strategy, reference_frames, num_frames)
        given = [self.latent_frames(frames) for frames in reference_frames]
        entries = [] if strategy is None else self._entries(strategy, given, latents, loops.count)
        entries += [_going_on(loop, len(given), loops) for loop in range(1, loops.count)]
        masks = []
        for loop in range(loops.count):
            own = [entry for entry in entries if entry.loop == loop]
            mask = place_entries(own, [*given, latents], latents, align=self.align)
            masks.append(mask if any(mask.sources) else None)
        return tuple(masks)

    def mask(self, strategy: str, reference_frames: Sequence[int], num_frames: int) -> FrameMask:
        """Applies a strategy to a clip of one loop, as `masks` does."""
        (mask,) = self.masks(strategy, reference_frames, num_frames)
        assert mask is not None, "every entry of a clip of one loop gives a frame"
        return mask

    def _entries(self, strategy: str, given: Sequence[int], latents: int, loops: int) -> list[FrameEntry]:
        entries = read_strategy(strategy)
        if not entries:
            raise ValueError("a mask strategy needs an entry such as 0 (the first reference begins the clip)")
        for entry in entries:
            if not 0 <= entry.loop < loops:
                allowed = f"{loops} loops (0 to {loops - 1})" if loops > 1 else "one loop, 0"
                raise ValueError(f"it names loop {entry.loop}, the clip has {allowed}")
            if not 0 <= entry.reference < len(given):
                raise ValueError(f"it names reference {entry.reference}, the row has {_numbered(len(given))}")
            if entry.length < 1:
                raise ValueError(f"it has length {entry.length}, at least 1 latent frame is needed")
            _check_start("reference", entry.reference_start, given[entry.reference])
            _check_start("clip", entry.target_start, latents)
        return entries

    def loops(
        self, prompt: str, num_frames: int, *, count: int | None, length: int | None, edit: float | None
    ) -> Loops:
        """Returns a clip's loops: as many as `count`, else as its prompt has texts for.

        `length`, `edit`: condition_frame_length and condition_frame_edit, None for the family's and 0. Raises ValueError for
        what this clip cannot have.
        """
        named = count_loops(prompt)
        number = named if count is None else count
        if not 1 <= number <= MAX_LOOPS:
            raise ValueError(f"1 to {MAX_LOOPS} loops are rendered, not {number}")
        if named > number:
            raise ValueError(f"the prompt has a text for loop {named - 1}, the clip has loops 0 to {number - 1}")
        if number == 1:
            if length is not None or edit is not None:
                raise ValueError("a clip of one loop has no condition_frame_length and condition_frame_edit")
            return ONE_LOOP
        kept = self.condition_frame_length if length is None else length
        most = (self.latent_frames(num_frames) - 1) // self.chunk_latents * self.chunk_latents
        if kept not in range(self.chunk_latents, most + 1, self.chunk_latents):
            multiple = f"a multiple of {self.chunk_latents} from " if self.chunk_latents > 1 else ""
            allowed = f"{multiple}{self.chunk_latents} to {most}"
            at = f"of {num_frames} frames a loop"
            fits = f"{at} it can be {allowed}" if most else f"{at} there is none: a loop must be longer than that"
            raise ValueError(f"condition_frame_length={kept} (latent frames), {fits}")
        if not 0 <= (edit or 0.0) <= 1:
            raise ValueError(f"condition_frame_edit={edit:g}, allowed 0 to 1")
        return Loops(count=number, condition_frame_length=kept, condition_frame_edit=edit or 0.0)

    def repeated_frames(self, loops: Loops) -> int:
        """Returns the pixel frames that a loop begins with and that the loop before has shown."""
        return loops.condition_frame_length // self.chunk_latents * self.chunk_frames

    def video_frames(self, num_frames: int, loops: Loops) -> int:
        """Returns the frames of the video that comes out of loops of `num_frames` each."""
        return loops.count * num_frames - (loops.count - 1) * self.repeated_frames(loops)

    def chunk_span(self, latent_frames: Sequence[int], num_frames: int) -> range:
        """Returns the pixel frames of a reference of `num_frames` whose chunks hold these latent frames, and all between."""
        first, last = min(latent_frames) // self.chunk_latents, max(latent_frames) // self.chunk_latents
        return range(first * self.chunk_frames, min((last + 1) * self.chunk_frames, num_frames))


def first_image_rules(latent_frames: Callable[[int], int], *, required: bool = False) -> ReferenceRules:
    """Returns the rules of a family whose clips take one image, as their first frame."""
    return ReferenceRules(
        chunk_frames=1,
        chunk_latents=1,
        latent_frames=latent_frames,
        align=None,
        condition_frame_length=0,
        first_image=True,
        required=required,
    )


def _check_first_image(strategy: str, reference_frames: Sequence[int], num_frames: int) -> None:
    if strategy.strip() != FIRST_FRAME:
        raise ValueError("this model takes an image as the first frame of the clip; leave the mask strategy empty")
    if len(reference_frames) != 1:
        raise ValueError(
            f"this model takes one image, the first frame of the clip, not {len(reference_frames)} references"
        )
    if reference_frames[0] != 1:
        raise ValueError(f"this model takes one image, not a video of {reference_frames[0]} frames")
    if num_frames == 1:
        raise ValueError("the image is the first frame of the clip, and num_frames=1 leaves no other to render")


def _going_on(loop: int, reference: int, loops: Loops) -> FrameEntry:
    length = loops.condition_frame_length
    return FrameEntry(
        loop=loop,
        reference=reference,
        reference_start=-length,
        target_start=0,
        length=length,
        edit_ratio=loops.condition_frame_edit,
    )


def _check_start(what: str, start: int, size: int) -> None:
    if not -size <= start < size:
        raise ValueError(f"it starts at latent frame {start} of the {what}, which has {size} (-{size} to {size - 1})")


def _numbered(count: int) -> str:
    return f"{count} (0 to {count - 1})" if count > 1 else f"{count} (0)"
