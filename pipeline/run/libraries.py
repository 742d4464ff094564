"""Whether the libraries that models need are here: said before a job is queued, not by every start of every job."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from pab.families import FAMILIES
from pipeline.exits import UsageError

MODELS = "pip install 'pab-pipeline[models]'"


def missing_libraries(models: Iterable[str]) -> dict[str, list[str]]:
    """Returns by family the libraries that loading it imports and that this Python has not. They are not imported."""
    needed = {name: FAMILIES[name].libraries for name in models if name in FAMILIES}
    absent = {library for libraries in needed.values() for library in libraries if find_spec(library) is None}
    missing = {name: [each for each in libraries if each in absent] for name, libraries in needed.items()}
    return {name: libraries for name, libraries in missing.items() if libraries}


def check_libraries(models: Iterable[str], *, here: bool) -> list[str]:
    """Raises UsageError if a job on this machine would find a library missing. `here`: whether jobs run on this machine.

    For jobs elsewhere returns warnings: nodes may have what a login node lacks.
    """
    told = [
        f"{name} needs {' and '.join(libraries)}, which this Python does not have: {MODELS}"
        for name, libraries in missing_libraries(models).items()
    ]
    if told and here:
        raise UsageError("; ".join(told))
    return [f"{each}, unless the jobs' Python has it" for each in told]
