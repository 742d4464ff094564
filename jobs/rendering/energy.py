"""Joules of a clip: what the GPUs of its ranks have counted from its beginning until its last frame was decoded.

GPUs count the energy of the whole board since their driver was loaded. The ranks of a clip read their own, each when its
device has reached the clip's end, and the clip's root adds them up. Where one cannot count, nothing is told: never zero.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from jobs.log import log_event
from jobs.rendering.clip_attempt import Attempt, Energy
from jobs.rendering.group import JobRanks
from pab.sampling.device_clock import DeviceClock

_LOG = logging.getLogger(__name__)
_WAIT_S = 5.0
"""So long a clip's root waits for the other ranks; they are at the clip's end at the same time."""
_POLL_S = 0.02
_UNKNOWN = "none"


class NoEnergyError(Exception):
    """The energy of a GPU is not known; the message says why."""


class EnergyCounter(Protocol):
    """Counts the energy of one GPU. `gpu`: a name that no other GPU has."""

    gpu: str

    def joules(self) -> float:
        """Returns what it has counted since its driver was loaded. Raises NoEnergyError."""


class NvmlCounter:
    """Asks NVML, by NVIDIA's own library. `nvml`: its module `pynvml`."""

    def __init__(self, nvml: Any, gpu: str) -> None:
        self.gpu = gpu
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByUUID(gpu)
        except nvml.NVMLError as error:
            raise NoEnergyError(f"NVML does not know {gpu}: {error}") from error
        self.joules()

    def joules(self) -> float:
        """See `EnergyCounter.joules`."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise NoEnergyError(f"{self.gpu} does not count its energy: {error}") from error


def gpu_counter(device: torch.device) -> EnergyCounter:
    """Returns the counter of a rank's device. Raises NoEnergyError."""
    if device.type != "cuda":
        raise NoEnergyError(f"{device.type} is no GPU")
    try:
        import pynvml
    except ImportError as error:
        raise NoEnergyError(
            "nvidia-ml-py is not installed where the job runs: pip install 'pab-pipeline[energy]'"
        ) from error
    return NvmlCounter(pynvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interval:
    """A clip or batch on this rank's GPU. `begun_j`: the count at its beginning; `clock`: whose last mark is its end."""

    coming: ComingEnergy
    begun_j: float
    clock: DeviceClock


class ComingEnergy:
    """The energy of a clip, or its share of a batch, which the ranks of its group are still to read."""

    def __init__(self, meter: EnergyMeter, number: int, clips: int) -> None:
        self._meter = meter
        self._number = number
        self._clips = clips
        self._own: float | None = None
        self._read = threading.Event()

    def read(self, joules: float | None) -> None:
        """Takes what this rank's GPU has counted; None if that is not known."""
        self._own = joules
        self._read.set()
        self._meter.tell(self._number, joules)

    def fetch(self) -> Energy | None:
        """Returns the sum over the clip's ranks; None if one does not know its own within some seconds. Of the root alone."""
        if not self._read.wait(_WAIT_S) or self._own is None:
            return None
        others = self._meter.others(self._number)
        if others is None:
            return None
        return Energy(joules=round((self._own + sum(others)) / self._clips, 3), gpus=1 + len(others))


class EnergyMeter:
    """Measures clips on one rank, without making the device wait: a thread reads the counter when a clip is done."""

    def __init__(self, counter: EnergyCounter, ranks: JobRanks) -> None:
        self._counter = counter
        self._ranks = ranks
        self._numbers = 0
        self._last_j = 0.0
        self._told = False
        self._queue: queue.SimpleQueue[_Interval | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self._thread.start()

    def begin(self) -> float | None:
        """Returns the count as a clip or batch begins; None if it is not known."""
        return self._joules()

    def end(self, attempts: Sequence[Attempt], begun_j: float | None, clock: DeviceClock) -> None:
        """Notes the end of a clip, or of a batch, whose clips share its energy alike. Collective over the clips' ranks.

        `clock`: its last mark is set when the last of them is decoded.
        """
        self._numbers += 1
        coming = ComingEnergy(self, self._numbers, len(attempts))
        for attempt in attempts:
            attempt.energy = coming
        if begun_j is None:
            coming.read(None)
        else:
            self._queue.put(_Interval(coming=coming, begun_j=begun_j, clock=clock))

    def close(self) -> None:
        """Ends the thread."""
        self._queue.put(None)

    def _run(self) -> None:
        while (each := self._queue.get()) is not None:
            each.clock.wait()
            now_j = self._joules()
            # As it began, the device may still have decoded the clip before, whose energy that is.
            used = None if now_j is None else now_j - max(each.begun_j, self._last_j)
            self._last_j = now_j or self._last_j
            # A counter that has not moved is too slow for so short a clip.
            each.coming.read(used if used is not None and used > 0 else None)

    def _joules(self) -> float | None:
        try:
            return self._counter.joules()
        except NoEnergyError as error:
            if not self._told:
                log_event(_LOG, "energy_unknown", level=logging.WARNING, why=str(error))
            self._told = True
            return None

    def tell(self, number: int, joules: float | None) -> None:
        """Tells the clip's root what this rank has counted, through the store of the rendezvous."""
        ranks = self._ranks
        if ranks.store is None or ranks.node.is_clip_root:
            return
        try:
            ranks.store.set(self._key(number, ranks.place.rank), _UNKNOWN if joules is None else repr(joules))
        except (dist.DistError, RuntimeError) as error:
            log_event(_LOG, "store_gone", level=logging.WARNING, error=repr(error))

    def others(self, number: int) -> list[float] | None:
        """Returns what the other ranks of the clip have counted; None if one does not know it, or does not say so in time."""
        ranks, first = self._ranks, self._ranks.place.rank
        keys = [self._key(number, rank) for rank in range(first + 1, first + ranks.node.clip.size)]
        if not keys or ranks.store is None:
            return []
        end = time.monotonic() + _WAIT_S
        try:
            while not ranks.store.check(keys):
                if time.monotonic() > end:
                    return None
                time.sleep(_POLL_S)
            said = [ranks.store.get(key).decode() for key in keys]
        except (dist.DistError, RuntimeError) as error:
            log_event(_LOG, "store_gone", level=logging.WARNING, error=repr(error))
            return None
        return None if _UNKNOWN in said else [float(text) for text in said]

    def _key(self, number: int, rank: int) -> str:
        return f"energy/{number}/{rank}"


@contextmanager
def open_meter(
    ranks: JobRanks, counter_of: Callable[[torch.device], EnergyCounter] = gpu_counter
) -> Iterator[EnergyMeter | None]:
    """Yields what measures clips, or None if a rank of the job cannot, and says why in the log. Collective over the job."""
    counter, why = None, ""
    try:
        counter = counter_of(ranks.node.device)
    except NoEnergyError as error:
        why = str(error)
    told = ranks.all_gather((counter.gpu if counter else "", why), tuple[str, str])
    gpus = [gpu for gpu, _ in told]
    why = next((reason for gpu, reason in told if not gpu), "")
    if not why and len(set(gpus)) < len(gpus):
        why = "several ranks share a GPU, so it does not know whose energy it counts"
    if why or counter is None:
        log_event(_LOG, "energy_not_counted", why=why)
        yield None
        return
    meter = EnergyMeter(counter, ranks)
    try:
        yield meter
    finally:
        meter.close()
