"""What a user may say about a source: what form it has, where its rows are, and which of its columns is which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FORMATS = ("csv", "tsv", "json", "jsonl", "text", "parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How sources are read where looking at them is not enough; None: looked at.

    `format`: one of FORMATS. `encoding`: of the text, as Python names it. `delimiter`: between the cells of CSV. `records`:
    names joined by dots that lead to the rows of a JSON document. `columns`: the source's column for each of ours.
    `map_alikes`: whether columns that look like settings under other names are read as those.
    """

    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    records: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    map_alikes: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"format {self.format!r}, allowed: {', '.join(FORMATS)}")
        if self.encoding is not None:
            try:
                "a".encode(
                    self.encoding
                )  # also refuses what Python calls an encoding and is none of text, such as zlib
            except (LookupError, ValueError) as error:
                allowed = "utf-8, utf-16, windows-1252, latin-1, gb18030, shift_jis and others that Python knows"
                raise ValueError(f"encoding {self.encoding!r} is not known, allowed: {allowed}") from error

    @property
    def prompt_column(self) -> str:
        """The source's column of prompts."""
        return self.columns.get("prompt", "prompt")
