"""The S3 server that the bucket's tests use is a real one."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
import s3fs

from jobs.store.bucket import Bucket
from tests.cluster.daemons.ceph import S3Server

pytestmark = pytest.mark.cluster


def connect(server: S3Server, *, secret: str | None = None) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=server.access_key,
        secret=secret or server.secret_key,
        endpoint_url=server.endpoint,
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def test_objects_come_back_and_strangers_are_refused(s3_server: S3Server) -> None:
    files = connect(s3_server)
    files.call_s3("create_bucket", Bucket="round-trip")
    files.pipe_file("round-trip/a/clip.mp4", b"frames")
    assert files.cat_file("round-trip/a/clip.mp4") == b"frames"
    assert files.find("round-trip") == ["round-trip/a/clip.mp4"]
    with pytest.raises(OSError, match="None"):
        files.pipe_file("round-trip/a/clip.mp4", b"other", mode="create")
    assert files.cat_file("round-trip/a/clip.mp4") == b"frames"
    with pytest.raises(PermissionError):
        connect(s3_server, secret="wrong").ls("round-trip")


def test_a_folder_of_several_pages_is_listed_by_name_and_other_listings_keep_their_facts(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3_server.environment.items():
        monkeypatch.setenv(variable, value)
    files = connect(s3_server)
    files.call_s3("create_bucket", Bucket="pages")
    names = {f"clip-{index:04d}.0a.json" for index in range(2_100)} | {"a b&c+%.json"}
    files.pipe({f"pages/run/records/{name}": b"{}" for name in names} | {"pages/run/records/deeper/x.json": b"{}"})
    bucket = Bucket("s3://pages/run")
    listed = list(bucket.names("records"))
    assert (len(listed), set(listed)) == (len(names), names)
    assert list(bucket.names("failures")) == []
    # The same client still tells sizes.
    assert bucket.exists("records/clip-0007.0a.json")
    fs, root = bucket._fs()
    assert {info["size"] for info in fs.ls(f"{root}/records", detail=True) if info["type"] == "file"} == {2}


def test_a_signed_link_is_for_anybody_and_only_as_it_was_signed(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3_server.environment.items():
        monkeypatch.setenv(variable, value)
    connect(s3_server).call_s3("create_bucket", Bucket="signed")
    bucket = Bucket("s3://signed/run")
    bucket.write("renders/a b.mp4", b"frames")
    link = bucket.signed_link("renders/a b.mp4", seconds=600)
    with urllib.request.urlopen(link, timeout=20) as answer:
        assert answer.read() == b"frames"
        assert answer.headers["Content-Type"] == "video/mp4", "a browser plays it, and does not save it"
    for wrong in (link.partition("?")[0], link.replace("Signature=", "Signature=A"), link.replace("a%20b", "b")):
        with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
            urllib.request.urlopen(wrong, timeout=20)
