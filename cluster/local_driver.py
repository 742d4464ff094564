"""Which process drives local jobs in a folder, so that `cancel` stops that one and no other.

Process ids repeat. So a driver is known by its id, by the boot and the clock tick at which it began, and by its command
line. What is kept of it lies in its own private folder on this machine.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cluster.whole_files import read_json, write_json

NOTE = "driver.json"


def note_driver(folder: Path) -> None:
    """Notes in a private folder that this process drives the jobs in it. Raises OSError."""
    write_json(folder / NOTE, _process(os.getpid()))


def stop_drivers(run_folder: Path) -> list[int]:
    """Tells the living drivers that work in folders of `run_folder` to end (SIGTERM); returns their process ids."""
    stopped = []
    for folder in sorted(run_folder.glob("local-*")):
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            continue
        note = read_json(folder / NOTE)
        if isinstance(note, dict) and isinstance(note.get("pid"), int) and _stop(note):
            stopped.append(note["pid"])
    return stopped


def _stop(note: dict[str, object]) -> bool:
    pid = note["pid"]
    assert isinstance(pid, int), "read so"
    try:
        # The handle stays that of the process looked at, whoever gets its id afterwards.
        handle = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return False
    try:
        if _process(pid) != note:
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _process(pid: int) -> dict[str, object]:
    """Returns what no two processes have in common. Raises OSError."""
    place = Path(f"/proc/{pid}")
    # The name, in brackets, may hold anything; the start is the 20th field after it.
    started = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return {
        "pid": pid,
        "user": place.stat().st_uid,
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "started": int(started),
        "command": (place / "cmdline").read_bytes().decode(errors="replace").split("\0"),
    }
