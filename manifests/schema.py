"""The Arrow schema of a manifest row, its version, and how foreign column types are brought to ours."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import Problem, shown

VERSION = 1
REFERENCES_VERSION = 2
"""Written for a manifest with references, which a reader of version 1 would leave out."""
LOOPS_VERSION = 3
"""Written for a manifest with loops, as every accepted one has. All versions are read."""
SAMPLING_VERSION = 4
"""Written for a manifest whose rows may say how they are sampled, which a reader of version 3 would leave out, and for one
with the column `image`; an accepted one names the images as references."""
LORA_VERSION = 5
"""Written for a manifest whose rows may name LoRAs, which a reader of version 4 would leave out."""
VERSION_KEY = b"pab_pipeline.manifest_version"

STRING_COLUMNS = ("clip_id", "prompt", "negative_prompt", "model", "broadcast", "mask_strategy", "sampling", "image")
INTEGER_COLUMNS = ("seed", "num_frames", "height", "width", "fps", "num_steps", "loops", "condition_frame_length")
FLOAT_COLUMNS = ("guidance_scale", "condition_frame_edit", "flow_shift", "guidance_scale_2")
LIST_COLUMNS = ("references", "lora")
"""Lists of strings, or strings with `;` between the parts."""
ROW_COLUMNS = (*STRING_COLUMNS, *INTEGER_COLUMNS, *FLOAT_COLUMNS, *LIST_COLUMNS)
"""What a user's manifest may hold; only `prompt` is required. Any other column is kept as it is."""

CLIP_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("negative_prompt", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("num_frames", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("fps", pa.int64(), nullable=False),
        pa.field("num_steps", pa.int64(), nullable=False),
        pa.field("guidance_scale", pa.float64(), nullable=False),
        pa.field("broadcast", pa.string(), nullable=False),
    ]
)
"""An accepted row: the fields of `Clip`, in their order. Those of loops, then of references, and extra columns follow it."""

LOOP_SCHEMA = pa.schema(
    [
        pa.field("loops", pa.int64(), nullable=False),
        pa.field("condition_frame_length", pa.int64()),
        pa.field("condition_frame_edit", pa.float64()),
    ]
)
"""Further fields of `Clip`; manifests that were accepted before version 3 have none, and clips of one loop."""

REFERENCE_SCHEMA = pa.schema(
    [
        pa.field("references", pa.list_(pa.string())),
        pa.field("reference_digests", pa.list_(pa.string())),
        pa.field("mask_strategy", pa.string()),
    ]
)
"""Further fields of `Clip`, in a manifest whose rows may name references."""

SAMPLING_SCHEMA = pa.schema(
    [
        pa.field("sampling", pa.string()),
        pa.field("flow_shift", pa.float64()),
        pa.field("guidance_scale_2", pa.float64()),
    ]
)
"""Further fields of `Clip`, in a manifest whose rows may say how they are sampled, or a run that says it for them."""

LORA_SCHEMA = pa.schema([pa.field("lora", pa.string()), pa.field("lora_digests", pa.string())])
"""Further fields of `Clip`, in a manifest whose rows may name LoRAs."""
_OURS = (*CLIP_SCHEMA.names, *LOOP_SCHEMA.names, *REFERENCE_SCHEMA.names, *SAMPLING_SCHEMA.names, *LORA_SCHEMA.names)
_READ_AS_OTHERS = ("image",)
"""Columns of ours that an accepted manifest has under other names."""

_INT64_LIMIT = 2.0**63


