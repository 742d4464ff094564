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
    batch: pa.RecordBatch, strategies: pa.Array, first_row: int
) -> tuple[RowReferences, list[Problem]]:
    """Reads the reference columns of a batch. `strategies`: its mask strategies as strings."""
    absent = pa.nulls(len(batch), pa.string())
    column = batch.column("references") if "references" in batch.schema.names else absent
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    problems = [*_too_many(column, first_row), *_too_long(strategies, first_row)]
    left_out = {problem.row for problem in problems}
    named = [int(at) for at in np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))]
    names = {
        at: found for at in named if first_row + at not in left_out and (found := split_references(column[at].as_py()))
    }
    stated = [int(at) for at in np.flatnonzero(strategies.is_valid().to_numpy(zero_copy_only=False))]
    texts = {at: text for at in stated if first_row + at not in left_out and (text := strategies[at].as_py().strip())}
    problems += [
        Problem(row=first_row + at, column="mask_strategy", value=shown(texts[at]), allowed=_NO_REFERENCES)
        for at in sorted(texts.keys() - names.keys())
    ]
    at = sorted(names)
    return RowReferences(
        at=np.array(at, np.int64),
        names=tuple(names[i] for i in at),
        strategies=tuple(texts.get(i) for i in at),
    ), problems


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


def _too_long(strategies: pa.Array, first_row: int) -> Iterator[Problem]:
    lengths = pc.binary_length(strategies)
    long = pc.fill_null(pc.greater(lengths, MAX_STRATEGY_BYTES), fill_value=False)
    for at in np.flatnonzero(long.to_numpy(zero_copy_only=False)):
        allowed = f"{lengths[int(at)].as_py():,} bytes, at most {MAX_STRATEGY_BYTES:,} are read"
        yield Problem(row=first_row + int(at), column="mask_strategy", allowed=allowed)


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
        urls = {at: tuple(resolved(name, self.manifest) for name in names) for at, names in _pairs(given)}
        refused = {at: self._refused(settings, int(codes[at]), names) for at, names in _pairs(given)}
        wanted = [url for at, found in urls.items() if refused[at] is None for url in found]
        seen = self.read(list(dict.fromkeys(wanted)))
        problems: list[Problem] = []
        kept: list[tuple[int, tuple[str, ...], tuple[str, ...], str]] = []
        for at, strategy in zip(urls, given.strategies, strict=True):
            text = strategy or DEFAULT_STRATEGY
            facts = [seen[url] for url in urls[at]] if refused[at] is None else []
            count = loops[at][0] if at in loops else 1
            problem = (
                refused[at]
                or self._unusable(urls[at], facts)
                or self._misfit(text, facts, settings, int(codes[at]), count)
            )
            if problem is not None:
                problems.append(problem.of_row(first_row + at))
            else:
                kept.append((at, urls[at], tuple(f.sha256 for f in facts if not isinstance(f, str)), text))
        return CheckedReferences(
            at=tuple(row[0] for row in kept),
            urls=tuple(row[1] for row in kept),
            digests=tuple(row[2] for row in kept),
            strategies=tuple(row[3] for row in kept),
            problems=tuple(problems),
        )

    def _refused(self, settings: Settings, code: int, names: tuple[str, ...]) -> Problem | None:
        model = settings.columns["model"][code].as_py()
        family = self.limits.family(model)
        if family is None or family.check_mask is not None:
            return None
        takers = self.limits.take_references
        allowed = f"{model} takes no references" + (f" ({', '.join(takers)} do)" if takers else "")
        action = "leave the column empty, or name another model"
        return Problem(column="references", value=shown(names[0]), allowed=allowed, action=action)

    @staticmethod
    def _unusable(urls: Sequence[str], facts: Sequence[SeenReference | str]) -> Problem | None:
        for url, fact in zip(urls, facts, strict=False):
            if isinstance(fact, str):
                # Most of these sentences end with what to do.
                told, _, action = fact.rpartition("; ")
                return Problem(
                    column="references",
                    value=cut(url, SHOWN_URL_CHARS),
                    allowed=told or fact,
                    action=action if told else "check path and access",
                )
        return None

    def _misfit(
        self, strategy: str, facts: Sequence[SeenReference | str], settings: Settings, code: int, loops: int
    ) -> Problem | None:
        family = self.limits.family(settings.columns["model"][code].as_py())
        if family is None or family.check_mask is None or settings.broken[code]:
            return None
        frames = [fact.num_frames for fact in facts if not isinstance(fact, str)]
        try:
            family.check_mask(strategy, frames, int(settings.columns["num_frames"][code].as_py()), loops)
        except ValueError as error:
            return Problem(column="mask_strategy", value=shown(strategy), allowed=str(error))
        return None


def _pairs(given: RowReferences) -> Iterator[tuple[int, tuple[str, ...]]]:
    return zip((int(at) for at in given.at), given.names, strict=True)
