"""Rows that name reference images and videos: what they say, whether it can be rendered, and what it adds to a digest.

A row without references costs nothing here: only the rows that name some are looked at one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.digest import DIGEST_BYTES
from manifests.errors import Problem, cut, shown
from manifests.limits import Limits, Settings
from manifests.rules import ClipLoops

SHOWN_URL_CHARS = 300
MAX_REFERENCES, MAX_CELL_BYTES, MAX_STRATEGY_BYTES = 64, 1 << 17, 1 << 14
"""Of one row: so many references, or so many bytes where they are one string."""
DEFAULT_STRATEGY = "0"
"""What references without a mask strategy mean: the first latent frame of the first one begins the clip."""
SEPARATOR = ";"
"""Between references that are written as one string."""

_CACHES = ("simplecache::", "filecache::", "blockcache::")
"""What a user may write before a manifest's URL; files beside it are read without."""
_BOTH, _KEEP_ONE = "an image is the first frame, and references or a mask strategy say it too", "keep one of them"
_NO_REFERENCES = "a mask strategy says which frames references give, and the row names no references"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenReference:
    """What is known of a reference that was read: SHA-256 in hex of its bytes, and its frames (1 for an image)."""

    sha256: str
    num_frames: int


ReadReferences = Callable[[Sequence[str]], Mapping[str, SeenReference | str]]
"""Reads references by URL: what is known of each, or a sentence that says why it cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReferences:
    """The rows of a batch that name references: their places in it and, in the same order, what they say as given."""

    at: npt.NDArray[np.int64]
    names: tuple[tuple[str, ...], ...]
    strategies: tuple[str | None, ...]
    columns: tuple[str, ...]
    """Which column names them: `references`, or `image`, which names one picture and means the same as one reference."""

    def add_to_ids(self, hashes: npt.NDArray[np.uint8]) -> None:
        """Makes the hashes that default clip ids are written from depend on the references, as they are named."""
        rows = zip(self.at, self.strategies, self.names, strict=True)
        for at, strategy, names in rows:
            hashes[at] = _hash("row/1 references", hashes[at], strategy, names)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReferences:
    """References of a batch that can be rendered, for the rows in `at`; `problems` of those that cannot."""

    at: tuple[int, ...]
    urls: tuple[tuple[str, ...], ...]
    digests: tuple[tuple[str, ...], ...]
    strategies: tuple[str, ...]
    problems: tuple[Problem, ...]

    def add_to_digests(self, hashes: npt.NDArray[np.uint8]) -> None:
        """Makes the clips' digests depend on the references' bytes and on the mask strategy."""
        for at, strategy, digests in zip(self.at, self.strategies, self.digests, strict=True):
            hashes[at] = _hash("clip/1 references", hashes[at], strategy, digests)

    def columns(self, num_rows: int) -> dict[str, pa.Array]:
        """Returns the columns of an accepted manifest, null in the rows without references."""
        values: dict[str, list[object]] = {
            name: [None] * num_rows for name in ("references", "reference_digests", "mask_strategy")
        }
        for at, urls, digests, strategy in zip(self.at, self.urls, self.digests, self.strategies, strict=True):
            values["references"][at], values["reference_digests"][at] = list(urls), list(digests)
            values["mask_strategy"][at] = strategy
        lists = pa.list_(pa.string())
        return {
            name: pa.array(held, pa.string() if name == "mask_strategy" else lists) for name, held in values.items()
        }


def _hash(form: str, before: npt.NDArray[np.uint8], strategy: str | None, values: Sequence[str]) -> list[int]:
    text = json.dumps([form, before.tobytes().hex(), strategy, *values], ensure_ascii=True)
    return list(hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES])


def read_row_references(
    batch: pa.RecordBatch, columns: Mapping[str, pa.Array], first_row: int
) -> tuple[RowReferences, list[Problem]]:
    """Reads the reference columns of a batch. `columns`: its mask strategies and images as strings."""
    strategies, images = columns["mask_strategy"], columns["image"]
    absent = pa.nulls(len(batch), pa.string())
    column = batch.column("references") if "references" in batch.schema.names else absent
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    problems = [
        *_too_many(column, first_row),
        *_too_long("mask_strategy", strategies, MAX_STRATEGY_BYTES, first_row),
        *_too_long("image", images, MAX_CELL_BYTES, first_row),
    ]
    left_out = {problem.row for problem in problems}
    named = [int(at) for at in np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))]
    names = {
        at: found for at in named if first_row + at not in left_out and (found := split_references(column[at].as_py()))
    }
    pictures = {at: text for at, text in _stated(images) if first_row + at not in left_out}
    stated = dict(_stated(strategies))
    texts = {at: text for at, text in stated.items() if first_row + at not in left_out}
    problems += [
        Problem(row=first_row + at, column="image", value=shown(pictures[at]), allowed=_BOTH, action=_KEEP_ONE)
        for at in sorted(pictures.keys() & (names.keys() | texts.keys()))
    ]
    problems += [
        Problem(row=first_row + at, column="mask_strategy", value=shown(texts[at]), allowed=_NO_REFERENCES)
        for at in sorted(texts.keys() - names.keys() - pictures.keys())
    ]
    for at in pictures.keys() & (names.keys() | texts.keys()):
        del pictures[at]
        names.pop(at, None)
    kept = sorted(names.keys() | pictures.keys())
    return RowReferences(
        at=np.array(kept, np.int64),
        names=tuple(names[i] if i in names else (pictures[i],) for i in kept),
        strategies=tuple(texts.get(i) for i in kept),
        columns=tuple("references" if i in names else "image" for i in kept),
    ), problems


def _stated(column: pa.Array) -> Iterator[tuple[int, str]]:
    """Yields the rows in which a column of strings says anything, and what."""
    for at in np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)):
        if text := column[int(at)].as_py().strip():
            yield int(at), text


def _too_many(column: pa.Array, first_row: int) -> Iterator[Problem]:
    """Yields a problem for each row that names more references than are read; counted before they are."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        counts, most, what = pc.list_value_length(column), MAX_REFERENCES, "references"
    elif pa.types.is_null(column.type):
        return
    else:
        counts, most, what = pc.binary_length(column), MAX_CELL_BYTES, "bytes"
    for at in np.flatnonzero(pc.fill_null(pc.greater(counts, most), fill_value=False).to_numpy(zero_copy_only=False)):
        allowed = f"{counts[int(at)].as_py():,} {what}, at most {most:,} are read"
        yield Problem(row=first_row + int(at), column="references", allowed=allowed)


