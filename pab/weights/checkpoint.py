"""Published checkpoints: where their files are, and loading them whole or not at all.

A checkpoint is a folder with one subfolder per component (`transformer/`, `vae/`, `text_encoder/`, `tokenizer/`), each with a
`config.json` and safetensors or `.bin` files, in one piece or in shards. It lies on this machine or on the Hugging Face
hub, where it is named `organisation/name`, or `organisation/name@revision`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

from pab.weights.digest import files_digest
from pab.weights.files import CheckpointError, lies_in, listed, loaded_files, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "CheckpointError",
    "Published",
    "check_keys",
    "checked_config",
    "checkpoint_digest",
    "dtype_of",
    "find_checkpoint",
    "hub_errors",
    "hub_name",
    "load_module",
    "pin",
    "read_config",
    "read_tensors",
    "weight_files",
]

ModuleT = TypeVar("ModuleT", bound="nn.Module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where a family's weights are published, and what of them is needed.

    `components`: subfolder -> what it holds, for error messages. `files`: hub patterns of the files to fetch, all of the
    components' files when empty.
    """

    hub_id: str
    revision: str
    components: Mapping[str, str]
    files: tuple[str, ...] = ()

    @property
    def layout(self) -> str:
        """The folder to be laid out, one line per component."""
        lines = [f"  {folder + '/' if folder else '':<16} {what}" for folder, what in self.components.items()]
        return "\n".join(lines)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Hub patterns of the files that are needed."""
        return self.files or tuple(f"{folder}/*" if folder else "*" for folder in self.components)


def find_checkpoint(weights: str | None, published: Published) -> Path:
    """Returns the local folder of a checkpoint, fetching it from the hub where `weights` is no local path.

    `weights`: a local folder, a hub id with or without `@revision`, or None for the published one. With HF_HUB_OFFLINE set
    only the hub's cache on this machine is looked at. Raises CheckpointError naming what is missing and where to put
    it.
    """
    folder = None if weights is None else Path(weights).expanduser()
    if folder is None or not folder.is_dir():
        folder = _fetch(*hub_name(weights, published), published)
    missing = [name for name in published.components if name and not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"weights={str(folder)!r} has no {', '.join(name + '/' for name in missing)}; the folder needs\n"
            f"{published.layout}\n({lies_in(folder)})"
        )
    return folder


def hub_name(weights: str | None, published: Published) -> tuple[str, str]:
    """Returns hub id and revision meant by `weights`. Raises CheckpointError for what can be neither folder nor hub id."""
    if weights is None:
        return published.hub_id, published.revision
    name, _, revision = weights.partition("@")
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise CheckpointError(
            f"weights={weights!r} is neither a folder on this machine nor a hub id; give a folder with\n"
            f"{published.layout}\nor a hub id such as {published.hub_id}"
        )
    return name, revision or (published.revision if name == published.hub_id else "main")


def _fetch(hub_id: str, revision: str, published: Published) -> Path:
    advice = (
        f"download {hub_id} at revision {revision} on a machine that reaches the hub, and give its folder as weights:\n"
        f"{published.layout}"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"weights={hub_id!r}: huggingface_hub is not installed; pip install 'pab-pipeline[models]', or {advice}"
        ) from error
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(published.patterns)))
    except hub_errors() as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"weights={hub_id!r} cannot be fetched ({reason}); {advice}") from error


def pin(weights: str | None, published: Published) -> str:
    """Returns weights that mean the same tomorrow: `hub_id@commit`, or the local path as it is given.

    Asks the hub what a branch stands at; where it cannot be reached, the hub's cache on this machine answers. Raises
    CheckpointError where neither knows.
    """
    if weights is not None and Path(weights).expanduser().exists():
        return weights
    hub_id, revision = hub_name(weights, published)
    if _is_commit(revision):
        return f"{hub_id}@{revision}"
    # The cache keeps each commit in a folder of its name.
    return f"{hub_id}@{_commit(hub_id, revision) or _fetch(hub_id, revision, published).name}"


def _commit(hub_id: str, revision: str) -> str | None:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        return None
    try:
        return HfApi().model_info(hub_id, revision=revision, timeout=20).sha
    except hub_errors():
        return None


def hub_errors() -> tuple[type[Exception], ...]:
    """Returns the types of errors by which the hub's client says that it has no answer or no file.

    The client raises errors of its own, OSErrors, ValueErrors for answers that are none, RuntimeErrors of its download
    engine, and errors of its HTTP library. Which library that is differs by release; its base class stands among the
    client's own errors.
    """
    from huggingface_hub import errors

    own = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    library = sys.modules[errors.HTTPError.__module__.partition(".")[0]]
    # In some of these libraries a URL that is none is not one of their HTTP errors.
    return (OSError, ValueError, RuntimeError, *own, getattr(library, "InvalidURL", OSError))


def checkpoint_digest(weights: str | None, published: Published) -> str:
    """Names the weights in a clip's digest: 16 hex digits over the files that loading reads, or over hub id and commit.

    Raises CheckpointError naming a file of a local folder that is missing, empty or cut short.
    """
    pinned = pin(weights, published)
    if not Path(pinned).expanduser().exists():
        return hashlib.sha256(pinned.encode()).hexdigest()[:16]
    root = find_checkpoint(pinned, published)
    return files_digest(loaded_files(root, published.components), root)


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def read_config(folder: Path, name: str = "config.json") -> dict[str, object]:
    """Reads a component's configuration. Raises CheckpointError naming the file."""
    path = folder / name
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); it must lie beside the weights") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, needs a JSON object")
    return values


