"""Clips that take their rank along, told by their seed, and nodes on which every rank dies at its start.

Both are made by a plugin of torch's, which every process loads that renders.

torch calls the entry points of the group `torch.backends` at its import; `install` makes a folder that has one and is put
on PYTHONPATH. The clip's noise is drawn with its seed, so that is where it strikes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    while True:
        time.sleep(60)


def _exhaust_memory() -> None:
    import torch

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (256 << 20), hard))
    try:
        torch.ones(1 << 40, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


CRASHES, HANGS, EXHAUSTS_MEMORY = 0x0BAD_0001, 0x0BAD_0002, 0x0BAD_0003
_STRIKES: Mapping[int, Callable[[], None]] = MappingProxyType({
    CRASHES: _crash, HANGS: _hang, EXHAUSTS_MEMORY: _exhaust_memory,
})  # fmt: skip


BAD_NODES = "PAB_FAULTS_BAD_NODES"
"""The variable that names the folder in which a file of a node's name makes it a bad one; every death adds a byte to it."""


def _die_on_bad_node() -> None:
    folder, node = os.environ.get(BAD_NODES), os.environ.get("SLURMD_NODENAME")
    if folder and node and (mark := Path(folder) / node).exists():
        with mark.open("ab") as file:
            file.write(b".")
        sys.stderr.write(f"{node}: a device of this node does not answer\n")
        sys.stderr.flush()
        os._exit(1)


def arm() -> None:
    """Is the entry point."""
    _die_on_bad_node()
    import torch

    draw = torch.randn

    def randn(*size: Any, generator: torch.Generator | None = None, **options: Any) -> torch.Tensor:
        if generator is not None and (strike := _STRIKES.get(generator.initial_seed())):
            strike()
        return draw(*size, generator=generator, **options)

    torch.randn = randn


def install(folder: Path) -> Path:
    """Makes the folder that goes to PYTHONPATH beside the one that holds `tests`."""
    facts = folder / "poison-1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: poison\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(f"[torch.backends]\npoison = {__name__}:arm\n")
    return folder
