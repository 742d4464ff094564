"""A bucket's listing as it was at one moment: answers requests for listings from it, as a store whose listings are late."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

import s3fs

from tests.cluster.daemons.ceph import S3Server
from tests.faults.http_message import Request

_MOST = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    key: str
    size: int
    etag: str
    modified: str


@dataclass(frozen=True, slots=True)
class OldListing:
    """`entries`: every object of the bucket at that moment, ascending by key."""

    entries: tuple[Entry, ...]

    def answer(self, request: Request) -> bytes:
        """Returns the document that the store would have answered with then (ListObjectsV2)."""
        asked = request.query
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = max(asked.get("start-after", ""), unquote(asked.get("continuation-token", "")))
        most = int(asked.get("max-keys") or _MOST)
        found: dict[str, Entry | None] = {}
        last, more = "", False
        for entry in self.entries:
            if not entry.key.startswith(prefix) or entry.key <= after:
                continue
            name = _folder_of(entry.key, prefix, delimiter) or entry.key
            if name <= after:
                continue
            if name not in found and len(found) == most:
                more = True
                break
            found[name], last = (entry if name == entry.key else None), entry.key
        return _document(request, found, token=last if more else "")

    @classmethod
    def of(cls, server: S3Server, bucket: str) -> OldListing:
        """Takes the listing of now from the server itself. Raises OSError if it is away."""
        fs = s3fs.S3FileSystem(
            key=server.access_key, secret=server.secret_key, endpoint_url=server.endpoint, use_listings_cache=False,
            skip_instance_cache=True,
        )  # fmt: skip
        return cls(tuple(_entries(fs.find(bucket, detail=True).values(), bucket)))


def _entries(files: Iterable[dict[str, object]], bucket: str) -> list[Entry]:
    entries = [
        Entry(
            key=str(file["name"]).removeprefix(f"{bucket}/"),
            size=int(str(file["size"])),
            etag=str(file["ETag"]),
            modified=f"{file['LastModified']:%Y-%m-%dT%H:%M:%S.000Z}",
        )
        for file in files
    ]
    return sorted(entries, key=lambda entry: entry.key.encode())


def _folder_of(key: str, prefix: str, delimiter: str) -> str:
    rest = key[len(prefix) :]
    return f"{prefix}{rest.partition(delimiter)[0]}{delimiter}" if delimiter and delimiter in rest else ""


def _document(request: Request, found: dict[str, Entry | None], *, token: str) -> bytes:
    asked, is_quoted = request.query, request.query.get("encoding-type") == "url"

    def text(value: str) -> str:
        return quote(value, safe="/") if is_quoted else escape(value)

    parts = [
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
        f"<Name>{escape(request.path.strip('/'))}</Name><Prefix>{text(asked.get('prefix', ''))}</Prefix>",
        f"<KeyCount>{len(found)}</KeyCount><MaxKeys>{asked.get('max-keys') or _MOST}</MaxKeys>",
        "<EncodingType>url</EncodingType>" if is_quoted else "",
        f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>",
        f"<NextContinuationToken>{quote(token, safe='')}</NextContinuationToken>" if token else "",
    ]
    for name, entry in found.items():
        if entry is None:
            parts.append(f"<CommonPrefixes><Prefix>{text(name)}</Prefix></CommonPrefixes>")
            continue
        parts.append(
            f"<Contents><Key>{text(name)}</Key><LastModified>{entry.modified}</LastModified>"
            f"<ETag>{escape(entry.etag)}</ETag><Size>{entry.size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    return "".join([*parts, "</ListBucketResult>"]).encode()
