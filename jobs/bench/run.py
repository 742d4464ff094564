"""Measures rows one after another, each under a guard and a time limit: one that fails says so, and the others go on."""

from __future__ import annotations

import gc
import importlib
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import list_backends

from jobs.bench.groups import JOB
from jobs.bench.library_subjects import make_subject
from jobs.bench.measure import Json, Measured, measure, measure_ours
from jobs.bench.peers.pipelines import PEERS, NotHereError, require
from jobs.bench.ranks import measure_on_ranks
from jobs.bench.rows import OURS, Row
from jobs.bench.subjects import FULL, TINY, Subject
from jobs.quality.alike import latents_alike, psnr, ssim
from pab.execution.choice import Execution
from pab.execution.compiled import run_as
from pab.parallel.mesh import NodeGroup

_LIBRARIES = ("torch", "triton", "diffusers", "cache-dit")
_MAX_WHY = 400


class TooLongError(Exception):
    """A row has taken all the time it may; the message says how long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """How the table is made. `size`: "full" or "tiny". `backend`: torch.compile's. `seconds`: for all rows together."""

    size: str
    device: str
    backend: str
    repeat: int
    seconds: float
    row_seconds: float


def usual_settings(*, size: str, seconds: float, row_seconds: float, repeat: int, backend: str) -> BenchSettings:
    """Returns settings for this machine. "auto" is on a GPU full size and inductor.

    On a CPU it is tiny models and the backend "eager", which captures graphs and generates no code. Raises ValueError for a
    backend that torch does not know.
    """
    if backend != "auto" and backend not in (known := list_backends(exclude_tags=())):
        raise ValueError(f"--backend {backend!r} is not known to torch, allowed: auto, {', '.join(known)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = (FULL, "inductor") if device == "cuda" else (TINY, "eager")
    return BenchSettings(
        size=usual[0] if size == "auto" else size,
        device=device,
        backend=usual[1] if backend == "auto" else backend,
        repeat=repeat,
        seconds=seconds,
        row_seconds=row_seconds,
    )


def environment(settings: BenchSettings) -> Json:
    """Returns where and with what the rows are measured."""
    gpus = torch.cuda.device_count() if settings.device == "cuda" else 0
    found: Json = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if gpus else f"cpu ({platform.machine()})",
        "gpus": gpus,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
    }
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"size": settings.size, "backend": settings.backend, "repeat": settings.repeat}


def run_rows(
    rows: Sequence[Row],
    settings: BenchSettings,
    tell: Callable[[Json], None],
    *,
    run_job: Callable[[Row], Json] | None = None,
) -> None:
    """Measures the rows and reports each one's line as soon as it is known.

    `run_job`: runs a whole job on this machine and returns its figures; without it such rows are left out.
    """
    # A time limit that strikes in the middle of an import would leave half of it behind for the rows after it.
    importlib.import_module("torch._dynamo")
    bench, ends = _Bench(settings, run_job), time.monotonic() + settings.seconds
    for row in rows:
        tell(bench.line(row, ends - time.monotonic()))


