"""Which files a source means: a file, a folder, a pattern with `*`, standard input; and what Hive folders say."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote

import fsspec

from manifests.errors import ManifestError, Problem
from manifests.sources.streams import PACKED

STDIN = "-"
ENDINGS: Mapping[str, str] = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
"""What a file name's ending says of its form. Files of a folder with another ending are not taken."""

_MAGIC = "*?["
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a source. `name`: what messages call it, where there are several. `partitions`: columns of its folders."""

    url: str
    name: str
    partitions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def ending(self) -> str:
        """The ending of its name in small letters, without that of a packed file: `.csv` of `a.CSV.gz`."""
        path = PurePosixPath(self.name)
        return (PurePosixPath(path.stem) if path.suffix.lower() in PACKED else path).suffix.lower()


@contextmanager
def source_files(sources: Sequence[str], stdin: BinaryIO | None = None) -> Iterator[tuple[SourceFile, ...]]:
    """Yields the files that sources mean, in the order of their names within each source.

    `-` is standard input (`stdin`), kept in a temporary file meanwhile, since sources are read more than once.
    Raises ManifestError for a source that means no file.
    """
    with tempfile.TemporaryDirectory(prefix="pab-pipeline-") as folder:
        found: list[SourceFile] = []
        for source in sources:
            if source == STDIN:
                found.append(_kept_stdin(stdin, Path(folder) / f"{len(found)}"))
            else:
                found += _files(source)
        yield tuple(found)


def source_name(sources: Sequence[str]) -> str:
    """Returns what messages call the sources together."""
    first = "standard input" if sources[0] == STDIN else sources[0]
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1} more"


def source_place(sources: Sequence[str]) -> str:
    """Returns a path beside which relative references lie, and after which a run is called: `set/set` for a folder `set`."""
    first = sources[0]
    if first == STDIN:
        return "stdin"
    if is_pattern(first):
        root = first[: min(first.find(letter) for letter in _MAGIC if letter in first)].rpartition("/")[0]
        return f"{root}/{PurePosixPath(root).name}" if root else "prompts"
    if is_folder(first):
        return f"{first.rstrip('/')}/{PurePosixPath(Path(first).expanduser().resolve()).name}"
    ending = PurePosixPath(first).suffix
    return first.removesuffix(ending) if ending.lower() in PACKED else first


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern; a file may be called `a[1].csv`, so what is there is none."""
    return any(letter in source for letter in _MAGIC) and not Path(source).expanduser().exists()


def is_folder(source: str) -> bool:
    """Whether a source is a folder of this machine."""
    return "://" not in source and Path(source).expanduser().is_dir()


def _kept_stdin(stdin: BinaryIO | None, path: Path) -> SourceFile:
    if stdin is None:
        raise ManifestError("standard input", [Problem(allowed="there is none here", action="name a file")])
    with path.open("wb") as kept:
        shutil.copyfileobj(stdin, kept)
    return SourceFile(url=str(path), name="standard input")


def _files(source: str) -> list[SourceFile]:
    try:
        file_system, path = fsspec.url_to_fs(source)
        # A file may be called `a[1].csv`: what exists is no pattern. Web servers have no folders.
        plain = source.startswith(("http://", "https://")) or file_system.isfile(path)
        if plain:
            return [SourceFile(url=source, name=source)]
        if any(letter in source for letter in _MAGIC):
            root = path[: min(path.find(letter) for letter in _MAGIC if letter in path)].rpartition("/")[0]
            paths = [each for each in sorted(file_system.glob(path)) if file_system.isfile(each)]
            if not paths:
                raise ManifestError(source, [Problem(allowed="no file has such a name", action="check the pattern")])
        elif file_system.isdir(path):
            root, paths = path, [each for each in sorted(file_system.find(path)) if _is_taken(each, path)]
            if not paths:
                endings = ", ".join(sorted(ENDINGS))
                allowed = f"the folder has no file that ends in {endings} (or {', '.join(sorted(PACKED))} after it)"
                raise ManifestError(
                    source, [Problem(allowed=allowed, action="name the files, or a pattern such as 'DIR/*'")]
                )
        else:
            return [SourceFile(url=source, name=source)]  # opening it says what is wrong
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ManifestError(
            source, [Problem(allowed=f"it cannot be read ({first})", action="check URL and access")]
        ) from error
    named = [(file_system.unstrip_protocol(each), _below(each, root)) for each in paths]
    return [SourceFile(url=url, name=name, partitions=_partitions(name)) for url, name in named]


def _below(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") if root and path.startswith(root) else path


def _is_taken(path: str, root: str) -> bool:
    """Whether a file of a folder holds rows: its ending says so, and neither it nor a folder above is hidden or a note."""
    parts = PurePosixPath(_below(path, root)).parts
    hidden = any(part.startswith((".", "_")) and "=" not in part for part in parts)
    return not hidden and SourceFile(url=path, name=path).ending in ENDINGS


def _partitions(path: str) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in PurePosixPath(path).parts[:-1] if "=" in part)
    return {unquote(name): None if value == _NO_VALUE else unquote(value) for name, _, value in pairs if name}
