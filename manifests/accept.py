"""Accepting a manifest: one streaming pass that checks every row, fills in the defaults and writes what is rendered."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.ahead import BatchWriter, read_ahead
from manifests.alikes import LOOKED_AT, column_warnings, likely_prompts
from manifests.cleaning import CleaningCheck
from manifests.digest import as_lines, clip_heads, content_hashes, default_seeds, hex_strings
from manifests.errors import ManifestError, Problem, ProblemLog, shown
from manifests.limits import SIZE_COLUMNS, Limits, Settings
from manifests.loops import check_loops
from manifests.read import ManifestFile, open_manifest
from manifests.references import ReadReferences, ReferenceCheck, SeenReference
from manifests.rows import Rows, clip_ids, read_rows
from manifests.rules import FamilyRules
from manifests.schema import accepted_schema, check_schema, extra_fields
from manifests.text_check import TextCheck
from manifests.unique import Repetitions, Words, duplicates, repeated, string_hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedManifest:
    """What is known of a manifest without any problem.

    `digest` names the rows in their order: SHA-256 in hex over the SHA-256 of their digests (8 bytes each) and the SHA-256
    of their clip ids (a line each). `warnings`: sentences for the user. `text_losses`: in how many rows the prompt is cut,
    emptied or shortened by cleaning, has unknown words, or the negative prompt has no effect.
    """

    num_rows: int
    digest: str
    warnings: tuple[str, ...]
    text_losses: Mapping[str, int] = field(default_factory=dict)


def accept(
    url: str,
    rules: Mapping[str, FamilyRules],
    *,
    default_model: str,
    sink: BinaryIO | str | os.PathLike[str],
    errors_path: str | os.PathLike[str] | None = None,
    read_references: ReadReferences | None = None,
    name: str | None = None,
    place: str | None = None,
) -> AcceptedManifest:
    """Validates the manifest at `url` and writes its accepted rows as Parquet to `sink`.

    `rules`: the families of the run by name; `default_model` is for rows without one. `sink`: a local path, where a
    file appears only after success, or an open binary file, whose content is to be thrown away after an error. Rows
    keep their order and have the columns of `accepted_schema`. `errors_path`: where all problems are
    listed as JSON lines if there are any, by default `<name of the manifest>.errors.jsonl` in the current folder.
    `read_references`: how references are read, by their URLs; without it rows may name none. `name`: what messages call the
    manifest; `place`: what relative references lie beside, both `url` by default. Raises ManifestError with every
    problem, ValueError if the rules do not hold together.
    """
    limits = Limits(rules, default_model)
    references = ReferenceCheck(manifest=place or url, limits=limits, read=read_references or _unread)
    with (
        _checked(url, name) as manifest,
        _log(name or url, errors_path) as log,
        _opened(sink) as stream,
        BatchWriter(stream, accepted_schema(manifest.schema, sampling=limits.say_sampling)) as writer,
    ):
        return _pass(manifest, references, log, writer)


def validate(
    url: str,
    rules: Mapping[str, FamilyRules],
    *,
    default_model: str,
    errors_path: str | os.PathLike[str] | None = None,
    read_references: ReadReferences | None = None,
    name: str | None = None,
    place: str | None = None,
) -> AcceptedManifest:
    """Does what `accept` does and writes no rows. Same values, same errors."""
    limits = Limits(rules, default_model)
    references = ReferenceCheck(manifest=place or url, limits=limits, read=read_references or _unread)
    with _checked(url, name) as manifest, _log(name or url, errors_path) as log:
        return _pass(manifest, references, log, None)


def _unread(urls: Sequence[str]) -> Mapping[str, SeenReference | str]:
    return dict.fromkeys(urls, "references are not read here")


@contextlib.contextmanager
def _checked(url: str, name: str | None) -> Iterator[ManifestFile]:
    with open_manifest(url, name=name) as manifest:
        likely = None if "prompt" in manifest.schema.names else likely_prompts(_first_rows(manifest))
        problems = check_schema(manifest.schema, likely)
        if not problems and manifest.num_rows == 0:
            problems = [Problem(allowed="the manifest has no rows", action="add at least one prompt")]
        if problems:
            raise ManifestError(name or url, problems)
        yield manifest


def _first_rows(manifest: ManifestFile) -> list[dict[str, object]]:
    texts = [
        field.name
        for field in manifest.schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    batch = next(manifest.iter_batches(texts, batch_rows=LOOKED_AT), None) if texts else None
    return [] if batch is None else batch.to_pylist()


def _log(url: str, errors_path: str | os.PathLike[str] | None) -> ProblemLog:
    return ProblemLog(url, Path(f"{PurePosixPath(url).name}.errors.jsonl" if errors_path is None else errors_path))


@contextlib.contextmanager
def _opened(sink: BinaryIO | str | os.PathLike[str]) -> Iterator[BinaryIO]:
    if not isinstance(sink, str | os.PathLike):
        yield sink
        return
    path = Path(sink)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pass(
    manifest: ManifestFile, references: ReferenceCheck, log: ProblemLog, writer: BatchWriter | None
) -> AcceptedManifest:
    limits = references.limits
    repetitions, contents, names = Repetitions(), hashlib.sha256(), hashlib.sha256()
    seen: list[Words] = []
    cleaning, texts = CleaningCheck(limits), TextCheck(limits)
    schema = accepted_schema(manifest.schema, sampling=limits.say_sampling)
    # Closed before the file is, whatever happens: a thread reads ahead.
    with contextlib.closing(_rows(manifest, limits)) as checked:
        for rows, batch in checked:
            settings, findings = limits.check(rows.settings())
            cleaning.look(rows.columns["prompt"], settings.columns["model"], rows.codes, rows.first_row)
            loops = check_loops(rows.loops, settings, rows.codes, limits=limits, first_row=rows.first_row)
            given = None
            if rows.references is not None:
                given = references.check(
                    rows.references, settings, rows.codes, loops=loops.of_rows(), first_row=rows.first_row
                )
            problems = [
                *rows.problems, *rows.of_findings(findings), *loops.problems, *(given.problems if given else ())
            ]  # fmt: skip
            told = {problem.row for problem in problems}
            absent = references.missing(rows.references, settings, rows.codes, first_row=rows.first_row)
            problems += [problem for problem in absent if problem.row not in told]
            log.extend(sorted(problems, key=lambda problem: problem.row or 0))
            ids = clip_ids(rows, repetitions)
            if "clip_id" in batch.schema.names:  # generated ids are distinct among themselves
                seen.append(string_hashes(pc.ascii_lower(ids)))
            seeds = _seeds(rows, ids)
            negatives = limits.negative_prompts(
                rows.columns["negative_prompt"], settings.columns["model"].take(pa.array(rows.codes))
            )
            texts.look(
                rows.columns["prompt"],
                negatives,
                settings.columns["model"],
                settings.columns["guidance_scale"],
                rows.codes,
                rows.first_row,
            )
            hashes = _digests(rows, settings, seeds, negatives)
            loops.add_to_digests(hashes)
            if given is not None:
                given.add_to_digests(hashes)
            contents.update(hashes.tobytes())
            names.update(as_lines(ids))
            if writer is not None and not log:
                made = {"clip_id": ids, "seed": seeds, "digest": hex_strings(hashes), **loops.columns(len(rows))}
                made |= given.columns(len(rows)) if given is not None else {}
                made["negative_prompt"] = negatives
                writer.write(_accepted(rows, settings, made, batch, schema))
    if seen and len(suspects := repeated(np.concatenate(seen))):
        log.extend(_duplicates(manifest, limits, suspects))
    log.raise_if_any()
    return AcceptedManifest(
        num_rows=manifest.num_rows,
        digest=hashlib.sha256(contents.digest() + names.digest()).hexdigest(),
        warnings=(
            *column_warnings(manifest.schema),
            *cleaning.warnings(),
            *texts.warnings(),
        ),
        text_losses={name: count for name, count in (texts.counts() | cleaning.counts()).items() if count},
    )


def _rows(manifest: ManifestFile, limits: Limits) -> Generator[tuple[Rows, pa.RecordBatch], None, None]:
    first_row = 0
    for batch in read_ahead(manifest.iter_batches()):
        yield read_rows(batch, first_row, limits), batch
        first_row += len(batch)


def _seeds(rows: Rows, ids: pa.Array) -> pa.Array:
    given = rows.columns["seed"]
    if given.null_count == 0:
        return given
    missing = given.is_null()
    return pc.replace_with_mask(given, missing, default_seeds(ids.filter(missing)))


def _digests(rows: Rows, settings: Settings, seeds: pa.Array, negatives: pa.Array) -> npt.NDArray[np.uint8]:
    sizes = [settings.columns[name] for name in SIZE_COLUMNS]
    names = [settings.columns["model"], settings.identity, settings.broadcast_digest]
    heads = clip_heads(names, sizes, settings.columns["guidance_scale"]).take(pa.array(rows.codes))
    return content_hashes(heads, seeds, negatives, rows.columns["prompt"])


def _accepted(
    rows: Rows, settings: Settings, made: Mapping[str, pa.Array], batch: pa.RecordBatch, schema: pa.Schema
) -> pa.RecordBatch:
    codes = pa.array(rows.codes)
    kept = {field.name: batch.column(field.name) for field in extra_fields(batch.schema)}
    kept["prompt"] = rows.columns["prompt"]
    kept |= {name: column.take(codes) for name, column in settings.columns.items()}
    kept |= made
    return pa.RecordBatch.from_arrays([kept[name] for name in schema.names], schema=schema)


def _duplicates(manifest: ManifestFile, limits: Limits, suspects: Words) -> Iterator[Problem]:
    repetitions = Repetitions()
    ids = ((clip_ids(rows, repetitions), rows.first_row) for rows, _ in _rows(manifest, limits))
    for row, clip_id, first in duplicates(ids, suspects):
        allowed = f"row {first} has the same one, or one that differs by case alone, and clip ids must be unique"
        yield Problem(row=row, column="clip_id", value=shown(clip_id), allowed=allowed)