def _too_long(name: str, column: pa.Array, most: int, first_row: int) -> Iterator[Problem]:
    lengths = pc.binary_length(column)
    long = pc.fill_null(pc.greater(lengths, most), fill_value=False)
    for at in np.flatnonzero(long.to_numpy(zero_copy_only=False)):
        allowed = f"{lengths[int(at)].as_py():,} bytes, at most {most:,} are read"
        yield Problem(row=first_row + int(at), column=name, allowed=allowed)


def split_references(value: str | Sequence[str | None]) -> tuple[str, ...]:
    """Returns the references that a cell names: a list, or one string with `;` between them. Blank ones are left out."""
    parts = value.split(SEPARATOR) if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part is not None and part.strip())


def resolved(name: str, manifest: str) -> str:
    """Returns a reference's URL: a relative path is one beside the manifest. What it may name is not checked here."""
    if "://" in name or "::" in name or "\0" in name:
        return name
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~somebody, whom nobody knows
        path = Path(name)
    if path.is_absolute():
        return str(path)
    for cache in _CACHES:
        manifest = manifest.removeprefix(cache)
    if "://" in manifest or "::" in manifest:
        return f"{manifest.rpartition('/')[0]}/{PurePosixPath(name)}"
    return str((Path(manifest).expanduser().parent / path).absolute())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What one row says. `column`: which column names the references."""

    at: int
    names: tuple[str, ...]
    column: str
    strategy: str | None
    manifest: str

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(resolved(name, self.manifest) for name in self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCheck:
    """Checks the references of batch after batch. `manifest`: its URL, which relative paths start at."""

    manifest: str
    limits: Limits
    read: ReadReferences

    def check(
        self,
        given: RowReferences,
        settings: Settings,
        codes: npt.NDArray[np.int64],
        *,
        loops: Mapping[int, ClipLoops],
        first_row: int,
    ) -> CheckedReferences:
        """Reads and checks the references of a batch; a row has at most one problem.

        `codes`: the settings of each row. `loops`: of the rows that have several.
        """
        rows = [
            _Row(at=int(at), names=names, column=column, strategy=strategy, manifest=self.manifest)
            for at, names, column, strategy in zip(given.at, given.names, given.columns, given.strategies, strict=True)
        ]
        refused = {row.at: self._refused(settings, int(codes[row.at]), row) for row in rows}
        seen = self.read(list(dict.fromkeys(url for row in rows if refused[row.at] is None for url in row.urls)))
        problems: list[Problem] = []
        kept: list[tuple[_Row, tuple[str, ...]]] = []
        for row in rows:
            facts = [seen[url] for url in row.urls] if refused[row.at] is None else []
            count = loops[row.at][0] if row.at in loops else 1
            problem = (
                refused[row.at]
                or _unusable(row, facts)
                or self._misfit(row, facts, settings, int(codes[row.at]), count)
            )
            if problem is not None:
                problems.append(problem.of_row(first_row + row.at))
            else:
                kept.append((row, tuple(fact.sha256 for fact in facts if not isinstance(fact, str))))
        return CheckedReferences(
            at=tuple(row.at for row, _ in kept),
            urls=tuple(row.urls for row, _ in kept),
            digests=tuple(digests for _, digests in kept),
            strategies=tuple(row.strategy or DEFAULT_STRATEGY for row, _ in kept),
            problems=tuple(problems),
        )

    def missing(
        self, given: RowReferences | None, settings: Settings, codes: npt.NDArray[np.int64], *, first_row: int
    ) -> Iterator[Problem]:
        """Yields a problem for each row of a family that needs an image, and that names none."""
        models = settings.columns["model"].to_pylist()
        needing = [(family := self.limits.family(model)) is not None and family.needs_image for model in models]
        rows = np.flatnonzero(np.array(needing, bool)[codes]) if any(needing) else np.array([], np.int64)
        for at in np.setdiff1d(rows, given.at if given is not None else []):
            allowed = f"{models[int(codes[at])]} needs an image, the first frame of the clip"
            action = "name its path or URL in the column image, or name another model"
            yield Problem(row=first_row + int(at), column="image", allowed=allowed, action=action)

    def _refused(self, settings: Settings, code: int, row: _Row) -> Problem | None:
        model = settings.columns["model"][code].as_py()
        family = self.limits.family(model)
        if family is None or family.check_mask is not None:
            return None
        takers = self.limits.take_references
        allowed = f"{model} takes no {row.column}" + (f" ({', '.join(takers)} do)" if takers else "")
        action = "leave the column empty, or name another model"
        return Problem(column=row.column, value=shown(row.names[0]), allowed=allowed, action=action)

    def _misfit(
        self, row: _Row, facts: Sequence[SeenReference | str], settings: Settings, code: int, loops: int
    ) -> Problem | None:
        family = self.limits.family(settings.columns["model"][code].as_py())
        if family is None or family.check_mask is None or settings.broken[code]:
            return None
        frames = [fact.num_frames for fact in facts if not isinstance(fact, str)]
        url = cut(row.urls[0], SHOWN_URL_CHARS)
        if row.column == "image" and frames[0] != 1:
            allowed = f"it is a video of {frames[0]} frames, and the column image names a picture"
            return Problem(column=row.column, value=url, allowed=allowed, action="name a picture, or use references")
        num_frames = int(settings.columns["num_frames"][code].as_py())
        try:
            family.check_mask(row.strategy or DEFAULT_STRATEGY, frames, num_frames, loops)
        except ValueError as error:
            if row.strategy is None:
                return Problem(column=row.column, value=url, allowed=str(error))
            return Problem(column="mask_strategy", value=shown(row.strategy), allowed=str(error))
        return None


def _unusable(row: _Row, facts: Sequence[SeenReference | str]) -> Problem | None:
    for url, fact in zip(row.urls, facts, strict=False):
        if isinstance(fact, str):
            # Most of these sentences end with what to do.
            told, _, action = fact.rpartition("; ")
            return Problem(
                column=row.column,
                value=cut(url, SHOWN_URL_CHARS),
                allowed=told or fact,
                action=action if told else "check path and access",
            )
    return None