class _Bench:
    """The model that is loaded now, and clips without reuse to compare with."""

    def __init__(self, settings: BenchSettings, run_job: Callable[[Row], Json] | None = None) -> None:
        self.settings = settings
        self.run_job = run_job
        self.device = torch.device(settings.device)
        self.lost: str | None = None
        """The row in which the device failed for good."""
        self.subject: Subject | None = None
        self.loaded: tuple[str, Execution | None] | None = None
        self.without_reuse: dict[object, tuple[Tensor, ...]] = {}
        self.eager: dict[str, tuple[Tensor, ...]] = {}

    def line(self, row: Row, left_s: float) -> Json:
        """Returns a row's figures, or why there are none."""
        head: Json = {
            "name": row.name, "group": row.group.name, "side": row.side, "words": row.words, "mode": row.mode,
            "broadcast": row.broadcast, "options": list(row.options), "gpus": row.mesh.num_ranks,
        }  # fmt: skip
        if left_s <= 0:
            return head | {"status": "not run", "why": f"no time left of {self.settings.seconds:.0f} s (--seconds)"}
        if self.lost is not None:
            why = f"the device was lost to this process in {self.lost}; ask for this row by --rows"
            return head | {"status": "not run", "why": why}
        began, limit_s = time.perf_counter(), min(left_s, self.settings.row_seconds)
        try:
            with time_limit(limit_s):
                return head | {"status": "measured"} | self._measured(row) | {"row_s": time.perf_counter() - began}
        except NotHereError as error:
            return head | {"status": "not run", "why": str(error)}
        except (
            Exception
        ) as error:  # a row's border: one that fails, whatever a library raises, must not lose the others
            why = _why(error)
        if time.perf_counter() - began >= limit_s:
            # Whatever a compiler has made of the interruption.
            why = f"stopped after {limit_s:.0f} s, all that this row may take (--row-seconds, --seconds)"
        # Outside of `except`, so that the traceback no longer holds tensors.
        self._recover(row)
        return head | {"status": "failed", "why": why, "row_s": time.perf_counter() - began}

    def _recover(self, row: Row) -> None:
        try:
            self._drop()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            # A fault of the device ends all that this process can do with it.
            self.lost = row.name

    def _measured(self, row: Row) -> Json:
        if row.group.name == JOB:
            self._drop()
            if self.run_job is None:
                raise NotHereError("whole jobs are run by `python -m pipeline bench`")
            return self.run_job(row)
        if row.mesh.num_ranks > 1:
            self._drop()
            settings = self.settings
            measured = measure_on_ranks(
                row, size=settings.size, device=settings.device, backend=settings.backend, repeat=settings.repeat
            )
        else:
            measured = self._ours(row) if row.side == OURS else self._theirs(row)
        line = measured.line
        line["clips_per_gpu_hour"] = 3600 / line["seconds"] / row.mesh.num_ranks
        return line | self._quality(row, measured.pictures)

    def _ours(self, row: Row) -> Measured:
        subject, execution = self._load(row)
        group = NodeGroup(device=self.device)
        return measure_ours(subject, row, execution, group, repeat=self.settings.repeat)

    def _theirs(self, row: Row) -> Measured:
        require(row.side)
        self._drop()
        # Of our model only the weights are needed.
        subject = make_subject(row.group.name, self.settings.size, self.device)
        peer = PEERS[row.group.name](subject, row, self.settings.backend)
        facts, requests = subject.facts(), subject.requests
        warm_up = requests[0] if row.mode == "compiled" else subject.short
        del subject
        with torch.inference_mode():
            measured = measure(peer.clip, requests, warm_up=warm_up, repeat=self.settings.repeat)
        measured.line.update(facts)
        return measured

    def _load(self, row: Row) -> tuple[Subject, Execution]:
        """Returns the row's model, the one that is loaded if only what is kept differs."""
        name, settings = row.group.name, self.settings
        if self.subject is None or self.loaded is None or self.loaded[0] != name:
            self._drop()
            self.subject, self.loaded = make_subject(name, settings.size, self.device), (name, None)
        idle = row.changes_nothing(settings.device, self.subject.precision)
        if idle:
            raise NotHereError(f"{idle!r} changes nothing on this machine: the row without it says the same")
        execution = row.execution(settings.device, self.subject.precision)
        if self.loaded[1] is None:
            run_as(self.subject.model, execution, backend=settings.backend)
            self.loaded = (name, execution)
        elif _of_model(self.loaded[1]) != _of_model(execution):
            self._drop()
            return self._load(row)
        return self.subject, execution

    def _drop(self) -> None:
        """Lets go of the model, its graphs and the memory it held."""
        self.subject = self.loaded = None
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _quality(self, row: Row, pictures: tuple[Tensor, ...]) -> Json:
        """Compares with the same way of running without reuse, and what reuses nothing with our eager model."""
        line: Json = {"quality": None, "to_eager": None}
        if not row.reuses:
            self.without_reuse.setdefault(row.without_reuse, pictures)
            if (row.side, row.words) == (OURS, "eager none"):
                self.eager[row.group.name] = pictures
        reference = self.without_reuse.get(row.without_reuse)
        if reference is not None:
            line["quality"] = alike(reference, pictures)
        eager = self.eager.get(row.group.name)
        if eager is not None and not row.reuses:
            line["to_eager"] = alike(eager, pictures)
        return line


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # What a rank says ends in its traceback's last line.
    told = lines[-1] if any(line.startswith("Traceback") for line in lines) else " ".join(lines[:3])
    return f"{type(error).__name__}: {told}"[:_MAX_WHY]


def _of_model(execution: Execution) -> Execution:
    """Returns what of an execution a loaded model has taken on: all but how outputs are kept between steps."""
    return replace(execution, keep="full")


def alike(reference: Sequence[Tensor], others: Sequence[Tensor]) -> Json:
    """Returns PSNR and SSIM, medians over clips, and those of the worst clip; of equal clips no PSNR.

    `of`: "video", or "latents" of random weights.
    """
    identical = all(torch.equal(a, b) for a, b in zip(reference, others, strict=True))
    video = reference[0].dtype == torch.uint8
    both = [
        (psnr(a.numpy(), b.numpy()), ssim(a.numpy(), b.numpy())) if video else latents_alike(a, b)
        for a, b in zip(reference, others, strict=True)
    ]
    off = [float((a.float() - b.float()).norm() / a.float().norm()) for a, b in zip(reference, others, strict=True)]
    return {
        "of": "video" if video else "latents",
        "identical": identical,
        "psnr_db": None if identical else median(found[0] for found in both),
        "ssim": median(found[1] for found in both),
        "clips": len(both),
        "worst_psnr_db": None if identical else min(found[0] for found in both),
        "worst_ssim": min(found[1] for found in both),
        "relative_rms": median(off),
    }


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooLongError inside when it takes longer. For the main thread alone, as signals are."""

    def too_long(*_: Any) -> None:
        raise TooLongError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
