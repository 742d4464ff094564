"""The ranks of a job: this process's place, from submitit's environment, and the process groups.

Without submitit (in tests, or a process started by hand) a job is a group of one.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import submitit
import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from jobs.log import log_event
from jobs.settings import JobSettings
from pab.parallel.mesh import NodeGroup, open_group

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_RENDEZVOUS_S = 300.0
_COLLECTIVE_S = 900.0
"""How long a rank waits for another one inside the model before it gives up; far longer than a pass takes."""
_POLL_S = 0.05
_DEFAULT_JOB_S = 7 * 86400.0


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
    master: str
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
        return Place(
            rank=0, world=1, local_rank=0, num_nodes=1, job_id=f"pid{os.getpid()}", start=0, master="", folder=None
        )
    num_nodes = environment.num_nodes
    return Place(
        rank=environment.global_rank,
        world=environment.num_tasks,
        local_rank=environment.local_rank,
        num_nodes=num_nodes,
        job_id=environment.job_id,
        start=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        master=environment.hostnames[0] if num_nodes > 1 else "127.0.0.1",
        folder=environment.paths.folder,
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRanks:
    """The ranks of an open job: the model's axes, and collectives for plain values.

    The collectives here use gloo with a longer time limit, because a rank that waits for the bucket makes the others wait.
    Collectives inside the model have the limit `_COLLECTIVE_S`.
    """

    place: Place
    node: NodeGroup
    host: str
    everyone: dist.ProcessGroup | None
    clip: dist.ProcessGroup | None
    store: Store | None
    """The store of the rendezvous; None in a group of one."""

    def broadcast_in_clip(self, value: T | None) -> T:
        """Returns the value of the clip's root on every rank of the clip."""
        return _broadcast(value, self.clip, is_root=self.node.is_clip_root)

    def broadcast_in_job(self, value: T | None) -> T:
        """Returns the value of rank 0 on every rank of the job."""
        return _broadcast(value, self.everyone, is_root=self.place.rank == 0)

    def barrier(self) -> None:
        """Waits for the other ranks of this rank's clip."""
        if self.clip is not None:
            dist.barrier(group=self.clip)

    def all_gather_object(self, value: T) -> list[T]:
        """Returns every rank's value in rank order, on every rank. So it also works as a barrier."""
        if self.everyone is None:
            return [value]
        values: list[T | None] = [None] * self.place.world
        dist.all_gather_object(values, value, group=self.everyone)
        return values  # type: ignore[return-value]

    def all_told_to_end(self, *, wait_s: float = 1.5) -> bool:
        """Whether every rank of this rank's clip calls this within `wait_s`: then all are alive, and all were told to end.

        A job is also told to end when one of its ranks has died, but then that rank does not call this. The thread that
        reads signals calls it, so it works while the ranks wait for each other. Only the clip's root gets True.
        """
        if self.store is None:
            return True
        members = range(
            self.place.rank - self.node.clip.rank, self.place.rank - self.node.clip.rank + self.node.clip.size
        )
        end = time.monotonic() + wait_s
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


def _broadcast(value: T | None, group: dist.ProcessGroup | None, *, is_root: bool) -> T:
    values = [value if is_root else None]
    if group is not None:
        dist.broadcast_object_list(values, group=group, group_src=0, device=torch.device("cpu"))
    return values[0]  # type: ignore[return-value]


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
    store = _rendezvous(place, device) if place.world > 1 else None
    node = open_group(dp=settings.mesh.dp, cfg=settings.mesh.cfg, sp=settings.mesh.sp, device=device)
    everyone, clip = _control_groups(place, settings, node)
    yield JobRanks(place=place, node=node, host=socket.gethostname(), everyone=everyone, clip=clip, store=store)
    # Not after an error: a rank may be gone, and this call would wait for it.
    if place.world > 1:
        dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank went away or did not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _device(settings: JobSettings, place: Place) -> torch.device:
    if settings.render.device != "cuda":
        return torch.device(settings.render.device)
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


def _rendezvous(place: Place, device: torch.device) -> Store:
    if place.folder is None:
        raise GroupError("a group of several ranks needs submitit's shared folder, where rank 0 says how to reach it")
    limit = timedelta(seconds=_RENDEZVOUS_S)
    note = place.folder / f"{place.name}.meet"
    try:
        if place.rank == 0:
            store = open_store(place, limit)
            _publish(note, f"{place.master} {store.port}")
        else:
            host, port = _await_note(note).split()
            store = TCPStore(host, int(port), place.world, is_master=False, timeout=limit)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world,
            timeout=timedelta(seconds=_COLLECTIVE_S),
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, RuntimeError) as error:
        raise GroupError(f"rank {place.rank} of {place.world}: the rendezvous failed ({error})") from error
    finally:
        if place.rank == 0:
            note.unlink(missing_ok=True)
    return store


def open_store(place: Place, limit: timedelta) -> TCPStore:
    """Returns rank 0's rendezvous store; it listens on loopback if all ranks are on this machine."""
    # Port 0: the system gives a free one, so two jobs on a node never share it.
    store = partial(TCPStore, world_size=place.world, is_master=True, timeout=limit, wait_for_workers=False)
    if place.num_nodes > 1:
        return store("0.0.0.0", 0)
    # The store has no password, and by default it listens at every address of the machine.
    listener = socket.create_server((place.master, 0), backlog=place.world)
    return store(place.master, listener.getsockname()[1], master_listen_fd=listener.detach())


def _publish(note: Path, text: str) -> None:
    temporary = note.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(note)


def _await_note(note: Path) -> str:
    end = time.monotonic() + _RENDEZVOUS_S
    while time.monotonic() < end:
        try:
            return note.read_text()
        except FileNotFoundError:
            time.sleep(_POLL_S)
    raise GroupError(f"rank 0 did not leave {note} within {_RENDEZVOUS_S:.0f} s; its log says why")


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