def clip_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Returns which columns of an accepted manifest are fields of `Clip`."""
    return tuple(name for name in _OURS if name in schema.names)


def has_references(schema: pa.Schema) -> bool:
    """Whether rows of a manifest may name references."""
    return any(name in schema.names for name in ("references", "mask_strategy", "image"))


def says_sampling(schema: pa.Schema) -> bool:
    """Whether rows of a manifest may say how they are sampled."""
    return any(name in schema.names for name in SAMPLING_SCHEMA.names)


def version(schema: pa.Schema) -> str:
    """Returns the version that a manifest of these columns is written as."""
    if "lora" in schema.names:
        return str(LORA_VERSION)
    if says_sampling(schema) or "image" in schema.names:
        return str(SAMPLING_VERSION)
    if any(name in schema.names for name in LOOP_SCHEMA.names):
        return str(LOOPS_VERSION)
    return str(REFERENCES_VERSION if has_references(schema) else VERSION)


def extra_fields(schema: pa.Schema) -> list[pa.Field]:
    """Returns the columns of a user's manifest that are not ours, in their order."""
    return [field for field in schema if field.name not in (*_OURS, *_READ_AS_OTHERS)]


def accepted_schema(schema: pa.Schema, *, sampling: bool = False) -> pa.Schema:
    """Returns the schema of what is written for a user's manifest of `schema`: ours, then its extra columns.

    `sampling`: whether the run says how rows are sampled that do not say it.
    """
    references = REFERENCE_SCHEMA if has_references(schema) else ()
    sampled = SAMPLING_SCHEMA if sampling or says_sampling(schema) else ()
    loras = LORA_SCHEMA if "lora" in schema.names else ()
    fields = pa.schema([*CLIP_SCHEMA, *LOOP_SCHEMA, *references, *sampled, *loras, *extra_fields(schema)])
    return fields.with_metadata({VERSION_KEY: version(fields).encode()})


def check_schema(schema: pa.Schema, likely: str | None = None) -> list[Problem]:
    """Returns what is wrong with the columns themselves: version, missing, twice there, or of a wrong type.

    `likely`: the column whose values look most like prompts, where none is called so.
    """
    problems = _version_problems(schema)
    for name in sorted({name for name in schema.names if schema.names.count(name) > 1}):
        problems.append(Problem(column=name, allowed="the column is there more than once", action="drop all but one"))
    if "prompt" not in schema.names:
        close = likely or _prompts(schema)
        found = ", ".join(shown(name) for name in schema.names[:20])
        action = (
            f"rename {close!r} to 'prompt', or say it: --column prompt={close} (columns found: {found})"
            if close
            else f"add it, or rename the right one of those found: {found}, or say which it is: --column prompt=NAME"
        )
        problems.append(Problem(column="prompt", allowed="the column is required and missing", action=action))
    return problems + [problem for field in schema if (problem := _type_problem(field)) is not None]


def _prompts(schema: pa.Schema) -> str | None:
    """Returns the column that looks most like the prompts of a manifest without a column `prompt`: text, and no id."""
    texts = [field.name for field in schema if _is_text(_plain_type(field))]
    likely = [name for name in texts if "prompt" in name.lower() and not name.lower().endswith("id")]
    likely = [name for name in likely if "negative" not in name.lower()]
    nearly = [name for name in texts if misspelled(name) == "prompt" and not name.lower().endswith("id")]
    return next(iter([*likely, *nearly]), None)


