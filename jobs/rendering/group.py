"""The ranks of a job: this process's place, from submitit's environment, the process groups, and values that all get.

Without submitit (in tests, or a process started by hand) a job is a group of one.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import submitit
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from jobs.log import log_event
from jobs.ranks.interfaces import LOOPBACK, is_loopback
from jobs.ranks.meeting import GLOO_INTERFACE, NCCL_INTERFACE, Attendee, MeetingError, Met, meet
from jobs.ranks.plain_values import from_bytes, to_bytes
from jobs.rendering.hang import HangWatch
from jobs.settings import JobSettings
from pab.execution.gpu_here import why_no_gpu
from pab.parallel.mesh import NodeGroup, open_group

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_RENDEZVOUS_S = 300.0
_COLLECTIVE_S = 900.0
"""How long a rank waits for another one inside the model before it gives up; far longer than a pass takes."""
_POLL_S = 0.05
_TOLD_S = 5.0
_DEFAULT_JOB_S = 7 * 86400.0
_CLOSE_S = 300.0
LOST_EXIT = 76
_LAST_WORDS_S = 30.0
"""How long a rank has to bring home what it has rendered, after another rank of its job is gone."""


class GroupError(Exception):
    """The rendezvous failed, or the ranks do not fit the mesh or the devices; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Place of this process in its job. `start`: how often SLURM has restarted the job. `folder`: submitit's folder.

    `node`: SLURM's name for this machine; without SLURM its host name.
    """

    rank: int
    world: int
    local_rank: int
    num_nodes: int
    job_id: str
    start: int
    folder: Path | None
    node: str = field(default_factory=socket.gethostname)

    @property
    def name(self) -> str:
        """The name of one start of a job, e.g. `1234_5-0`."""
        return f"{self.job_id}-{self.start}"


def find_place() -> Place:
    """Returns this process's place from submitit's environment; without submitit, a group of one."""
    try:
        environment = submitit.JobEnvironment()
    except RuntimeError:
        return Place(rank=0, world=1, local_rank=0, num_nodes=1, job_id=f"pid{os.getpid()}", start=0, folder=None)
    num_nodes = environment.num_nodes
    return Place(
        rank=environment.global_rank,
        world=environment.num_tasks,
        local_rank=environment.local_rank,
        num_nodes=num_nodes,
        job_id=environment.job_id,
        start=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        folder=environment.paths.folder,
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRanks:
    """The ranks of an open job: the model's axes, and collectives for plain values.

    The collectives here use gloo with a longer time limit, because a rank that waits for the bucket makes the others wait.
    Collectives inside the model have the limit `_COLLECTIVE_S`. Values cross as `jobs.ranks.plain_values` says, never as
    pickles: `kind` is their declared type, and every rank gives the same.
    """

    place: Place
    node: NodeGroup
    host: str
    everyone: dist.ProcessGroup | None
    clip: dist.ProcessGroup | None
    store: Store | None
    """The store of the rendezvous; None in a group of one."""

    def broadcast_in_clip(self, value: T | None, kind: Any) -> T:
        """Returns the value of the clip's root, of type `kind`, on every rank of the clip."""
        return _broadcast(value, kind, self.clip, is_root=self.node.is_clip_root)

    def broadcast_in_job(self, value: T | None, kind: Any) -> T:
        """Returns the value of rank 0, of type `kind`, on every rank of the job."""
        return _broadcast(value, kind, self.everyone, is_root=self.place.rank == 0)

    def barrier(self) -> None:
        """Waits for the other ranks of this rank's clip."""
        if self.clip is not None:
            dist.barrier(group=self.clip)

    def all_gather(self, value: T, kind: Any) -> list[T]:
        """Returns every rank's value, of type `kind`, in rank order, on every rank. So it also works as a barrier."""
        if self.everyone is None:
            return [value]
        own = _as_tensor(to_bytes(value, kind))
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.place.world)]
        dist.all_gather(sizes, torch.tensor([len(own)]), group=self.everyone)
        longest = max(int(size) for size in sizes)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, torch.cat([own, own.new_zeros(longest - len(own))]), group=self.everyone)
        return [from_bytes(part[: int(size)].numpy().tobytes(), kind) for part, size in zip(parts, sizes, strict=True)]

    def all_told_to_end(self) -> bool:
        """Whether every rank of this rank's clip calls this within 5 s: then all are alive, and all were told to end.

        A job is also told to end when one of its ranks has died, but then that rank does not call this. The thread that
        reads signals calls it, so it works while the ranks wait for each other. Only the clip's root gets True.
        """
        if self.store is None:
            return True
        members = range(
            self.place.rank - self.node.clip.rank, self.place.rank - self.node.clip.rank + self.node.clip.size
        )
        end = time.monotonic() + _TOLD_S
        try:
            self.store.set(f"told-to-end/{self.place.rank}", "")
            while self.node.is_clip_root and time.monotonic() < end:
                if self.store.check([f"told-to-end/{rank}" for rank in members]):
                    return True
                time.sleep(_POLL_S)
        except (dist.DistError, RuntimeError) as error:
            log_event(_LOG, "store_gone", level=logging.WARNING, error=repr(error))
        return False

    @property
    def shares_clips(self) -> bool:
        """Whether several ranks render a clip together, so that an error on one rank ends all of them."""
        return self.node.clip.size > 1


