"""The network interface by which this machine reaches the other nodes of a job.

A node's own name does not tell it: Debian and Ubuntu make it an address of loopback (127.0.1.1), which only the node itself
reaches. So the way to another node is asked of the system: a UDP socket that is connected, and sends nothing, knows the local
address that its packets would carry.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
_ANY_PORT = 9
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses that no machine has; the way to them is the default route."""


def own_interfaces() -> dict[str, str]:
    """Returns the interface of each address of this machine, in the system's order; without those of one link only."""
    found: dict[str, str] = {}
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6) and not _is_of_link(each.address):
                found.setdefault(each.address, name)
    return found


def reachable_addresses() -> list[str]:
    """Returns this machine's addresses at which others may reach it: that of the default route first, none of loopback."""
    first = [local for target in _ELSEWHERE if (local := local_address(target)) is not None]
    return [each for each in dict.fromkeys([*first, *own_interfaces()]) if not is_loopback(each)]


def machine_id() -> str:
    """Returns a value that two processes share if they reach each other by loopback: same kernel, same network."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    network = Path("/proc/self/ns/net")
    if boot.exists() and network.is_symlink():
        return f"{boot.read_text().strip()}/{network.readlink()}"
    return socket.gethostname()


def local_address(target: str) -> str | None:
    """Returns the local address of packets to another machine's address; None where no way leads there."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target, _ANY_PORT))
        return str(probe.getsockname()[0])
    return None


def address_towards(nodes: Mapping[str, Iterable[str]]) -> str | None:
    """Returns this machine's address that faces other nodes; None if there is no way to any of them.

    `nodes`: for each node's name the addresses that it says it has. What the first one's name resolves to here comes first,
    then what the nodes say, then the other names: each name that nobody knows may take half a minute.
    """
    own = own_interfaces()
    for target in _targets(nodes):
        # Many machines have the same address on a bridge of their own, such as 172.17.0.1 of Docker.
        if target in own or is_loopback(target):
            continue
        local = local_address(target)
        if local is not None and not is_loopback(local):
            return local
    return None


def _targets(nodes: Mapping[str, Iterable[str]]) -> Iterator[str]:
    first, *others = nodes
    yield from _resolved(first)
    for addresses in nodes.values():
        yield from addresses
    for name in others:
        yield from _resolved(name)


def _resolved(name: str) -> list[str]:
    with suppress(OSError, UnicodeError):
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    return []


def is_loopback(address: str) -> bool:
    """Whether only this machine itself reaches an address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_of_link(address: str) -> bool:
    return "%" in address or ipaddress.ip_address(address).is_link_local