def checked_config(folder: Path, needed: Mapping[str, object], name: str = "config.json") -> dict[str, object]:
    """Reads a part's configuration. Raises CheckpointError for the first value that is not the family's."""
    config = read_config(folder, name)
    for key, value in needed.items():
        if config.get(key) != value:
            raise CheckpointError(f"{folder / name}: {key}={config.get(key)!r}, this family's model has {value!r}")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads a component's weights from a folder or file, as they are stored. Pickled files are read without code in them."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            part: dict[str, Any] = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
        except UnpicklingError as error:
            raise CheckpointError(f"{file} holds Python objects besides tensors, which are not loaded") from error
        except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
        part = part.get("state_dict", part)
        if not all(isinstance(value, torch.Tensor) for value in part.values()):
            raise CheckpointError(f"{file} holds more than named tensors: {listed(list(part))}; give the plain weights")
        twice = sorted(set(part) & set(tensors))
        if twice:
            raise CheckpointError(f"{file} repeats keys of another shard: {listed(twice)}")
        tensors.update(part)
    return tensors


def _unpickled(file: Path) -> dict[str, Any]:
    """Reads a pickled file through the page cache where its format allows: ranks of one host then hold it once."""
    import zipfile

    import torch

    return torch.load(file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def dtype_of(precision: str) -> torch.dtype:
    """Returns the tensor type of a precision. Raises ValueError naming the precisions there are."""
    import torch

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in types:
        raise ValueError(f"precision={precision!r}, allowed {', '.join(types)}")
    return types[precision]


def check_keys(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], what: str) -> None:
    """Compares keys and shapes. Raises one CheckpointError that lists all missing, surplus and misshaped keys."""
    faults = []
    missing = [key for key in expected if key not in found]
    surplus = [key for key in found if key not in expected]
    misshaped = [
        f"{key} has {list(found[key])}, needs {list(expected[key])}"
        for key in expected
        if key in found and tuple(found[key]) != tuple(expected[key])
    ]
    for name, keys in (("missing", missing), ("surplus", surplus), ("misshaped", misshaped)):
        if keys:
            faults.append(f"  {name} ({len(keys)}): {listed(keys)}")
    if faults:
        raise CheckpointError(
            f"{what}: the weights are not this model's; check config.json and the files\n" + "\n".join(faults)
        )


def load_module(
    build: Callable[[], ModuleT],
    tensors: Mapping[str, Tensor],
    *,
    what: str,
    dtype: torch.dtype,
    device: torch.device | str,
    surplus_ok: Sequence[str] = (),
    float32_parts: Sequence[str] = (),
    changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> ModuleT:
    """Builds a module without memory of its own and gives it the tensors, cast and moved; returns it in eval mode.

    `what` names it in errors. `surplus_ok`: patterns of published keys that the module does without on purpose (buffers it
    computes itself). `float32_parts`: names of submodules and parameters, wherever they stand, that stay in float32.
    Integer tensors keep their type. `changes`: by key, what makes a tensor of the one in the file, on the device, before the
    cast. Raises CheckpointError when keys or shapes differ.
    """
    import torch

    with torch.device("meta"):
        module = build()
    used = {key: value for key, value in tensors.items() if not any(fnmatch(key, pattern) for pattern in surplus_ok)}
    check_keys(
        {key: value.shape for key, value in module.state_dict().items()},
        {key: value.shape for key, value in used.items()},
        what,
    )
    moved: dict[str, Tensor] = {}
    for key, value in used.items():
        changed = changes[key](value.to(device)) if changes and key in changes else value
        moved[key] = changed.to(device=device, dtype=_type_of(key, value, dtype, float32_parts))
    module.load_state_dict(moved, strict=True, assign=True)
    hidden = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not hidden, f"{what}: buffers {hidden} are neither in the file nor computed on demand"
    return module.eval().requires_grad_(requires_grad=False)


def _type_of(key: str, value: Tensor, dtype: torch.dtype, float32_parts: Sequence[str]) -> torch.dtype:
    import torch

    if not value.is_floating_point():
        return value.dtype
    return torch.float32 if any(part in float32_parts for part in key.split(".")) else dtype
