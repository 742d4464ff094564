"""Whether the libraries that models need are here: said before anything is started, not by every clip of every job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec

from cluster.devices import torch_without_gpus
from pab.families import FAMILIES
from pab.text.token_count import SPIECE_LIBRARIES, tokenizer_file
from pipeline.exits import UsageError
from pipeline.run.options import Chosen

MODELS = "pip install 'pab-pipeline[models]'"
_INSTALLED_AS = {"bs4": "beautifulsoup4", "google.protobuf": "protobuf"}
"""Of what is imported by another name than it is installed by."""


def installed_as(library: str) -> str:
    """Returns the name by which a library is installed."""
    return _INSTALLED_AS.get(library, library)


def listed(libraries: Sequence[str]) -> str:
    """Returns them in words: a, b and c."""
    *first, last = libraries
    return f"{', '.join(first)} and {last}" if first else last


def absent(libraries: Iterable[str]) -> list[str]:
    """Returns those that this Python has not, by the names that install them. They are not imported."""
    return [installed_as(each) for each in libraries if not _is_here(each)]


def missing_libraries(weights: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Returns by family what it imports and this Python has not, by the names that install it.

    `weights`: by family where they are; the tokenizer in a local folder says what reads it. None: as published.
    """
    found = {name: absent(_needed(name, where)) for name, where in weights.items() if name in FAMILIES}
    return {name: libraries for name, libraries in found.items() if libraries}


def check_libraries(weights: Mapping[str, str | None], *, here: bool) -> list[str]:
    """Raises UsageError if a job on this machine would find a library missing. `here`: whether jobs run on this machine.

    For jobs elsewhere returns warnings: nodes may have what a login node lacks. `weights`: as for `missing_libraries`.
    """
    told = [
        f"{name} needs {listed(libraries)}, which this Python does not have: {MODELS}"
        for name, libraries in missing_libraries(weights).items()
    ]
    if told and here:
        raise UsageError("; ".join(told))
    return [f"{each}, unless the jobs' Python has it" for each in told]


def check_torch(device: str, asked: Chosen, *, here: bool, gpu_here: bool) -> list[str]:
    """Raises UsageError if a job on this machine would find that its torch is built for no GPU, and is to use one.

    For jobs elsewhere, and where "auto" leaves this machine's GPU unused, returns warnings. `device`: what the jobs use;
    `asked`: what the user said. `here`: whether jobs run on this machine; `gpu_here`: whether it has a GPU.
    """
    version = torch_without_gpus()
    if version is None:
        return []
    mend = "it is built without CUDA; install one that is built with it, or say --device cpu"
    if device == "cuda" and here:
        raise UsageError(f"torch {version} finds no GPU here: {mend}")
    if device == "cuda":
        return [
            f"torch {version} of this Python is built without CUDA, and jobs are to use GPUs, unless theirs is another"
        ]
    if asked.value == "auto" and gpu_here:
        return [f"torch {version} cannot use the GPU of this machine, clips are rendered on the CPU: {mend}"]
    return []


def _needed(name: str, weights: str | None) -> tuple[str, ...]:
    libraries, file = FAMILIES[name].libraries, tokenizer_file(weights)
    if file is None:
        return libraries
    others = tuple(each for each in libraries if each not in SPIECE_LIBRARIES)
    return others if file.suffix == ".json" else (*others, *SPIECE_LIBRARIES)


def _is_here(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ModuleNotFoundError:  # what a part is of is not there
        return False
