"""What a model family allows and defaults to, as plain ranges: how `manifests/` checks rows without any model code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

ClipLoops = tuple[int, int | None, float | None]
"""A clip's loops, condition_frame_length and condition_frame_edit; the last two are None for a clip of one loop."""

FLOW_SHIFTS = (0.1, 100.0)
"""The least and the largest shift of noise levels; at 1 they are evenly spaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRule:
    """What a preset of sampling fixes: number of steps, guidance scale, and the name of the only broadcast. None: nothing."""

    num_steps: int | None = None
    guidance_scale: float | None = None
    broadcast: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoras:
    """LoRAs of a row as a family takes them: text and digests, which jobs get, and the row's identity with them."""

    text: str
    digests: str
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRules:
    """The rules of one family, made by the caller from the family and the settings of the run.

    Ranges are inclusive in the sense of `in`: `range(5, 82, 4)` allows 5, 9, ..., 81. `broadcasts` maps every allowed
    broadcast name to the digest of its rules; `identity()` names what else changes pixels (weights, precision). It is asked
    once, when the first row of the family comes: it may take long, and raises ValueError or OSError where the family
    cannot be used, which its rows' errors then say.
    `images`: whether one frame is allowed besides `num_frames`.
    `num_tokens(num_frames, height, width)` is asked once per distinct size, never per row.
    """

    name: str
    num_frames: range
    height: range
    width: range
    fps: range
    num_steps: range
    guidance_scale: tuple[float, float]
    max_tokens: int
    max_prompt_chars: int
    broadcasts: Mapping[str, str]
    identity: Callable[[], str]
    num_tokens: Callable[[int, int, int], int]
    defaults: Mapping[str, int | float | str]
    """Values for num_frames, height, width, fps, num_steps, guidance_scale and broadcast where a row has none; and, if the
    run has some, for sampling, flow_shift, guidance_scale_2 and negative_prompt."""
    broadcast_asked: bool = False
    """Whether the default broadcast is the user's choice, not the family's."""
    samplings: Mapping[str, SamplingRule] = field(default_factory=dict)
    """The presets that column `sampling` may name."""
    flow_shift: Callable[[int, int], float] | None = None
    """Returns the published shift of the noise levels of a height and width; None for a family that takes none."""
    second_guidance: bool = False
    """Whether a second transformer may have a guidance scale of its own."""
    loras: Callable[[tuple[str, ...]], RowLoras] | None = None
    """Returns the LoRAs that a row names instead of the run's; none of them: `()`. Raises ValueError or OSError for those
    that cannot be used. It is asked once for each different choice. None for a family that takes no LoRA."""
    images: bool = False
    clean_prompt: Callable[[str], str] | None = None
    """Returns what its own cleaning leaves of a prompt; None for a family whose cleaning drops no words. Raises ImportError
    where a library for it is missing."""
    check_mask: Callable[[str, Sequence[int], int, int], object] | None = None
    """Checks a row's references: mask strategy, frames of each reference, num_frames and loops of the clip. Raises
    ValueError saying what does not fit. None for a family that takes no references."""
    text_tokens: int | None = None
    """How many tokens of a prompt its text encoder reads; None where that is not to be checked."""
    count_words: Callable[[str], int] | None = None
    """Returns how many words of a prompt its text encoder reads, where its tokens are whole words; they are counted in every
    prompt then. None for all others."""
    count_tokens: Callable[[], Callable[[Sequence[str]], Sequence[int]] | None] | None = None
    """Returns what counts the tokens of texts; None, or if it returns None, they are estimated."""
    unknown_words: Callable[[str], Sequence[str]] | None = None
    """The words of a prompt that it cannot tell apart; None for a family that spells every word."""
    negative_unread: bool = False
    """Whether it reads no negative prompts, whatever the guidance scale."""
    needs_image: bool = False
    """Whether every row must name an image, the first frame of its clip."""
    clip_loops: Callable[[str, int, int | None, int | None, float | None], ClipLoops] | None = None
    """Returns a row's loops from prompt, num_frames, loops, condition_frame_length and condition_frame_edit, the last three
    as the row says, None where it does not. Raises ValueError saying what does not fit. None for a family of one loop."""
