"""Our quick reading of an S3 listing gives the keys that the library's own reading gives."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import botocore.session
import pytest
from botocore import handlers
from botocore.parsers import create_parser

from jobs.store import s3_listing

KEYS = [
    *(f"my run/records/a{chr(code)}b.json" for code in range(0x20, 0x7F)),
    "my run/records/ends with blank ",
    "my run/records/100%25.json",
    "my run/records/a+b c%20d.json",
    "my run/records/Mädchen 猫 🐈.json",
    "my run/records/&amp;.json",
]


def answer(keys: list[str], *, encoded: bool) -> bytes:
    kind = "<EncodingType>url</EncodingType>" if encoded else ""
    objects = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>"
        for key in keys
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>videos</Name>{kind}<IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
    )
    return text.encode()


def librarys_keys(body: bytes) -> list[str]:
    shape = botocore.session.get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
    parsed = create_parser("rest-xml").parse({"body": body, "headers": {}, "status_code": 200}, shape)
    handlers.decode_list_object_v2(parsed, {"encoding_type_auto_set": True})
    return [found["Key"] for found in parsed["Contents"]]


def our_keys(body: bytes) -> list[str]:
    kept: dict[str, Any] = {}
    token = s3_listing._KEYS_ONLY.set(True)
    try:
        s3_listing._take_keys({"body": body, "status_code": 200}, kept)
    finally:
        s3_listing._KEYS_ONLY.reset(token)
    return kept["Keys"]


@pytest.mark.parametrize(
    ("written", "encoded"),
    [
        pytest.param(lambda key: quote_plus(key, safe="/"), True, id="AWS: a blank is a plus"),
        pytest.param(lambda key: quote_plus(key, safe=""), True, id="MinIO: a slash is encoded too"),
        pytest.param(lambda key: quote(key, safe="/"), True, id="Ceph: a blank is %20"),
        pytest.param(lambda key: escape(quote(key, safe="/~!*()'@&=$,")), True, id="little is encoded"),
        pytest.param(escape, False, id="not encoded"),
    ],
)
def test_every_character_of_a_key_is_read_as_the_library_reads_it(written: Any, encoded: bool) -> None:
    body = answer([written(key) for key in KEYS], encoded=encoded)
    assert our_keys(body) == librarys_keys(body) == KEYS
