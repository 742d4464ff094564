"""Of what kind a file is, is told to each store in the words of its library, whichever way the file is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.store.bucket import Bucket, BucketError
from jobs.store.filesystem import SINGLE_PUT_BYTES


class RecordingFileSystem(MemoryFileSystem):
    """Notes what it is told of files, and makes links as the class below it says."""

    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    told: ClassVar[dict[str, dict[str, Any]]] = {}
    no_key: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.partition("://")[2] if "://" in path else path

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.told[path] = kwargs
        super().pipe_file(path, value, mode=mode)

    def put_file(self, lpath, rpath, **kwargs):
        self.told[rpath] = kwargs
        super().put_file(lpath, rpath)

    def sign(self, path, expiration=100, **kwargs):
        if self.no_key is not None:
            raise self.no_key
        return f"https://link{path}?{expiration} {kwargs}"


@dataclass(frozen=True)
class ContentSettings:
    """As in azure.storage.blob, which is not installed for tests."""

    content_type: str


@pytest.fixture(params=["s3", "gs", "abfs"])
def store(request, monkeypatch) -> tuple[str, type[RecordingFileSystem]]:
    """One of the three kinds of store, reached as `recorded://`."""
    protocol = "abfs" if request.param == "abfs" else (request.param, f"{request.param}a")
    kind = type("Recording", (RecordingFileSystem,), {"protocol": protocol, "told": {}, "store": {}})
    fsspec.register_implementation("recorded", kind, clobber=True)
    azure = ModuleType("azure.storage.blob")
    azure.ContentSettings = ContentSettings
    for name in ("azure", "azure.storage"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "azure.storage.blob", azure)
    return request.param, kind


def test_every_store_is_told_of_what_kind_a_file_is(store, tmp_path):
    name, fs = store
    bucket = Bucket("recorded://box/run")
    bucket.write("reports/run.html", b"page")
    assert bucket.create("records/a.json", b"{}")
    big = tmp_path / "scratch"
    with big.open("wb") as file:  # too big for a single request
        file.truncate(SINGLE_PUT_BYTES + 1)
    bucket.upload(big, "renders/a.0a.mp4")
    bucket.write("attempts/a.1", b"mark")
    told = {path.rpartition("/")[2]: kind for path, kind in fs.told.items()}
    kinds = {"run.html": "text/html; charset=utf-8", "a.json": "application/json", "a.0a.mp4": "video/mp4"}
    for file, kind in kinds.items():
        expected = {
            "s3": {"ContentType": kind},
            "gs": {"content_type": kind},
            "abfs": {"content_settings": ContentSettings(content_type=kind)},
        }[name]
        assert expected.items() <= told[file].items(), file
    assert told["a.1"].keys() <= {"ContentMD5"}


def test_links_are_signed_in_the_newest_way_and_without_a_key_refused_in_words(store):
    name, fs = store
    bucket = Bucket("recorded://box/run")
    version = "{'version': 'v4'}" if name == "gs" else "{}"
    assert bucket.signed_link("renders/a.mp4", seconds=60) == f"https://link/box/run/renders/a.mp4?60 {version}"
    # As google-auth and azure-storage-blob say it.
    for error in (AttributeError("you need a private key"), ValueError("account_key must be provided")):
        fs.no_key = error
        with pytest.raises(BucketError, match=rf"cannot sign links \({error}\)\. gs needs the key file"):
            bucket.signed_link("renders/a.mp4", seconds=60)