def _broadcast(value: T | None, kind: Any, group: dist.ProcessGroup | None, *, is_root: bool) -> T:
    if group is None:
        return value  # type: ignore[return-value]
    data = _as_tensor(to_bytes(value, kind) if is_root else b"")
    size = torch.tensor([len(data)])
    dist.broadcast(size, group=group, group_src=0)
    if not is_root:
        data = torch.zeros(int(size), dtype=torch.uint8)
    dist.broadcast(data, group=group, group_src=0)
    return value if is_root else from_bytes(data.numpy().tobytes(), kind)  # type: ignore[return-value]


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


class _End:
    """Ends this process when another rank of its job is gone: alone it would wait for that rank, some of it for ever.

    First it is told to end as by SIGTERM, which takes back its marks where its own clip's ranks are all there. What then
    still waits, in a kernel or a collective, is ended without asking.
    """

    def __init__(self) -> None:
        self.working = threading.Event()

    def __call__(self, rank: int) -> None:
        log_event(_LOG, "rank_lost", level=logging.ERROR, lost=rank)
        if self.working.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_LAST_WORDS_S)
        sys.stderr.write(f"rank {rank} of this job has ended, and so does this one\n")
        faulthandler.dump_traceback(sys.stderr)
        os._exit(LOST_EXIT)


