"""How the ranks of a job meet: by notes in the job's shared folder, until each has a lifeline to rank 0.

Every rank leaves a note that says at which addresses its machine is, and renews it while it waits. Rank 0 waits for all
notes, chooses the interface that the others reach, opens its gate there, and adds address, port and the job's secret to its
own note. Notes have mode 0600 in a folder that only the user may enter. A rank that gives up says so in its note, and one
whose note is no longer renewed is gone: the others end within a minute and say which rank it was.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from jobs.ranks.gate import Gate, GateError, Lifeline, Lost
from jobs.ranks.interfaces import LOOPBACK, address_towards, machine_id, own_interfaces, reachable_addresses

GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_POLL_S, _LONGEST_POLL_S = 0.02, 0.5


class MeetingError(Exception):
    """The ranks did not meet; the message says which one is missing, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingLimits:
    """How long, in seconds, a rank waits for the others to arrive, and then for the gate to answer.

    Notes are renewed every `renew_s`; a rank whose note is not renewed for `silent_s` counts as gone.
    """

    arrive_s: float = 300.0
    reach_s: float = 20.0
    renew_s: float = 5.0
    silent_s: float = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendee:
    """One rank that is to meet. `name`: the job's start, as in `1234_5-0`; `node`: the machine's name.

    `interface`: what the user has set in GLOO_SOCKET_IFNAME, if anything.
    """

    rank: int
    world: int
    name: str
    node: str
    folder: Path
    interface: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a rank's note says. `beat`: grows with each renewal. `ended`: why the rank gave up.

    The rest is rank 0's: the gate's address and port, the store's port on its loopback, and the secret in hex.
    """

    node: str
    machine: str = field(default_factory=machine_id)
    addresses: tuple[str, ...] = field(default_factory=lambda: tuple(reachable_addresses()))
    beat: int = 0
    ended: str | None = None
    gate: str | None = None
    gate_port: int = 0
    store_port: int = 0
    secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """How this rank reaches the others. `address`: its own; `interface`: the one that has it, for gloo and NCCL.

    `store_port`: the rendezvous store's port on this rank's loopback. `secret`: in hex, known to the job's ranks only.
    """

    address: str
    interface: str
    store_port: int
    secret: str
    lifeline: Gate | Lifeline


def meet(attendee: Attendee, *, store_port: int, lost: Lost, limits: MeetingLimits | None = None) -> Met:
    """Meets the other ranks. `store_port`: where rank 0's store listens on its loopback; 0 for the other ranks.

    `lost` is called when a rank is gone, from here on until the lifeline is closed. Raises MeetingError.
    """
    board = _Board(attendee, limits or MeetingLimits())
    try:
        return _open_gate(attendee, board, store_port, lost) if attendee.rank == 0 else _enter(attendee, board, lost)
    except (MeetingError, OSError) as error:
        with suppress(OSError):
            board.say(ended=str(error), secret="")
        raise MeetingError(f"rank {attendee.rank} of {attendee.world} on {attendee.node}: {error}") from error
    finally:
        board.leave()


def _open_gate(attendee: Attendee, board: _Board, store_port: int, lost: Lost) -> Met:
    others = range(1, attendee.world)
    board.wait_for("did not arrive", lambda: [rank for rank in others if board.read(rank) is None], watched=others)
    notes = {rank: note for rank in others if (note := board.read(rank)) is not None}
    address = job_address(attendee, board.own, list(notes.values()))
    secret = secrets.token_hex(32)
    gate = Gate(address, secret=bytes.fromhex(secret), world=attendee.world, store_port=store_port, lost=lost)
    with ExitStack() as undo:
        undo.callback(gate.close, well=False)
        board.say(gate=address, gate_port=gate.port, store_port=store_port, secret=secret)
        board.wait_for(f"did not come to the gate at {address}:{gate.port}", gate.missing, watched=others)
        interface = interface_of(address)
        undo.pop_all()
    return Met(address=address, interface=interface, store_port=store_port, secret=secret, lifeline=gate)


def _enter(attendee: Attendee, board: _Board, lost: Lost) -> Met:
    found: list[Note] = []

    def missing() -> Sequence[int]:
        note = board.read(0)
        found[:] = [note] if note is not None and note.gate is not None else []
        return [] if found else [0]

    board.wait_for("did not say where its gate is", missing, watched=[0])
    (note,) = found
    line = _lifeline(attendee, note, board, lost)
    interface = attendee.interface or interface_of(line.own_address)
    port = note.store_port if note.machine == board.own.machine else line.forward()
    return Met(address=line.own_address, interface=interface, store_port=port, secret=note.secret, lifeline=line)


def _lifeline(attendee: Attendee, note: Note, board: _Board, lost: Lost) -> Lifeline:
    assert note.gate is not None, "it was waited for"
    end = time.monotonic() + board.limits.reach_s
    while True:
        try:
            return Lifeline(note.gate, note.gate_port, secret=bytes.fromhex(note.secret), rank=attendee.rank, lost=lost)
        except GateError as error:
            if time.monotonic() > end:
                raise MeetingError(
                    f"{error}; if {attendee.node} does not reach {note.node} there, set {GLOO_INTERFACE} and "
                    f"{NCCL_INTERFACE} in the job's environment to an interface that the nodes share ({_interfaces()})"
                ) from error
        board.say()
        time.sleep(_LONGEST_POLL_S)


def job_address(attendee: Attendee, own: Note, others: Sequence[Note]) -> str:
    """Returns the address of this machine at which the job's other ranks reach it. Raises MeetingError.

    `own`, `others`: what this rank and the others say of their machines.
    """
    if attendee.interface is not None:
        return _address_of(attendee)
    elsewhere: dict[str, tuple[str, ...]] = {
        note.node: note.addresses for note in others if note.machine != own.machine
    }
    if not elsewhere:
        return LOOPBACK
    address = address_towards(elsewhere)
    if address is None:
        raise MeetingError(
            f"no network interface of {attendee.node} leads to {_named(elsewhere)}; set {GLOO_INTERFACE} and "
            f"{NCCL_INTERFACE} in the job's environment to one that the nodes share ({_interfaces()})"
        )
    return address


def interface_of(address: str) -> str:
    """Returns the name of the interface that has an address. Raises MeetingError naming the variables to set."""
    name = own_interfaces().get(address)
    if name is None:
        raise MeetingError(
            f"no network interface of this machine has the address {address}; set {GLOO_INTERFACE} and {NCCL_INTERFACE} "
            f"in the job's environment ({_interfaces()})"
        )
    return name


def _address_of(attendee: Attendee) -> str:
    # gloo takes several names, and the first of them for the rest.
    name = (attendee.interface or "").split(",")[0]
    for address, interface in own_interfaces().items():
        if interface == name:
            return address
    raise MeetingError(
        f"{GLOO_INTERFACE}={attendee.interface!r}, {attendee.node} has no such interface with an address; it has "
        f"{_interfaces()}"
    )


def _named(nodes: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(
        f"{name} (at {', '.join(addresses) or 'no address but loopback'})" for name, addresses in nodes.items()
    )


def _interfaces() -> str:
    return ", ".join(dict.fromkeys(own_interfaces().values())) or "none"


class _Board:
    """The notes of all ranks in the job's folder, and how long each has not been renewed."""

    def __init__(self, attendee: Attendee, limits: MeetingLimits) -> None:
        self._attendee, self.limits = attendee, limits
        self._started = self._renewed = time.monotonic()
        self._heard: dict[int, tuple[int, float]] = {}
        self.own = Note(node=attendee.node)
        self.say()

    def say(self, **changes: object) -> None:
        """Changes and renews this rank's note."""
        self._renewed = time.monotonic()
        self.own = replace(self.own, beat=self.own.beat + 1, **changes)  # type: ignore[arg-type]
        note, new = self._path(self._attendee.rank), self._path(self._attendee.rank).with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            json.dump(asdict(self.own), file)
        new.replace(note)

    def leave(self) -> None:
        """Removes this rank's note, unless it says why the rank gave up: the others may not have read that."""
        if self.own.ended is None:
            self._path(self._attendee.rank).unlink(missing_ok=True)

    def read(self, rank: int) -> Note | None:
        """Returns a rank's note; None if there is none yet. Raises MeetingError if the rank has given up."""
        try:
            found = json.loads(self._path(rank).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            # On NFS a note that was renewed while it was read.
            if error.errno != errno.ESTALE:
                raise
            return None
        note = Note(**{**found, "addresses": tuple(found["addresses"])})
        if note.ended is not None:
            raise MeetingError(f"rank {rank} gave up: {note.ended}")
        return note

    def wait_for(self, what: str, missing: Callable[[], Sequence[int]], *, watched: Sequence[int]) -> None:
        """Waits until no rank is missing, and renews this rank's note. `watched`: ranks whose notes must be renewed.

        Raises MeetingError if a rank that was there is gone, or one is missing for too long.
        """
        poll_s = _POLL_S
        while ranks := self._missing(missing):
            now = time.monotonic()
            for rank in watched:
                self._check_alive(rank, now)
            if now - self._started > self.limits.arrive_s:
                numbers = ", ".join(map(str, ranks))
                raise MeetingError(f"rank {numbers} {what} within {self.limits.arrive_s:.0f} s; its log says why")
            if now - self._renewed > self.limits.renew_s:
                self.say()
            time.sleep(poll_s)
            poll_s = min(1.5 * poll_s, _LONGEST_POLL_S)

    def _missing(self, missing: Callable[[], Sequence[int]]) -> Sequence[int]:
        # A folder of a network filesystem is asked for anew when it is opened; a file that was not there once, is not.
        os.close(os.open(self._attendee.folder, os.O_RDONLY | os.O_DIRECTORY))
        return missing()

    def _check_alive(self, rank: int, now: float) -> None:
        note = self.read(rank)
        if note is None:
            return
        beat, since = self._heard.get(rank, (-1, now))
        self._heard[rank] = (note.beat, now if note.beat != beat else since)
        silent_s = now - self._heard[rank][1]
        if silent_s > self.limits.silent_s:
            raise MeetingError(
                f"rank {rank} on {note.node} was there and has been silent for {silent_s:.0f} s: it has ended"
            )

    def _path(self, rank: int) -> Path:
        return self._attendee.folder / f"{self._attendee.name}.rank{rank}.meet"
