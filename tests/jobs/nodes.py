"""Nodes of a cluster on one machine: each with a network interface, a name and a hosts file of its own. Root only."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.sockets import listening

_KINDS = ("net", "uts", "mnt")


@dataclass(frozen=True, slots=True)
class Node:
    """`pid`: a process that keeps the namespaces. `interface` has `address`."""

    name: str
    address: str
    interface: str
    pid: int

    def enter(self) -> None:
        """Moves this process to the node; it must have one thread."""
        libc = ctypes.CDLL(None, use_errno=True)
        for kind in _KINDS:
            handle = os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY)
            if libc.setns(handle, 0):
                raise OSError(ctypes.get_errno(), f"setns {kind}")
            os.close(handle)

    def run(self, *command: str) -> str:
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "--net", "--uts", "--mount", *command],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip


def can_make_nodes() -> bool:
    if os.getuid() != 0 or not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
        return False
    return (
        subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], check=False, capture_output=True).returncode
        == 0
    )


@contextmanager
def two_nodes(folder: Path, hosts: Sequence[str]) -> Iterator[tuple[Node, Node]]:
    """Yields node1 (10.77.0.1) and node2 (10.77.0.2), joined by a cable. `hosts`: the hosts file of each."""
    with ExitStack() as stack:
        pids = [_keep_namespaces(stack) for _ in hosts]
        ends = [f"pab{pid}" for pid in pids]
        _ip(
            "link",
            "add",
            ends[0],
            "netns",
            str(pids[0]),
            "type",
            "veth",
            "peer",
            "name",
            ends[1],
            "netns",
            str(pids[1]),
        )
        nodes = [
            Node(f"node{number}", f"10.77.0.{number}", end, pid)
            for number, (end, pid) in enumerate(zip(ends, pids, strict=True), start=1)
        ]
        for node, text in zip(nodes, hosts, strict=True):
            file = folder / f"hosts-{node.name}"
            file.write_text(text)
            node.run("hostname", node.name)
            node.run("mount", "--bind", str(file), "/etc/hosts")
            node.run("ip", "addr", "add", f"{node.address}/24", "dev", node.interface)
            for interface in ("lo", node.interface):
                node.run("ip", "link", "set", interface, "up")
        yield nodes[0], nodes[1]


def listening_addresses() -> set[str]:
    """Returns the IPv4 addresses at which this process listens."""
    hexadecimal = {address.partition(":")[0] for address in listening(os.getpid())}
    return {".".join(str(byte) for byte in reversed(bytes.fromhex(each))) for each in hexadecimal if len(each) == 8}


def _keep_namespaces(stack: ExitStack) -> int:
    process = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sleep", "600"])
    stack.callback(process.wait)
    stack.callback(process.kill)
    ours = [Path(f"/proc/self/ns/{kind}").readlink() for kind in _KINDS]
    end = time.monotonic() + 10
    # It has moved to its last new namespace when none of them is ours.
    while any(Path(f"/proc/{process.pid}/ns/{kind}").readlink() in ours for kind in _KINDS):
        assert time.monotonic() < end, "no namespaces came to be"
        time.sleep(0.01)
    return process.pid


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
