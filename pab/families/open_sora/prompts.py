"""What Open-Sora 1.2 is given for a prompt: its first scene, with quality scores, cleaned."""

from __future__ import annotations

from dataclasses import dataclass

from pab.conditioning.loops import loop_texts
from pab.text.prompt_cleaning import clean


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A clip's quality and motion, in the words of the training captions; None is left out."""

    aesthetic: float | None = 6.5
    motion: float | None = None
    camera_motion: str | None = None


def with_scores(prompt: str, scores: Scores) -> str:
    """Returns the prompt with the scores it does not state itself."""
    sentences = (
        ("aesthetic score:", scores.aesthetic if scores.aesthetic is None else f"{scores.aesthetic:.1f}"),
        ("motion score:", scores.motion if scores.motion is None else f"{scores.motion:.1f}"),
        ("camera motion:", scores.camera_motion),
    )
    added = [f" {name} {value}." for name, value in sentences if value is not None and name not in prompt]
    return prompt + "".join(added)


def model_prompt(prompt: str, scores: Scores) -> str:
    """Returns what the text encoder is given for a clip's prompt: its first scene, scored and cleaned."""
    return clean(with_scores(loop_texts(prompt, 1)[0], scores))