@contextmanager
def open_job(settings: JobSettings) -> Iterator[JobRanks]:
    """Opens the process groups of this job. Collective.

    Raises GroupError when mesh, ranks and devices do not fit, or when a rank does not arrive within five minutes.
    """
    place = find_place()
    if settings.mesh.num_ranks != place.world:
        raise GroupError(
            f"mesh {settings.mesh} needs {settings.mesh.num_ranks} ranks, job {place.job_id} has {place.world}; "
            "ask for as many ranks (nodes x GPUs per node) as the mesh has"
        )
    device = _device(settings, place)
    with _rendezvous(place, device) as store:
        node = open_group(dp=settings.mesh.dp, cfg=settings.mesh.cfg, sp=settings.mesh.sp, device=device)
        everyone, clip = _control_groups(place, settings, node)
        yield JobRanks(place=place, node=node, host=socket.gethostname(), everyone=everyone, clip=clip, store=store)
        # Not after an error: a rank may be gone, and this call would wait for it.
        if place.world > 1:
            with HangWatch(_CLOSE_S, last_words=lambda: None).over_stage("close the group"):
                dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank went away or did not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _device(settings: JobSettings, place: Place) -> torch.device:
    if settings.render.device != "cuda":
        return torch.device(settings.render.device)
    if (why := why_no_gpu()) is not None:
        raise GroupError(f"rank {place.rank} on {socket.gethostname()}: {why}")
    count = torch.cuda.device_count()
    # Some sites show each task only one GPU, which then is number 0 in every task.
    index = 0 if count == 1 else place.local_rank
    if index >= count:
        raise GroupError(
            f"rank {place.rank} on {socket.gethostname()} is number {place.local_rank} there and sees {count} GPUs; "
            "ask for one GPU per rank"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


@contextmanager
def _rendezvous(place: Place, device: torch.device) -> Iterator[Store | None]:
    """Meets the other ranks, opens the default process group, and holds the lifeline until the end. None for one rank."""
    if place.world == 1:
        yield None
        return
    if place.folder is None:
        raise GroupError("a group of several ranks needs submitit's shared folder, where rank 0 says how to reach it")
    limit, end, well = timedelta(seconds=_RENDEZVOUS_S), _End(), False
    attendee = Attendee(
        rank=place.rank, world=place.world, name=place.name, node=place.node, folder=place.folder,
        interface=os.environ.get(GLOO_INTERFACE) or None,
    )  # fmt: skip
    store = open_store(place, limit) if place.rank == 0 else None
    try:
        met = meet(attendee, store_port=store.port if store else 0, lost=end)
    except MeetingError as error:
        raise GroupError(f"the rendezvous failed: {error}") from error
    try:
        with _interfaces_named(met):
            if store is None:
                store = TCPStore(LOOPBACK, met.store_port, place.world, is_master=False, timeout=limit)
            named = PrefixStore(_prefix(met), store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=named,
                rank=place.rank,
                world_size=place.world,
                timeout=timedelta(seconds=_COLLECTIVE_S),
                device_id=device if device.type == "cuda" else None,
            )
            end.working.set()
            yield named
            well = True
    except (dist.DistError, RuntimeError) as error:
        if end.working.is_set():
            raise
        raise GroupError(f"rank {place.rank} of {place.world}: the rendezvous failed ({error})") from error
    finally:
        met.lifeline.close(well=well)


def open_store(place: Place, limit: timedelta) -> TCPStore:
    """Returns rank 0's rendezvous store. It has no password, so it listens on loopback; other machines go by the gate."""
    # Port 0: the system gives a free one, so two jobs on a node never share it.
    listener = socket.create_server((LOOPBACK, 0), backlog=place.world)
    return TCPStore(
        LOOPBACK, listener.getsockname()[1], place.world, is_master=True, timeout=limit, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def _prefix(met: Met) -> str:
    # Keys that nobody can guess. It is not the secret itself, because the store shows its keys to whoever reaches it.
    return hashlib.sha256(f"store {met.secret}".encode()).hexdigest()


@contextmanager
def _interfaces_named(met: Met) -> Iterator[None]:
    """Tells gloo and NCCL the interface, unless the user has: they know no other way, and gloo takes the host's name.

    On one machine NCCL is left to itself: it asks for no name.
    """
    ours = {GLOO_INTERFACE: met.interface}
    if not is_loopback(met.address):
        ours[NCCL_INTERFACE] = f"={met.interface}"  # this one alone, not all that begin like it
    ours = {name: value for name, value in ours.items() if not os.environ.get(name)}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _control_groups(
    place: Place, settings: JobSettings, node: NodeGroup
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    if place.world == 1:
        return None, None
    limit = timedelta(seconds=(settings.deadline_s or _DEFAULT_JOB_S) + 2 * settings.upload_timeout_s)
    everyone = dist.new_group(backend="gloo", timeout=limit)
    size = node.clip.size
    clip = None
    # Every rank must create every group, in the same order.
    for first in range(0, place.world, size):
        members = list(range(first, first + size))
        group = dist.new_group(members, backend="gloo", timeout=limit) if size > 1 else None
        if place.rank in members:
            clip = group
    return everyone, clip
