"""The canonical form of a clip and what is hashed of it: digest, default clip_id, default seed. Written down only here.

A clip's digest is the first 16 hex digits of the SHA-256 of these UTF-8 lines, joined by "\\n":

    clip/1                      name and version of this form
    family                      name of the model family
    identity                    what else changes pixels: weights, precision (`FamilyRules.identity`)
    rules                       digest of the broadcast rules, not their name (`FamilyRules.broadcasts`)
    num_frames, height, width, fps, num_steps       five lines, decimal
    guidance_scale              decimal of the 64 bits of the IEEE double, read as a signed integer; -0.0 is 0.0
    seed                        decimal
    length of negative_prompt   in UTF-8 bytes, decimal, or "-" where it is null
    negative_prompt             as it is; empty where it is null
    prompt                      as it is, to the end

No line before the prompts can hold a line break and the length says where `negative_prompt` ends, so different clips
have different forms. The default clip_id is made of the row as it was given, so that a change of weights or defaults
does not rename files: the same over "row/1", model, broadcast, the five sizes, guidance_scale, seed, then the prompts
as above, with "-" for every null. The default seed is the first 8 bytes of SHA-256("seed/1\\n" + clip_id), big-endian,
without the top bit.

What a row says of its sampling (`manifests/sampling.py`) stands behind the identity, as " sampling NAME flow_shift X
guidance_scale_2 Y", of what it says; in the form of a clip_id behind the broadcast. LoRAs that a row names
(`manifests/loras.py`) stand in the identity where those of the run would; in the form of a clip_id behind the broadcast, as
" lora TEXT".

Several loops add to both (`manifests/loops.py`): the hash of a clip with more than one is the first bytes of the SHA-256 of
the JSON text of a list: "clip/1 loops", the 16 digits of the row as it were with one, loops, condition_frame_length,
condition_frame_edit; for a clip_id "row/1 loops" and the three as given, null where a row leaves one out.

References add to both after that (`manifests/references.py`): the hash of a row with references is the first bytes of
the SHA-256 of the JSON text of a list: "clip/1 references", the 16 digits of the row as it were without them, the mask
strategy, then the SHA-256 of each reference's bytes; for a clip_id "row/1 references", strategy and names as given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
DIGEST_BYTES = 8


def clip_heads(names: Sequence[pa.Array], sizes: Sequence[pa.Array], guidance_scale: pa.Array) -> pa.Array:
    """Returns the lines of the canonical form before the seed, one string per row of the inputs.

    `names`: family, identity, rules digest; `sizes`: num_frames, height, width, fps, num_steps (int64).
    """
    return _head("clip/1", names, sizes, guidance_scale)


def row_heads(names: Sequence[pa.Array], sizes: Sequence[pa.Array], guidance_scale: pa.Array) -> pa.Array:
    """Returns the lines before the seed for a default clip_id. `names`: model, broadcast; nulls are allowed."""
    return _head("row/1", names, sizes, guidance_scale)


def _head(form: str, names: Sequence[pa.Array], sizes: Sequence[pa.Array], guidance_scale: pa.Array) -> pa.Array:
    guidance_bits = pc.add(guidance_scale, 0.0).view(pa.int64())
    lines = [*names, *(size.cast(pa.string()) for size in sizes), guidance_bits.cast(pa.string())]
    filled = [pc.fill_null(line, "-") for line in lines]
    return pc.binary_join_element_wise(pa.scalar(form), *filled, "\n")


def content_hashes(
    heads: pa.Array, seed: pa.Array, negative_prompt: pa.Array, prompt: pa.Array
) -> npt.NDArray[np.uint8]:
    """Hashes the canonical forms: uint8 [rows, 8], the first bytes of each SHA-256. `heads` ends before the seed."""
    if negative_prompt.null_count == len(negative_prompt):
        lengths, negative = pa.scalar("-"), pa.scalar("")
    else:
        lengths = pc.fill_null(pc.binary_length(negative_prompt).cast(pa.string()), "-")
        negative = pc.fill_null(negative_prompt, "")
    seeds = pc.fill_null(seed.cast(pa.string()), "-")
    return _sha256(pc.binary_join_element_wise(heads, seeds, lengths, negative, prompt, "\n"))


def default_seeds(clip_id: pa.Array) -> pa.Array:
    """Derives seeds from clip ids: int64, 0 <= seed < 2**63."""
    first = _sha256(pc.binary_join_element_wise(pa.scalar("seed/1"), clip_id, "\n"))
    words = first.view(">u8").reshape(-1).astype(np.uint64) & np.uint64(2**63 - 1)
    return pa.array(words.astype(np.int64))


def hex_strings(hashes: npt.NDArray[np.uint8]) -> pa.Array:
    """Writes bytes as lower-case hex: uint8 [rows, width] to an Arrow string array of 2 * width characters."""
    num_rows, width = hashes.shape
    offsets = np.arange(num_rows + 1, dtype=np.int32) * np.int32(2 * width)
    text = _HEX.take(hashes)  # two characters at a time
    return pa.StringArray.from_buffers(num_rows, pa.py_buffer(offsets), pa.py_buffer(text))


def as_lines(strings: pa.Array) -> bytes:
    """Returns the UTF-8 of all strings, each with a line break after it."""
    lines = pc.binary_join_element_wise(strings, pa.scalar(""), "\n")
    _, _, data = lines.buffers()
    return data.to_pybytes() if data is not None else b""


def _sha256(texts: pa.Array) -> npt.NDArray[np.uint8]:
    sha256 = hashlib.sha256
    # One call per row is the price of a cryptographic digest; all else is done by column.
    whole = b"".join([sha256(text).digest() for text in texts.cast(pa.binary()).to_pylist()])
    hashes = np.frombuffer(whole, np.uint8).reshape(-1, sha256().digest_size)
    return hashes[:, :DIGEST_BYTES].copy()  # of one row a slice would still be the bytes, which nobody may write to
