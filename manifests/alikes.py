"""Columns that look like ours under other names, and the column that holds prompts, found by looking at its values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from manifests.schema import ROW_COLUMNS, extra_fields, misspelled

ALIKES: Mapping[str, str] = {
    "num_inference_steps": "num_steps", "inference_steps": "num_steps", "sampling_steps": "num_steps", "steps": "num_steps",
    "num_sampling_steps": "num_steps", "infer_steps": "num_steps", "sample_steps": "num_steps",
    "cfg": "guidance_scale", "cfg_scale": "guidance_scale", "guidance": "guidance_scale", "scale": "guidance_scale",
    "guide_scale": "guidance_scale", "sample_guide_scale": "guidance_scale", "text_guidance_scale": "guidance_scale",
    "negative": "negative_prompt", "neg_prompt": "negative_prompt", "negative_text": "negative_prompt",
    "n_prompt": "negative_prompt", "neg": "negative_prompt", "uncond_prompt": "negative_prompt",
    "frames": "num_frames", "n_frames": "num_frames", "frame_num": "num_frames", "video_length": "num_frames",
    "frame_rate": "fps", "framerate": "fps", "h": "height", "w": "width",
    "random_seed": "seed", "base_seed": "seed", "noise_seed": "seed", "generator_seed": "seed",
    "image_path": "image", "first_frame": "image", "init_image": "image", "input_image": "image",
    "reference_path": "references", "ref_images": "references",
    "shift": "flow_shift", "sample_shift": "flow_shift", "model_name": "model", "model_id": "model",
    "resolution": "height and width", "size": "height and width", "video_size": "height and width",
    "duration": "num_frames", "seconds": "num_frames", "duration_s": "num_frames",
}  # fmt: skip
"""What a column of another name looks like, in small letters with _ between the words."""
SIZES = frozenset({"resolution", "size", "video_size"})
"""Columns of width and height together, such as 1280x720 or [1280, 720]."""
DURATIONS = frozenset({"duration", "seconds", "duration_s"})
"""Columns of seconds."""

_WIDTH_HEIGHT = re.compile(r"\s*\D?\s*(\d{2,5})\s*(?:[xX*×,:]|\s)\s*(\d{2,5})\s*\D?\s*")
_LIKELY_NAMES = ("prompt", "caption", "text", "description", "sentence", "title", "query")
_NO_PROMPT = re.compile(r"(?i)negative|(^|_)neg(_|$)")
_NO_TEXT = re.compile(r"^(\S*://|[\w.-]*[/\\])\S*$|^[\w-]+\.\w{2,5}$|^[0-9a-fA-F-]{16,}$")
LOOKED_AT = 50
"""Rows whose values are looked at."""


def plain_name(name: str) -> str:
    """Returns a column's name in small letters, with _ between the words."""
    return re.sub(r"[\s-]+", "_", name.strip()).lower()


def alike(name: str) -> str | None:
    """Returns which of our columns a column of another name looks like; None if it looks like none."""
    plain = plain_name(name)
    return None if plain in ROW_COLUMNS else ALIKES.get(plain)


def column_warnings(schema: pa.Schema) -> tuple[str, ...]:
    """Returns a warning for each unknown column that looks like one of ours, and for a `digest` that is replaced."""
    there = set(schema.names)
    warnings = []
    for name in (field.name for field in extra_fields(schema)):
        if (meant := alike(name)) is not None:
            if meant not in there:
                only_mapped = " " in meant or plain_name(name) in DURATIONS
                how = "--map" if only_mapped else f"--map or --column {meant}={name}"
                warnings.append(
                    f"column {name!r} changes nothing, it is kept as an extra column; if {meant} is meant: {how}"
                )
        elif (meant := misspelled(name)) is not None and meant not in there:
            told = f"column {name!r} is kept as an extra column; if {meant!r} is meant, rename it"
            warnings.append(told)
    if "digest" in there:
        warnings.append("column 'digest' is computed anew; the values of the manifest are not kept")
    return tuple(warnings)


def width_and_height(value: object) -> tuple[int, int]:
    """Reads `1280x720`, `1280*720`, `1280, 720` or `[1280, 720]`. Raises ValueError for anything else."""
    text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    found = _WIDTH_HEIGHT.fullmatch(text)
    if found is None:
        raise ValueError("width and height are needed, such as 1280x720")
    return int(found[1]), int(found[2])


def likely_prompts(rows: Sequence[Mapping[str, object]]) -> str | None:
    """Returns the column whose values look most like prompts: text of several words, no ids, paths or addresses.

    Where several do, a name that says so decides, then how much text there is.
    """
    names = dict.fromkeys(name for row in rows[:LOOKED_AT] for name in row if name)
    scored = []
    for at, name in enumerate(names):
        values = [row.get(name) for row in rows[:LOOKED_AT] if row.get(name) is not None]
        texts = [
            value for value in values if isinstance(value, str) and value.strip() and not _NO_TEXT.match(value.strip())
        ]
        if _NO_PROMPT.search(name) or not values or len(texts) < 0.7 * len(values):
            continue
        # Chinese has no spaces: letters count there.
        words = sum(max(len(text.split()), sum(ord(letter) > 0x2E7F for letter in text) // 2) for text in texts) / len(
            texts
        )
        if words < 2:
            continue
        named = next((len(_LIKELY_NAMES) - i for i, word in enumerate(_LIKELY_NAMES) if word in name.lower()), 0)
        distinct = len(set(texts)) / len(texts)
        scored.append((named * distinct, min(words, 100) * distinct, -at, name))
    return max(scored)[-1] if scored else None
