"""Writes a small model with random weights in a family's published layout."""

from __future__ import annotations

from pathlib import Path

from pab.families import FAMILIES

TINY_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.write_tiny)
"""The families that can be written small."""


def write_tiny_weights(name: str, folder: Path, seed: int = 0) -> None:
    """Writes a family's tiny weights into a new or empty folder. Raises ValueError, FileExistsError."""
    write = FAMILIES[name].write_tiny if name in FAMILIES else None
    if write is None:
        raise ValueError(f"family={name!r} has no tiny weights, allowed: {', '.join(TINY_FAMILIES)}")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    write(folder, seed)
