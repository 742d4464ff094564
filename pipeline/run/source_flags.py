"""Flags that say how prompts are read from a source, and what is added to its rows. Nothing slow is imported here."""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = ("csv", "tsv", "json", "jsonl", "text", "parquet")
CLIP_FLAGS = {
    "num_frames": "frames", "height": "pixels", "width": "pixels", "fps": "frames per second", "num_steps": "denoising steps",
    "guidance_scale": "guidance scale", "seed": "seed",
}  # fmt: skip
"""Columns that have a flag, and what it sets."""

SOURCES = """sources:
  Parquet, CSV (, ; tab or |), TSV, JSON (a list, columns, objects by name), JSON lines, text with one prompt a line; packed
  with gz, bz2, xz or zst. What a file is, is looked at. A folder, a pattern ('set/*.csv') and - (standard input) are
  sources too; folders called NAME=VALUE become columns.

"""


def add_source_flags(parser: argparse.ArgumentParser, *, is_build: bool = False) -> None:
    """Adds the flags. `is_build`: also those that a run has as settings."""
    group = parser.add_argument_group("reading prompts")
    group.add_argument(
        "--prompt-column", metavar="NAME", help="the column that holds the prompts, if its name is not prompt"
    )
    group.add_argument(
        "--column",
        dest="source_columns",
        action="append",
        metavar="OURS=THEIRS",
        help="which column of the source is which of a manifest, e.g. prompt=prompt_en or clip_id=uid; names joined by dots "
        "lead into JSON objects; may be repeated",
    )
    group.add_argument(
        "--map",
        dest="map_alikes",
        action="store_true",
        help="read columns that look like settings as those: num_inference_steps, cfg_scale, resolution, duration and others "
        "(without it they are kept, change nothing, and are told)",
    )
    group.add_argument(
        "--format", dest="source_format", choices=FORMATS, help="the form of the source (default: looked at)"
    )
    group.add_argument(
        "--encoding",
        metavar="NAME",
        help="how its text is encoded, e.g. windows-1252 (default: UTF-8, or what it begins with)",
    )
    group.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="C",
        help="the character between the cells of CSV; tab for tabulators (default: found from the first line)",
    )
    group.add_argument(
        "--records",
        metavar="NAMES",
        help="where in a JSON document the rows are, such as data.items; a dot alone is the whole document (default: its "
        "only list of objects)",
    )
    group.add_argument(
        "--errors",
        type=Path,
        metavar="FILE",
        help="where every problem is listed as JSON lines, if there are any (default: NAME.errors.jsonl here)",
    )
    _add_row_flags(parser, is_build=is_build)


def _add_row_flags(parser: argparse.ArgumentParser, *, is_build: bool) -> None:
    group = parser.add_argument_group("what is added to its rows")
    for name, what in CLIP_FLAGS.items():
        flag = name.replace("_", "-")
        group.add_argument(
            f"--{flag}", dest=f"clip_{name}", metavar="N", help=f"{what} of rows that have no {name} of their own"
        )
    if is_build:
        for name in ("negative_prompt", "model", "broadcast"):
            flag = name.replace("_", "-")
            group.add_argument(f"--{flag}", dest=f"clip_{name}", metavar="TEXT", help=f"{name} of rows that have none")
    group.add_argument(
        "--set",
        dest="clip_constants",
        action="append",
        metavar="NAME=VALUE",
        help="a column that has this value in every row, whatever the row says; may be repeated",
    )
    group.add_argument(
        "--seeds",
        type=count,
        default=1,
        metavar="N",
        help="N clips of each row, with seeds one after another (default: 1)",
    )
    group.add_argument(
        "--sweep",
        dest="clip_sweeps",
        action="append",
        metavar="NAME=A,B,C",
        help="a clip of each row for every one of these values, e.g. guidance_scale=4,5,6; repeated: for all combinations. "
        "Rows without a seed get one by clip, so add --seed N to compare values under the same noise",
    )
    group.add_argument("--limit", type=count, metavar="N", help="only the first N rows")
    group.add_argument("--sample", type=count, metavar="N", help="only N rows, chosen by chance")
    group.add_argument(
        "--sample-seed", type=int, default=0, metavar="N", help="another number chooses other rows (default: 0)"
    )
    group.add_argument(
        "--prompt-template",
        metavar="TEXT",
        help="text around every prompt, e.g. '{prompt}, cinematic, in the style of {style}'; names in braces are columns",
    )
    group.add_argument(
        "--aesthetic-score",
        type=_score,
        metavar="X",
        help="ends prompts as Open-Sora's program does: aesthetic score: X.",
    )
    group.add_argument("--motion-score", type=_score, metavar="X", help="the same: motion score: X.")
    group.add_argument("--camera-motion", metavar="TEXT", help="the same, e.g. 'pan left': camera motion: pan left.")


def _delimiter(text: str) -> str:
    character = "\t" if text in ("tab", "\\t") else text
    if len(character) != 1 or character in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r}, needs one character, or tab")
    return character


def count(text: str) -> int:
    """Reads a flag that counts. Raises argparse.ArgumentTypeError, which says what is needed."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}, needs 1 or more")
    return number


def _score(text: str) -> str:
    return f"{float(text):.1f}"
