"""The file through which jobs find the Dask scheduler: address, dashboard, and where its TLS key lies.

The key itself stays in the same folder, which only this user may enter: jobs read it there, no pickle carries it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from distributed import Security

SCHEDULER_FILE = "dask-scheduler.json"
_CERTIFICATE = "dask-certificate.pem"
_KEY = "dask-key.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerPlace:
    """Where a scheduler listens: `address` for jobs (`tls://host:port`), `dashboard_url` for a browser on its machine.

    `folder` holds its key.
    """

    folder: Path
    address: str
    dashboard_url: str

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The address in the form that sockets take."""
        parts = urlsplit(self.address)
        return parts.hostname or "", parts.port or 0

    @property
    def dashboard_port(self) -> int:
        """The dashboard's port on the driver's loopback."""
        return urlsplit(self.dashboard_url).port or 0


def write_place(place: SchedulerPlace) -> None:
    """Writes the file in one go, so that no job reads half of it."""
    part = place.folder / f"{SCHEDULER_FILE}.{os.getpid()}"
    part.write_text(json.dumps({"address": place.address, "dashboard_url": place.dashboard_url}))
    part.rename(place.folder / SCHEDULER_FILE)


def read_place(path: Path) -> SchedulerPlace | None:
    """Reads the file; None if no scheduler was ever started there."""
    try:
        return SchedulerPlace(folder=path.parent, **json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def make_keys(folder: Path) -> None:
    """Makes a key and its certificate in `folder` if there is none; a restarted scheduler keeps the key its jobs know."""
    from distributed import Security

    if (folder / _KEY).exists():
        return
    temporary = Security.temporary()
    (folder / _CERTIFICATE).write_text(temporary.tls_ca_file)
    part = folder / f"{_KEY}.{os.getpid()}"
    part.touch(mode=0o600)
    part.write_text(temporary.tls_scheduler_key)
    part.rename(folder / _KEY)


def security(folder: Path) -> Security:
    """Returns the TLS settings, equal for scheduler, workers and clients, of the keys in `folder`."""
    from distributed import Security

    certificate, key = str(folder / _CERTIFICATE), str(folder / _KEY)
    roles = {
        f"tls_{role}_{part}": path
        for role in ("scheduler", "worker", "client")
        for part, path in (("cert", certificate), ("key", key))
    }
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)
