"""The file through which jobs find the Dask scheduler: address, dashboard, and where its TLS key lies.

The key itself stays in the same folder, which only this user may enter: jobs read it there, no pickle carries it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.whole_files import read_json, tell_damaged, write_json, write_whole

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
    write_json(place.folder / SCHEDULER_FILE, {"address": place.address, "dashboard_url": place.dashboard_url})


def read_place(path: Path) -> SchedulerPlace | None:
    """Reads the file; None if no scheduler was ever started there, or if the file is damaged."""
    match read_json(path):
        case None:
            return None
        case {"address": str(address), "dashboard_url": str(dashboard_url)}:
            return SchedulerPlace(folder=path.parent, address=address, dashboard_url=dashboard_url)
        case other:
            tell_damaged(path, f"it holds {other!r}")
            return None


def make_keys(folder: Path) -> None:
    """Makes a key and its certificate in `folder` if there is no whole pair; a restarted scheduler keeps its jobs' key."""
    from distributed import Security

    if _is_pair(folder / _CERTIFICATE, folder / _KEY):
        return
    temporary = Security.temporary()
    write_whole(folder / _CERTIFICATE, temporary.tls_ca_file.encode())
    write_whole(folder / _KEY, temporary.tls_scheduler_key.encode())


def _is_pair(certificate: Path, key: Path) -> bool:
    if not key.exists():
        return False
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        tell_damaged(key, error)
        return False
    return True


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
