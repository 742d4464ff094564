"""The columns of a source under the names of a manifest: in any case, as the user says, or by what they look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from manifests.alikes import DURATIONS, SIZES, alike, plain_name, width_and_height
from manifests.convert import Cell, Cells
from manifests.errors import shown
from manifests.schema import ROW_COLUMNS
from manifests.sources.options import SourceOptions
from manifests.suffixes import split_suffix

FramesOf = Callable[[str | None, float, float | None], int]
"""Returns the number of frames of a model (None: the run's) nearest to so many seconds at so many frames per second."""

UNNAMED = ("", "Unnamed: 0", "__index_level_0__")
"""What pandas calls the column of row numbers that it writes; it says nothing of a clip."""


class SourceColumns:
    """Gives the columns of a source the names of a manifest, and takes apart prompts that end with references."""

    def __init__(self, options: SourceOptions, frames_of: FramesOf | None = None) -> None:
        self._options = options
        self._frames_of = frames_of
        self._chosen = {theirs: ours for ours, theirs in options.columns.items()}
        self._names: dict[str, str] = {}
        self._mapped: dict[str, str] = {}
        self._unnamed = False

    def name(self, column: str) -> str:
        """Returns what a column of the source is called in the manifest."""
        if column not in self._names:
            self._names[column] = self._named(column)
        return self._names[column]

    def _named(self, column: str) -> str:
        if column in self._chosen:
            return self._chosen[column]
        plain = column.strip().lower()
        if plain in self._options.columns:  # another column was chosen for what this one is called
            return f"source_{plain}"
        if plain in ROW_COLUMNS:
            return plain
        meant = alike(column) if self._options.map_alikes else None
        return meant if meant is not None and " " not in meant and plain_name(column) not in DURATIONS else column

    def row(self, cells: Cells) -> Cells:
        """Returns a row with the manifest's columns. Raises ValueError where they do not fit together."""
        row: dict[str, Cell] = {}
        for column, value in cells.items():
            if column in UNNAMED:
                self._unnamed = True
                continue
            name = self.name(column)
            if name in row:
                raise ValueError(f"columns {shown(name)} and {shown(column)} are both read as {name!r}; rename one")
            row[name] = value
        for ours, theirs in self._options.columns.items():
            if ours not in row and "." in theirs:
                row[ours] = _inside(cells, theirs)
        if self._options.map_alikes:
            self._map_sizes(row)
        return self._split(row)

    def _map_sizes(self, row: dict[str, Cell]) -> None:
        for column in [name for name in row if plain_name(name) in SIZES | DURATIONS]:
            value = row[column]
            if value is None:
                del row[column]
            elif plain_name(column) in SIZES and "height" not in row and "width" not in row:
                try:
                    row["width"], row["height"] = width_and_height(value)
                except ValueError as error:
                    raise ValueError(f"{column}={shown(value)}: {error}; or add columns width and height") from error
                self._mapped[column] = "width and height"
                del row[column]
            elif plain_name(column) in DURATIONS and row.get("num_frames") is None and self._frames_of is not None:
                model, fps = row.get("model"), row.get("fps")
                try:
                    seconds, rate = float(str(value)), None if fps is None else float(str(fps))
                    row["num_frames"] = self._frames_of(None if model is None else str(model), seconds, rate)
                except (ValueError, OverflowError) as error:
                    raise ValueError(f"{column}={shown(value)}: {error}; give num_frames instead") from error
                self._mapped[column] = "num_frames"
                del row[column]

    def _split(self, row: dict[str, Cell]) -> Cells:
        prompt = row.get("prompt")
        split = split_suffix(prompt) if isinstance(prompt, str) else None
        if split is not None:
            if row.get("references") is not None or row.get("mask_strategy") is not None:
                raise ValueError("its end names references, and so do the row's columns; keep one of them")
            said = {"references": split.references, "mask_strategy": split.mask_strategy}
            row |= {"prompt": split.prompt, **{name: value for name, value in said.items() if value is not None}}
        return row

    def warnings(self) -> tuple[str, ...]:
        """Returns what was read in another way than it was written."""
        renamed = [
            f"column {column!r} is read as {name!r}"
            for column, name in {**self._names, **self._mapped}.items()
            if column.strip() != name and column not in self._chosen
        ]
        return (*renamed, *(["the column without a name is left out"] if self._unnamed else []))


def _inside(cells: Mapping[str, object], names: str) -> Cell:
    """Returns what lies below names joined by dots, such as `caption.en`; the first of a list. None where nothing does."""
    value: object = cells
    for name in names.split("."):
        if isinstance(value, list) and value and not name.isdigit():
            value = value[0]
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, Mapping):
            value = value.get(name)
        else:
            return None
    return value