def misspelled(name: str) -> str | None:
    """Returns which of our columns a name is nearly; None if it is ours, or like none."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    close = difflib.get_close_matches(plain, ROW_COLUMNS, n=1, cutoff=0.7)
    return close[0] if close and name not in (*_OURS, *_READ_AS_OTHERS) else None


def _version_problems(schema: pa.Schema) -> list[Problem]:
    found = (schema.metadata or {}).get(VERSION_KEY)
    if found is None or found in [str(number).encode() for number in range(VERSION, LORA_VERSION + 1)]:
        return []
    return [
        Problem(
            column="manifest version",
            value=found.decode(errors="replace"),
            allowed=f"this program reads versions {VERSION} to {LORA_VERSION}",
            action="use the program that wrote the file, or build the manifest again",
        )
    ]


def _plain_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_dictionary(field.type) else field.type


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _type_problem(field: pa.Field) -> Problem | None:
    kind = _plain_type(field)
    if pa.types.is_null(kind):
        return None
    text = _is_text(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if field.name in STRING_COLUMNS and not text:
        allowed = "strings are needed"
    elif field.name in LIST_COLUMNS and not (text or (listed and pa.types.is_string(kind.value_type))):
        allowed = "lists of strings are needed (or strings with ; between the parts)"
    elif field.name in INTEGER_COLUMNS and not number:
        allowed = "integers are needed (or floats that hold whole numbers)"
    elif field.name in FLOAT_COLUMNS and not number:
        allowed = "numbers are needed"
    else:
        return None
    action = "cast the column and write the manifest again"
    return Problem(column=field.name, value=f"<{field.type}>", allowed=allowed, action=action)


BadRow = tuple[int, str]
"""Index in the batch, and the value as shown."""


def as_strings(array: pa.Array) -> tuple[pa.Array, list[BadRow]]:
    """Brings any encoding of strings to `string`. Returns it and the rows that are not valid UTF-8 (null there)."""
    array = array.cast(pa.string()) if array.type != pa.string() else array
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        raw = array.cast(pa.binary()).to_pylist()
        bad = [(i, repr(value[:60])) for i, value in enumerate(raw) if value is not None and not _is_utf8(value)]
        broken = {i for i, _ in bad}
        return pa.array([None if i in broken else value for i, value in enumerate(raw)], pa.binary()).cast(
            pa.string()
        ), bad
    return array, []


def as_integers(array: pa.Array) -> tuple[pa.Array, list[BadRow]]:
    """Brings any number to int64. Returns it and the rows that are no whole number within int64 (null there)."""
    array = _decoded(array)
    if array.type == pa.int64():
        return array, []
    if pa.types.is_uint64(array.type):
        return _without(array, lambda values: pc.greater(values, pa.scalar(2**63 - 1, pa.uint64())))
    if pa.types.is_decimal(array.type):
        return _decimals(array)
    if pa.types.is_floating(array.type):
        return _without(array.cast(pa.float64()), _not_whole)
    return array.cast(pa.int64()), []


def as_floats(array: pa.Array) -> tuple[pa.Array, list[BadRow]]:
    """Brings any number to float64. Returns it and the rows that are NaN or infinite (null there)."""
    array = _decoded(array).cast(pa.float64(), safe=False)
    bad = pc.fill_null(pc.invert(pc.is_finite(array)), fill_value=False)
    if not pc.any(bad).as_py():
        return array, []
    rows = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    found = [(int(i), repr(array[int(i)].as_py())) for i in rows]
    return pc.if_else(bad, pa.scalar(None, pa.float64()), array), found


def _decimals(array: pa.Array) -> tuple[pa.Array, list[BadRow]]:
    # One by one: as floats, numbers beyond 2**53 would become other ones.
    found: list[int | None] = []
    bad: list[BadRow] = []
    for at, value in enumerate(array.to_pylist()):
        whole = value is not None and value == value.to_integral_value() and -(2**63) <= value < 2**63
        found.append(int(value) if whole else None)
        if value is not None and not whole:
            bad.append((at, str(value)))
    return pa.array(found, pa.int64()), bad


def _decoded(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _not_whole(values: pa.Array) -> pa.Array:
    inside = pc.and_(pc.greater_equal(values, -_INT64_LIMIT), pc.less(values, _INT64_LIMIT))
    return pc.invert(pc.and_(inside, pc.equal(pc.floor(values), values)))


def _without(array: pa.Array, is_bad: Callable[[pa.Array], pa.Array]) -> tuple[pa.Array, list[BadRow]]:
    bad = pc.fill_null(is_bad(array), fill_value=False)
    rows = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    found = [(int(i), shown(array[int(i)].as_py())) for i in rows]
    return pc.if_else(bad, pa.scalar(None, array.type), array).cast(pa.int64()), found


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
