"""Which GPUs and cores this machine has, and whether torch can use the GPUs; shared among the jobs that run on it at once."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path

_DRIVER_TIMEOUT_S = 20.0
_BUILT_FOR = re.compile(r"^(__version__|cuda|hip)\b[^=\n]*=\s*(.+?)\s*$", re.MULTILINE)


def visible_gpus(environment: Mapping[str, str], *, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Returns the GPUs that this process may use, as CUDA names them: CUDA_VISIBLE_DEVICES, else all `nvidia` devices."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() not in ("", "-1"))
    return tuple(str(index) for index in range(len(_gpu_devices(devices, r"nvidia\d+"))))


def has_gpu(environment: Mapping[str, str], *, devices: Path = Path("/dev")) -> bool:
    """Whether this process may use a GPU that is there: CUDA_VISIBLE_DEVICES may name some on a machine that has none.

    `dxg`: what Windows gives its Linux in place of `nvidia` devices.
    """
    return bool(visible_gpus(environment, devices=devices) and _gpu_devices(devices, r"nvidia\d+|dxg"))


def _gpu_devices(devices: Path, pattern: str) -> list[str]:
    return [path.name for path in devices.iterdir() if re.fullmatch(pattern, path.name)]


def torch_without_gpus() -> str | None:
    """Returns the version of this Python's torch if it is built for no GPU; None if it is, or if there is no telling.

    Torch is not imported: its `version.py` is read.
    """
    found = PathFinder.find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        told = dict(_BUILT_FOR.findall(Path(found.origin).with_name("version.py").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    built = told.get("cuda", "unknown"), told.get("hip", "None")
    return told.get("__version__", "?").strip("'\"") if built == ("None", "None") else None


def gpu_memory_bytes() -> int | None:
    """Returns the memory of the smallest GPU of this machine, as its driver says; None if no driver answers."""
    ask = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=True).stdout
        return min(int(line) for line in told.split("\n") if line.strip()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def gpu_kind() -> str | None:
    """Returns the name of this machine's first GPU, such as "NVIDIA H200"; None if no driver answers."""
    ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.strip() for line in told.split("\n") if line.strip()), None)


def threads_per_rank(num_ranks: int, *, num_jobs: int) -> int:
    """Returns this machine's cores per rank when `num_jobs` jobs of `num_ranks` ranks run at once; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (num_ranks * num_jobs))
