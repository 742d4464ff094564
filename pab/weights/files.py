"""Which files of a local checkpoint loading reads, each looked at before anything is rendered. No torch here.

`submit` names the weights by these files and no others, so a README, another variant of the weights or a cache changes
nothing, and a file that changes the clips is never left out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
CONFIG, SCHEDULER_CONFIG, PROCESSOR_CONFIG = "config.json", "scheduler_config.json", "preprocessor_config.json"
TOKENIZER_NAMES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What tokenizers of the transformers library read of a folder, if it is there."""
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "random_states")
_VARIANT = ".fp16."
_LFS_POINTER = b"version https://git-lfs"
_HEADER = struct.Struct("<Q")
_LISTED = 12


class CheckpointError(ValueError):
    """Weights are absent, unreadable, or not those of the model; the message names files and keys."""


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that together hold a component's weights: the shards an index names, or the one file there.

    safetensors come before pickled formats, whole precision before `fp16` variants. Raises CheckpointError when nothing
    is found, when shards are missing, or when it is not clear which of several files is meant.
    """
    if folder.is_file():
        return [folder]
    if (index := weight_index(folder)) is not None:
        named = _shards(index)
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{index} names {listed(missing)}, which are not there; download them")
        return [folder / name for name in named]
    for suffix in SUFFIXES:
        files = [
            path
            for path in sorted(folder.glob(f"*{suffix}"))
            if _VARIANT not in path.name and not path.name.startswith(_NOT_WEIGHTS)
        ]
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} holds {listed([path.name for path in files])} and no index; keep the one that is meant"
            )
        if files:
            return files
    variants = [path.name for suffix in SUFFIXES for path in sorted(folder.glob(f"*{_VARIANT}*{suffix[1:]}"))]
    if variants or any(folder.glob(f"*{_VARIANT}index.json")):
        raise CheckpointError(
            f"{folder} holds the fp16 variant alone ({listed(variants or ['its index'])}), which is not read; download the "
            "weights of whole precision"
        )
    needed = f"needs one of *{', *'.join(SUFFIXES)}, or shards with an index"
    raise CheckpointError(f"{folder} holds no weights; {needed}; {lies_in(folder)}")


def weight_index(folder: Path) -> Path | None:
    """Returns the file that names a component's shards; None where weights are in one piece."""
    found = [path for path in folder.glob("*.index.json") if _VARIANT not in path.name]
    return min(found, key=lambda path: (".safetensors." not in path.name, path.name), default=None)


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} names no shards ({error!r}); download it again") from error


def loaded_files(root: Path, components: Iterable[str]) -> list[Path]:
    """Returns the files that loading reads of a checkpoint with these subfolders, sorted.

    Where no tokenizer is among them, it lies in `tokenizer/` or beside the text encoder. Raises CheckpointError for a file
    that is missing, empty, cut short or a pointer of git-lfs, and says what to do.
    """
    names = list(components)
    files: set[Path] = set()
    for name in names:
        folder = root / name
        if name.startswith("tokenizer"):
            files |= _tokenizer_files(folder)
        elif name == "scheduler":
            files.add(_present(folder / SCHEDULER_CONFIG))
        elif name == "image_processor":
            files.add(_present(folder / PROCESSOR_CONFIG))
        else:
            files |= _module_files(folder)
    if "text_encoder" in names and "tokenizer" not in names:
        own = root / "tokenizer"
        files |= _tokenizer_files(own if own.is_dir() else root / "text_encoder")
    for file in files:
        check_whole(file)
    return sorted(files)


def _module_files(folder: Path) -> set[Path]:
    index = weight_index(folder)
    return {_present(folder / CONFIG), *weight_files(folder), *([] if index is None else [index])}


def _tokenizer_files(folder: Path) -> set[Path]:
    found = {folder / name for name in TOKENIZER_NAMES if (folder / name).is_file()}
    if not found:
        raise CheckpointError(
            f"{folder} holds no tokenizer; needs spiece.model, tokenizer.json, or vocab.json with merges.txt; download it; "
            f"{lies_in(folder)}"
        )
    return found


def _present(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(
            f"{file} does not exist; it must lie beside the weights, download it; {lies_in(file.parent)}"
        )
    return file


def check_whole(file: Path) -> None:
    """Raises CheckpointError for a file that a download left empty or cut short, or of which only a pointer was fetched."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
            if not start:
                raise CheckpointError(f"{file} is empty; download it again")
            if start == _LFS_POINTER:
                raise CheckpointError(f"{file} is a pointer of git-lfs, not the file itself; run `git lfs pull` there")
            if file.suffix == ".safetensors":
                stream.seek(0)
                needed = _safetensors_size(stream.read(_HEADER.size), stream.read, size)
                if needed != size:
                    raise CheckpointError(
                        f"{file} has {size:,} bytes, its header says {needed:,}; the download was cut short, repeat it"
                    )
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error


def _safetensors_size(length: bytes, read: Callable[[int], bytes], size: int) -> int:
    """Returns how many bytes a safetensors file has by its header; 0 for one that is not readable."""
    header_size = _HEADER.unpack(length)[0] if len(length) == _HEADER.size else size
    if header_size >= size:
        return 0
    try:
        entries = json.loads(read(header_size))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return 0
    return _HEADER.size + header_size + max(ends, default=0)


def lies_in(folder: Path) -> str:
    """Says what a folder holds, for a message about what it does not hold."""
    try:
        names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    except OSError:
        return f"{folder.name}/ is not there"
    return f"in {folder.name}/ lie {listed(names)}" if names else f"{folder.name}/ is empty"


def listed(names: Sequence[str]) -> str:
    """Returns names in a row, and how many more there are where they are many."""
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
