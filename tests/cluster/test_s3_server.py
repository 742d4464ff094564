"""The S3 server that the bucket's tests use is a real one."""

from __future__ import annotations

import pytest
import s3fs

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
