"""LoRA files: what a user says of one, where it lies, and how a clip's digest names it. No torch here.

A LoRA is a small safetensors file whose tensors are added to a transformer's weights. It lies on this machine or on the
Hugging Face hub, where it is named `organisation/name/file.safetensors`, with `@revision` behind it if needed.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from pab.weights.checkpoint import CheckpointError, Published, find_checkpoint, hub_errors, pin
from pab.weights.files import check_whole, listed, weight_files

SUFFIX = ".safetensors"
FORM = "FILE_OR_HUB[:STRENGTH][:COMPONENT]"
_TEXT = re.compile(r"(?P<place>.+?)(?::(?P<strength>[-+]?(?:\d+\.?\d*|\.\d+)))?(?::(?P<component>[A-Za-z_]\w*))?")
_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """One LoRA. `place`: a local file, or `organisation/name/file.safetensors@commit` on the hub.

    `strength` multiplies what is added. `component`: the part of the model that it is added to; empty for the only one.
    `digest`: 16 hex digits over the file (on the hub: its name and commit), strength and component; empty until it is known.
    """

    place: str
    strength: float = 1.0
    component: str = ""
    digest: str = ""

    @property
    def text(self) -> str:
        """What `read_lora` reads this LoRA from again, without its digest."""
        strength = f"{Decimal(repr(self.strength)):f}"
        return f"{self.place}:{strength}{':' if self.component else ''}{self.component}"

    def __str__(self) -> str:
        return f"{self.place}:{self.strength:g}{':' if self.component else ''}{self.component}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRules:
    """What LoRAs may change of a model.

    `components`: its parts that take one. `names`: how a module is called in the model's original repository -> the modules
    of the library whose rows it joins, in their order; `{}` stands for a block's number.
    """

    components: tuple[str, ...] = ("transformer",)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def placed(self, lora: Lora, family: str) -> Lora:
        """Returns a LoRA with its component filled in. Raises CheckpointError for one that the family does not have."""
        allowed = " or ".join(f":{name}" for name in self.components)
        if not lora.component and len(self.components) > 1:
            raise CheckpointError(f"lora {lora}: {family} has two transformers; add {allowed}")
        if lora.component and lora.component not in self.components:
            raise CheckpointError(f"lora {lora}: {family} has no component {lora.component!r}; say {allowed}")
        return replace(lora, component=lora.component or self.components[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What a safetensors file says before its values: shapes by key, and text by key."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_lora(text: str) -> Lora:
    """Reads `FILE_OR_HUB[:STRENGTH][:COMPONENT]`. Raises ValueError, which says what is needed."""
    if Path(text).expanduser().is_file():
        return _checked(Lora(place=text))
    found = _TEXT.fullmatch(text)
    assert found is not None, "any text has a place"
    strength = float(found["strength"] or 1.0)
    if strength == 0:
        raise ValueError(f"a strength of 0 adds nothing; leave the LoRA out, or say {FORM} with another one")
    return _checked(Lora(place=found["place"], strength=strength, component=found["component"] or ""))


def _checked(lora: Lora) -> Lora:
    name = lora.place.partition("@")[0] if not Path(lora.place).expanduser().is_file() else lora.place
    if not name.endswith(SUFFIX) and not _is_repository(name):
        raise ValueError(
            f"{lora.place!r} is neither a {SUFFIX} file nor a hub id; needs {FORM}, such as style{SUFFIX}:0.8 or "
            f"organisation/name/style{SUFFIX}"
        )
    return lora


def _is_repository(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).expanduser().exists()


def pin_lora(lora: Lora) -> Lora:
    """Returns a LoRA that means the same tomorrow: on the hub with file and commit, with its digest.

    Raises CheckpointError for a file that is not there, and where neither the hub nor its cache on this machine knows it.
    """
    path = Path(lora.place).expanduser()
    if path.is_file():
        check_whole(path)
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        return _named(lora, lora.place, content)
    hub_id, file, revision = _hub_place(lora.place)
    try:
        pinned = pin(f"{hub_id}@{revision}", _published(hub_id, file))
    except CheckpointError as error:
        raise CheckpointError(
            f"lora {lora.place!r} is no file on this machine and cannot be looked up on the hub "
            f"({str(error).splitlines()[0]})"
        ) from error
    commit = pinned.rpartition("@")[2]
    place = f"{hub_id}/{file or _only_file(hub_id, commit)}@{commit}"
    return _named(lora, place, place)


def _named(lora: Lora, place: str, content: str) -> Lora:
    named = f"{content}\n{lora.strength!r}\n{lora.component}"
    return replace(lora, place=place, digest=hashlib.sha256(named.encode()).hexdigest()[:16])


def find_lora(lora: Lora) -> Path:
    """Returns the local file of a pinned LoRA, fetched from the hub if it is not there. Raises CheckpointError."""
    path = Path(lora.place).expanduser()
    if path.is_file():
        return path
    hub_id, file, revision = _hub_place(lora.place)
    try:
        path = find_checkpoint(f"{hub_id}@{revision}", _published(hub_id, file)) / file
    except CheckpointError as error:
        raise CheckpointError(f"lora {lora.place!r} cannot be read: {str(error).splitlines()[0]}") from error
    if not path.is_file():
        raise CheckpointError(f"lora {lora.place!r}: {hub_id} has no file {file} at {revision}; look at its name")
    return path


def at_hand(lora: Lora) -> Path | None:
    """Returns the local file of a pinned LoRA if nothing need be fetched for it, else None."""
    path = Path(lora.place).expanduser()
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache

    hub_id, file, revision = _hub_place(lora.place)
    cached = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _hub_place(place: str) -> tuple[str, str, str]:
    """Returns repository, file ("" where none is named) and revision. Raises CheckpointError for what names no repository."""
    name, _, revision = place.partition("@")
    parts = name.split("/")
    if len(parts) < 2 or not all(parts) or parts[0] in {".", "..", "~"}:
        raise CheckpointError(f"lora {place!r} does not exist; needs a {SUFFIX} file or organisation/name/file{SUFFIX}")
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or "main"


def _published(hub_id: str, file: str) -> Published:
    return Published(hub_id=hub_id, revision="main", components={}, files=(file or f"*{SUFFIX}",))


def _only_file(hub_id: str, commit: str) -> str:
    """Returns the one safetensors file of a repository. Raises CheckpointError naming them where there are more, or none."""
    try:
        from huggingface_hub import HfApi

        siblings = HfApi().model_info(hub_id, revision=commit, timeout=20).siblings or []
    except ImportError as error:
        raise CheckpointError(
            f"lora {hub_id!r}: huggingface_hub is not installed; pip install 'pab-pipeline[models]'"
        ) from error
    except hub_errors() as error:
        raise CheckpointError(
            f"lora {hub_id!r}: the hub does not list its files; name one: {hub_id}/FILE{SUFFIX}"
        ) from error
    files = sorted(file.rfilename for file in siblings if file.rfilename.endswith(SUFFIX))
    if len(files) != 1:
        holds = f"holds {listed(files)}" if files else f"holds no {SUFFIX} file"
        raise CheckpointError(f"lora {hub_id!r}: the repository {holds}; name one: {hub_id}/FILE{SUFFIX}")
    return files[0]


def read_header(path: Path) -> SafetensorsHeader:
    """Reads what a safetensors file holds, without its values. Raises CheckpointError for a file that is none."""
    check_whole(path)
    try:
        with path.open("rb") as stream:
            (size,) = _SIZE.unpack(stream.read(_SIZE.size))
            entries = json.loads(stream.read(size))
        metadata = entries.pop("__metadata__", None) or {}
        return SafetensorsHeader(
            shapes={key: tuple(entry["shape"]) for key, entry in entries.items()}, metadata=metadata
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error!r}); download it again") from error


def shapes_in(folder: Path) -> Mapping[str, tuple[int, ...]] | None:
    """Returns the shapes of a component's weights by key; None if they are not in safetensors files, or not here."""
    if not folder.is_dir():
        return None
    files = weight_files(folder)
    if any(file.suffix != SUFFIX for file in files):
        return None
    return {key: shape for file in files for key, shape in read_header(file).shapes.items()}
