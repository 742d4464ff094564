"""From what the user names to one Parquet manifest: the file itself, or one that is built of it for a while."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from manifests.build import BuiltManifest, build
from manifests.shaping import Shaping, read_settings, read_sweeps
from manifests.sources.files import STDIN, source_name, source_place
from manifests.sources.form import is_parquet
from manifests.sources.options import SourceOptions
from pab.families import FAMILIES
from pipeline.exits import UsageError
from pipeline.run.source_flags import CLIP_FLAGS
from pipeline.screen import Screen, counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestSource:
    """A manifest to be accepted. `url`: where it is read; `name`: what messages and run.json call it.

    `place`: a path in the folder that relative references start at, whose name outputs get by default. `built`: what was
    made of the user's files, None for a Parquet file that is read as it is.
    """

    url: str
    name: str
    place: str
    errors_path: Path
    built: BuiltManifest | None = None

    def untold(self, warnings: Sequence[str]) -> list[str]:
        """Returns the warnings that were not told when the manifest was built."""
        return [warning for warning in warnings if self.built is None or warning not in self.built.warnings]


def read_shaping(arguments: argparse.Namespace) -> Shaping:
    """Returns what the flags add to rows. Raises UsageError."""
    given = vars(arguments)
    names = (*CLIP_FLAGS, "negative_prompt", "model", "broadcast")
    try:
        return Shaping(
            defaults={name: given[f"clip_{name}"] for name in names if given.get(f"clip_{name}") is not None},
            constants=read_settings(arguments.clip_constants or ()),
            sweeps=read_sweeps(arguments.clip_sweeps or ()),
            seeds=arguments.seeds,
            limit=arguments.limit,
            sample=arguments.sample,
            sample_seed=arguments.sample_seed,
            template=arguments.prompt_template,
            aesthetic_score=arguments.aesthetic_score,
            motion_score=arguments.motion_score,
            camera_motion=arguments.camera_motion,
        )
    except ValueError as error:
        raise UsageError(f"{error} (given by flags)") from error


def read_source_options(arguments: argparse.Namespace) -> SourceOptions:
    """Returns how the flags say that sources are read. Raises UsageError."""
    try:
        columns = read_settings(arguments.source_columns or ())
        prompts = arguments.prompt_column
        if prompts is not None and columns.setdefault("prompt", prompts) != prompts:
            raise ValueError(f"--prompt-column {prompts} and --column prompt={columns['prompt']} differ")
        return SourceOptions(
            format=arguments.source_format,
            encoding=arguments.encoding,
            delimiter=arguments.delimiter,
            records=arguments.records,
            columns=columns,
            map_alikes=arguments.map_alikes,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def build_manifest(
    arguments: argparse.Namespace, sources: list[str], destination: Path, *, model: str | None, overwrite: bool = False
) -> BuiltManifest:
    """Makes the manifest `destination` as the flags say. `model`: of rows that name none. Raises what `build` does."""
    return build(
        sources,
        destination,
        options=read_source_options(arguments),
        shaping=read_shaping(arguments),
        errors_path=errors_path(sources, arguments.errors),
        overwrite=overwrite,
        frames_of=lambda own, seconds, fps: frames_of(own or model, seconds, fps),
        stdin=sys.stdin.buffer if STDIN in sources else None,
    )


@contextmanager
def opened_source(
    arguments: argparse.Namespace, sources: list[str], screen: Screen, *, model: str
) -> Iterator[ManifestSource]:
    """Yields the manifest that sources are; what had to be built goes at the end. Says how they were read on `screen`.

    Raises ManifestError and UsageError.
    """
    name, place = source_name(sources), source_place(sources)
    log = errors_path(sources, arguments.errors)
    plain = read_shaping(arguments) == Shaping() and read_source_options(arguments) == SourceOptions()
    if plain and len(sources) == 1 and is_parquet(sources[0]):
        yield ManifestSource(url=sources[0], name=name, place=place, errors_path=log)
        return
    with tempfile.TemporaryDirectory(prefix="pab-pipeline-") as folder:
        path = Path(folder) / "source.parquet"
        built = build_manifest(arguments, sources, path, model=model)
        for warning in built.warnings:
            screen.note(f"warning: {warning}")
        if built.num_rows != built.num_source_rows or built.num_files > 1:
            screen.note(f"{name}: {told_rows(built)}")
        yield ManifestSource(url=str(path), name=f"{name} as a manifest", place=place, errors_path=log, built=built)


def told_rows(built: BuiltManifest) -> str:
    """Says how many clips were made of how much."""
    files = f" in {counted(built.num_files, 'file')}" if built.num_files > 1 else ""
    if built.num_rows == built.num_source_rows:
        return f"{counted(built.num_rows, 'clip')}{files}"
    return f"{counted(built.num_rows, 'clip')} of {counted(built.num_source_rows, 'row')}{files}"


def frames_of(model: str | None, seconds: float, fps: float | None) -> int:
    """Returns the number of frames nearest to so many seconds that a family renders. Raises ValueError."""
    family = FAMILIES.get(model or "")
    if family is None:
        raise ValueError(f"how many frames that is depends on the model; say it with --model ({', '.join(FAMILIES)})")
    wanted = seconds * (fps or family.defaults.fps)
    return min(family.limits.num_frames, key=lambda frames: (abs(frames - wanted), frames))


def errors_path(sources: list[str], asked: Path | None = None) -> Path:
    """Returns where every problem is listed: where the user says, else in the current folder."""
    return asked or Path(f"{PurePosixPath(source_place(sources)).stem}.errors.jsonl")
