"""Names of a million objects in seconds: of a page of an S3 listing only the keys are read.

The library's parser makes a dictionary of dates, sizes and tags for every object, a tenth of a millisecond each: that is
minutes for a million. Requests, signatures, retries and errors stay the library's.
"""

from __future__ import annotations

import html
import re
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_NAMES_ONLY: ContextVar[bool] = ContextVar("_NAMES_ONLY", default=False)


async def list_names(fs: Any, folder: str) -> list[str]:
    """Returns the names of the objects directly in a folder of an `S3FileSystem`; none if there is no such folder."""
    bucket, key, _ = fs.split_path(folder)
    await fs.set_session()
    client = await fs.get_s3(bucket)
    client.meta.events.register("before-parse.s3.ListObjectsV2", _take_names, unique_id="names-only")
    names: list[str] = []
    # Only requests of this coroutine are read so: other listings of the same client get what they expect.
    token = _NAMES_ONLY.set(True)
    try:
        async for page in fs._list_pages("list_objects_v2", Bucket=bucket, Prefix=f"{key}/", Delimiter="/"):
            names += page["Names"]
    finally:
        _NAMES_ONLY.reset(token)
    return names


def _take_names(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    if not _NAMES_ONLY.get() or response_dict["status_code"] != 200:
        return
    body = response_dict["body"]
    decode = unquote if b"<EncodingType>url</EncodingType>" in body else html.unescape
    # Common prefixes hold no <Key>.
    keys = [decode(found.decode()) for found in _KEY.findall(body)]
    customized_response_dict["Names"] = [key.rsplit("/", 1)[-1] for key in keys]
    response_dict["body"] = _CONTENTS.sub(b"", body)
