"""Puts a signed manifest into a video, and reads it back before anybody is told that it is there."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jobs.provenance.certificate import SigningPair, read_pair
from jobs.provenance.errors import CertificateError, SigningError
from jobs.provenance.library import load_library
from jobs.provenance.manifest import ACTIONS, CLIP, definition
from jobs.provenance.read import Reading, read_video

_MP4 = "video/mp4"
_SETTINGS = {
    "builder": {
        # The signer stands for both assertions, and the hash covers every box that the format lets it cover.
        "created_assertion_labels": [ACTIONS, CLIP],
        "bmff_hash_exclude_free_and_skip_boxes": False,
        "thumbnail": {"enabled": False},
    }
}


class VideoSigner:
    """Signs videos with one certificate. It holds the key, so it is made in the process that signs, and never pickled."""

    def __init__(self, pair: SigningPair) -> None:
        self._pair = pair
        self._c2pa = load_library()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a signer holds a secret key, so it cannot be pickled")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._pair!r})"

    def sign(self, video: Path, said: Mapping[str, Any]) -> dict[str, object]:
        """Replaces an mp4 by itself with a manifest, and returns what its record says of that.

        `said`: as `jobs.provenance.manifest.definition` returns. The frames stay as they are. Raises SigningError, and leaves
        the file as it was.
        """
        signed = video.with_name(f"{video.name}.signed")
        try:
            with video.open("rb") as source, signed.open("w+b") as target:
                self._write(source, target, said)
                target.seek(0)
                reading = _read_back(target)
            signed.replace(video)
        except OSError as error:
            raise SigningError(f"{video.name}: the signed video could not be written: {error}") from error
        finally:
            signed.unlink(missing_ok=True)
        return {"manifest": reading.manifest, "certificate": self._pair.facts}

    def check(self) -> None:
        """Signs a file of no frames in memory. Raises CertificateError if C2PA does not take the certificate."""
        said = definition(title="check", version="0", made_at="2000-01-01T00:00:00Z", clip={})
        target = io.BytesIO()
        try:
            self._write(io.BytesIO(_EMPTY_MP4), target, said)
            _read_back(target)
        except SigningError as error:
            raise CertificateError(
                f"C2PA does not take this certificate ({error}). It needs the key usage digitalSignature and an extended key "
                "usage for signing, such as emailProtection or documentSigning, and must be no authority itself"
            ) from error

    def _write(self, source: BinaryIO, target: BinaryIO, said: Mapping[str, Any]) -> None:
        c2pa, pair = self._c2pa, self._pair
        try:
            # Without a time-stamp authority: a job asks no server.
            signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(pair.algorithm, pair.chain, pair.key, None))
            with signer, c2pa.Context.from_dict(_SETTINGS) as context:
                c2pa.Builder(dict(said), context).sign(signer, _MP4, source, target)
        except c2pa.C2paError as error:
            raise SigningError(f"C2PA could not sign: {error}") from error


def open_signer(certificate: str, key: str) -> VideoSigner:
    """Returns what signs a job's videos. Raises CertificateError, ProvenanceError if the library is missing."""
    return VideoSigner(read_pair(Path(certificate), Path(key)))


def _read_back(signed: BinaryIO) -> Reading:
    reading = read_video(signed)
    if reading is None or not reading.holds:
        said = "no manifest" if reading is None else "; ".join(reading.problems)
        raise SigningError(f"what was signed does not read back as signed: {said}")
    return reading


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


_EMPTY_MP4 = _box(b"ftyp", b"isom" + struct.pack(">I", 512) + b"isomiso2mp41") + _box(b"mdat", b"\0")
