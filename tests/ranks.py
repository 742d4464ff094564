"""Runs a function on several gloo ranks, each a process of its own, and brings their values back."""

import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.forked import fork_server


def run_on_ranks(num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Returns `function(*args)` of every rank, in rank order. The function must be importable, its value picklable."""
    with tempfile.TemporaryDirectory() as folder:
        fork_server()
        mp.start_processes(
            _one_rank, args=(num_ranks, folder, function, args), nprocs=num_ranks, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"value-{rank}", weights_only=False) for rank in range(num_ranks)]


def _one_rank(rank: int, num_ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the process of the tests
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(function(*args), Path(folder) / f"value-{rank}")
    finally:
        dist.destroy_process_group()
