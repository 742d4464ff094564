"""Where a process listens."""

from __future__ import annotations

from pathlib import Path

_LISTENING = "0A"
_LOOPBACK = ("0100007F", "00000000000000000000000001000000")


def listening_elsewhere(pid: int) -> list[str]:
    """Returns the addresses (hexadecimal, as the kernel tells them) beyond loopback at which a process listens."""
    return [address for address in listening(pid) if address.partition(":")[0] not in _LOOPBACK]


def listening(pid: int) -> list[str]:
    """Returns the addresses and ports at which a process listens over TCP."""
    own = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    ]
    return [row[1] for row in rows if row[3] == _LISTENING and f"socket:[{row[9]}]" in own]
