"""What the references of a manifest may name. Somebody else may have written the manifest: nothing in it is trusted.

Allowed are HTTP(S), three kinds of object storage, and local files below folders that the user has named. The check is made
where a reference is opened, on the file or address that is really opened, at submit and again in the job.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from jobs.render_settings import RenderSettings

WEB = ("http", "https")
STORES = ("s3", "gs", "az", "abfs", "abfss")
_LOCAL = ("file", "local")
ALLOWED = "allowed are http, https, s3, gs, az, abfs, abfss and local files below the manifest's folder"
ROOT_FLAG, PRIVATE_FLAG = "--reference-root DIR", "--allow-private-references"
MAX_URL_CHARS = 4096

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A bucket's plain name. An ARN would choose the server that is asked."""
_AZURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(@[a-z0-9]{3,24}\.(dfs|blob)\.core\.windows\.net)?")
_EMBEDDED = (ipaddress.ip_network("64:ff9b::/96"),)
"""Addresses of IPv6 whose last four bytes are the address of IPv4 that is reached."""


class UnusableReferenceError(Exception):
    """A reference image or video cannot be used; the message says why. `away`: its store gave no answer."""

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAccess:
    """What references may name besides HTTP(S) and object storage.

    `roots`: absolute paths of folders; local files below them are allowed. `private`: whether HTTP(S) may lead to loopback,
    private and link-local addresses, such as a site's own servers, or a cloud's server of credentials.
    """

    roots: tuple[str, ...] = ()
    private: bool = False

    @classmethod
    def of(cls, render: RenderSettings) -> Self:
        """Returns what references may name by a run's settings."""
        return cls(roots=render.reference_roots, private=render.allow_private_references)

    def protocol(self, url: str) -> str:
        """Returns the protocol of an allowed URL, "file" for a local path. Raises UnusableReferenceError.

        A local path is only looked at as text here; `open_local` checks where it leads.
        """
        if len(url) > MAX_URL_CHARS:
            raise UnusableReferenceError(f"it has {len(url)} characters, at most {MAX_URL_CHARS} are allowed")
        if found := _CONTROL.search(url):
            raise UnusableReferenceError(f"it holds the control character {found[0]!r}; remove it")
        if "::" in url:
            raise UnusableReferenceError(f"chained URLs (::) are not allowed; {ALLOWED}; name the file itself")
        protocol, is_url, rest = url.partition("://")
        if not is_url:
            protocol, rest = "file", url
        if protocol in _LOCAL:
            _check_path(rest)
            return "file"
        if protocol not in (*WEB, *STORES):
            raise UnusableReferenceError(f"the protocol {protocol[:40]!r} is not allowed; {ALLOWED}")
        _check_host(protocol, rest)
        return protocol

    def open_local(self, url: str) -> int:
        """Opens a local file and returns its descriptor. Links are followed as long as they stay in the allowed folders.

        Raises UnusableReferenceError for a file outside of them, and for anything but a regular file, OSError if it cannot be
        opened.
        """
        path = url.partition("://")[2] if "://" in url else url
        real = os.path.realpath(path)
        self._check_inside(real)
        # Without O_NONBLOCK a named pipe would wait for a writer. No link can be at the end of a resolved path.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        allowed = False
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise UnusableReferenceError("it is a folder; name a file")
            if not stat.S_ISREG(mode):
                raise UnusableReferenceError("it is no regular file (a pipe, a socket or a device); name a file")
            # A folder on the way may have become a link since: the kernel knows which file is open.
            self._check_inside(_opened_path(descriptor, real))
            allowed = True
        finally:
            if not allowed:
                os.close(descriptor)
        return descriptor

    def _check_inside(self, real: str) -> None:
        for root in map(os.path.realpath, self.roots):
            if real == root or real.startswith(root.rstrip("/") + "/"):
                return
        roots = ", ".join(self.roots) or "none, as the manifest is not a local file"
        raise UnusableReferenceError(
            f"it is (or leads to) a file outside of the folders that references may be read from ({roots}); move it "
            f"there, or name its folder: {ROOT_FLAG}"
        )


def _opened_path(descriptor: int, real: str) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:  # a system without /proc
        return os.path.realpath(real)


def _check_path(path: str) -> None:
    if path.startswith("//") or "\\\\" in path:
        raise UnusableReferenceError(
            "a path of another machine (// or \\\\) is not allowed; copy the file to a folder here"
        )
    if not path.startswith("/"):
        raise UnusableReferenceError("a file:// URL needs a whole path: file:///folder/name")


def _check_host(protocol: str, rest: str) -> None:
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if protocol in ("az", "abfs", "abfss"):
        if not _AZURE.fullmatch(host):
            raise UnusableReferenceError(
                f"{host[:80]!r} is no container, or container@account.dfs.core.windows.net; write {protocol}://container/path"
            )
        return
    if "@" in host:
        raise UnusableReferenceError("a URL may not hold credentials; set them in the environment")
    if protocol in STORES and not _BUCKET.fullmatch(host):
        raise UnusableReferenceError(f"{host[:80]!r} is no plain name of a bucket; write {protocol}://bucket/path")
    if not host or "\\" in host:
        raise UnusableReferenceError(f"the URL names no host; write {protocol}://host/path")


def is_public(address: str) -> bool:
    """Whether an IP address is a public one: not loopback, private, link-local, shared, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner: ipaddress.IPv4Address | None = None
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if any(ip in network for network in _EMBEDDED):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not ip.is_multicast
