"""Rows on several devices of this machine: a process per rank, that builds the same model and renders the same clips."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from jobs.bench.library_subjects import make_subject
from jobs.bench.measure import Measured, measure_ours
from jobs.bench.peers.pipelines import NotHereError
from jobs.bench.rows import Row
from pab.execution.compiled import run_as
from pab.parallel.mesh import open_group

_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWork:
    """What every rank gets. `meet`: a file by which they find each other; `found`: where rank 0 leaves its figures."""

    row: Row
    size: str
    device: str
    backend: str
    repeat: int
    meet: str
    found: str


def measure_on_ranks(row: Row, *, size: str, device: str, backend: str, repeat: int) -> Measured:
    """Measures a row whose mesh has several ranks. Raises NotHereError where there are fewer GPUs than ranks."""
    ranks = row.mesh.num_ranks
    if device == "cuda" and torch.cuda.device_count() < ranks:
        raise NotHereError(f"needs {ranks} GPUs, found {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        work = RankWork(
            row=row, size=size, device=device, backend=backend, repeat=repeat, meet=f"{folder}/meet",
            found=f"{folder}/found",
        )  # fmt: skip
        processes = start_processes(_one_rank, args=(work,), nprocs=ranks, join=False, start_method="spawn")
        try:
            while not processes.join():
                pass
        finally:
            for process in processes.processes:
                process.kill()
                process.join()
        return Measured(**torch.load(work.found, weights_only=False))


def meet(rank: int, ranks: int, device_type: str, file: str) -> torch.device:
    """Opens the default group of all ranks, one process each, and returns this one's device. Collective.

    `file`: where they find each other; it does not exist before.
    """
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=ranks,
        timeout=_PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )
    return device


def _one_rank(rank: int, work: RankWork) -> None:
    row = work.row
    device = meet(rank, row.mesh.num_ranks, work.device, work.meet)
    group = open_group(dp=row.mesh.dp, cfg=row.mesh.cfg, sp=row.mesh.sp, device=device)
    subject = make_subject(row.group.name, work.size, device)
    execution = row.execution(device.type, subject.precision)
    run_as(subject.model, execution, backend=work.backend)
    # Ranks must agree how many clips they render, so no clock decides it.
    measured = measure_ours(subject, row, execution, group, repeat=work.repeat, enough_s=float("inf"))
    if rank == 0:
        torch.save({"line": measured.line, "pictures": measured.pictures}, Path(work.found))
    dist.destroy_process_group()
