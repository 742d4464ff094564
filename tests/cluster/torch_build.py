"""Folders that hold what torch says of its build, and nothing else of it."""

from __future__ import annotations

from pathlib import Path


def write_torch(folder: Path, *, cuda: str = "None", hip: str = "None") -> None:
    """Writes `torch/version.py` in `folder` as torch does; `cuda`, `hip`: Python literals."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/__init__.py").write_text("raise ImportError('this torch is only looked at')\n")
    (folder / "torch/version.py").write_text(
        "from typing import Optional\n\n__version__ = '2.13.0+any'\ndebug = False\n"
        f"cuda: Optional[str] = {cuda}\nhip: Optional[str] = {hip}\n"
    )
