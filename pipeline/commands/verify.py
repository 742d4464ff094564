"""`verify`: reads the manifest in a video back, and compares the video with the record of its clip, if one is there."""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.provenance.errors import ProvenanceError
from jobs.provenance.library import load_library
from jobs.provenance.read import EXPIRED, INVALID, TRUSTED, VALID, Reading, read_video
from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.printable import one_line
from pipeline.exits import CommandError, Exit, UsageError
from pipeline.run.run import open_bucket
from pipeline.screen import Screen, own_command

_KEY = re.compile(r"[A-Za-z0-9._-]+\.[0-9a-f]{16}")
_FOLDERS = ("renders", "videos", "samples")
_SHOWN = 300
"""Characters of one value; --json has all."""
_WORDS = {
    TRUSTED: "holds: the video is as it was signed, and a certificate of --trust vouches for the signer",
    VALID: "holds: the video is as it was signed. Nobody vouches for the signer here: look who it is, and name by --trust "
    "whom you trust",
    EXPIRED: "does not hold any more: the certificate has expired, and no time stamp says that the signature is older. The "
    "video itself is as it was signed",
    INVALID: "DOES NOT HOLD: the video is not what was signed, or its manifest is damaged",
}


Record = Mapping[str, Any]


_MP4 = b"ftyp"
"""The name of an mp4's first box, behind four bytes of its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A video beside the record of its clip. `record`: its path in the run; `differences`: in words, none if they agree."""

    record: str
    differences: tuple[str, ...]


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `verify`. Raises UsageError for a video that is not there."""
    try:
        load_library()
        trust = None if arguments.trust is None else arguments.trust.read_bytes()
    except ProvenanceError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise UsageError(f"--trust {arguments.trust}: {error.strerror}; name a PEM file of certificates") from error
    place, path = _clip_video(arguments.video, arguments.clip) if arguments.clip else _split(arguments.video)
    video = f"{place.url}/{path}"
    try:
        data = place.read(path)
    except FileNotFoundError as error:
        raise UsageError(f"{video} is not there; name a video, or a run with --clip ID") from error
    try:
        reading = read_video(io.BytesIO(data), trust=trust)
    except ProvenanceError as error:
        raise UsageError(f"--trust {arguments.trust}: {error}") from error
    compared = compare(place, path, data, reading)
    code = _exit_code(reading, compared, trusting=trust is not None)
    document: dict[str, object] = {
        "video": video,
        "sha256": hashlib.sha256(data).hexdigest(),
        "manifest": None if reading is None else asdict(reading),
        "record": None if compared is None else asdict(compared),
        "exit_code": int(code),
    }
    lines = _lines(video, reading, compared, is_mp4=data[4:8] == _MP4, trusting=trust is not None)
    screen.result(document, "\n".join(lines))
    return code


def _exit_code(reading: Reading | None, compared: Compared | None, *, trusting: bool) -> Exit:
    if reading is None:
        return Exit.NO_MANIFEST
    good = reading.verdict == TRUSTED if trusting else reading.holds
    return Exit.OK if good and not (compared and compared.differences) else Exit.NOT_AS_SIGNED


def _split(video: str) -> tuple[Bucket, str]:
    """Returns the folder of a video, and its name there. Its run is two folders further up, if it is in one."""
    local = "://" not in video and "::" not in video
    whole = str(Path(video).expanduser().absolute()) if local else video
    parts = whole.split("/")
    # In a URL the third part is the bucket, whatever it is called.
    above = 2 if parts[-2] in _FOLDERS and len(parts) > (2 if local else 4) else 1
    folder, name = "/".join(parts[:-above]), "/".join(parts[-above:])
    if not name.strip("/") or (local and Path(whole).is_dir()):
        raise UsageError(f"{video} is a folder; name a video, or a run with --clip ID")
    return open_bucket(folder or "/"), name


def _clip_video(output: str, clip: str) -> tuple[Bucket, str]:
    bucket = open_bucket(output)
    records = bucket.records(_keys_of(bucket, clip))
    if not records:
        raise UsageError(
            f"--clip {clip}: no such clip is rendered in {bucket.url}; see: {own_command('status', bucket.url)}"
        )
    path = str(_newest(records)["video"]["path"])
    if not layout.is_video(path):
        raise UsageError(
            f"the record of {clip} names {path!r}, which is no video of a run; somebody has written over it"
        )
    return bucket, path


def _keys_of(bucket: Bucket, clip_id: str) -> list[str]:
    names = [name.removesuffix(".json") for name in bucket.listing("records")]
    return [name for name in names if name.rpartition(".")[0] == clip_id]


def _newest(records: Mapping[str, Record]) -> Record:
    return max(records.values(), key=lambda record: str(record["recorded_at"]))


def compare(place: Bucket, path: str, data: bytes, reading: Reading | None) -> Compared | None:
    """Compares a video with the record of its clip. None if it does not lie in a run, or has no record that can be read.

    `path`: of the video, below `place`. Raises BucketError.
    """
    folder, _, name = path.rpartition("/")
    if folder not in _FOLDERS:
        return None
    sha256 = hashlib.sha256(data).hexdigest()
    keys = _keys_of(place, name.removesuffix(".mp4")) if folder == "videos" else [layout.rendered_key(name)]
    records = place.records([key for key in keys if _KEY.fullmatch(key)])
    if not records:
        return None
    same = [record for record in records.values() if record["video"]["sha256"] == sha256]
    record = same[0] if same else _newest(records)
    return Compared(
        record=layout.record(f"{record['clip_id']}.{record['digest']}"),
        differences=tuple(_differences(folder, name, sha256, record, reading)),
    )


def _differences(folder: str, name: str, sha256: str, record: Mapping[str, Any], reading: Reading | None) -> list[str]:
    found: list[str] = []
    signed, is_sample = record["video"].get("c2pa"), folder == "samples"
    if is_sample:
        # A record names its sample by a part of its hash only.
        if not name.endswith(f".{sha256[: layout.SHA256_DIGITS]}.mp4"):
            found.append("its bytes are not those that its name says")
    elif sha256 != record["video"].get("sha256"):
        found.append(f"its bytes are not those that were recorded (SHA-256 {record['video'].get('sha256')})")
    if isinstance(signed, Mapping) and reading is None:
        found.append("the record says that it was signed, and it carries no manifest: that was taken out")
    if reading is None:
        return found
    if not is_sample and isinstance(signed, Mapping) and reading.manifest != signed.get("manifest"):
        found.append(f"it carries another manifest than the record says ({signed.get('manifest')})")
    said = {"clip_id": record.get("clip_id"), "request_digest": record.get("digest"), "seed": record.get("seed")}
    found += [
        f"the manifest says {name} {reading.clip[name]}, the record {value}"
        for name, value in said.items()
        if name in reading.clip and reading.clip[name] != value
    ]
    return found


def _lines(
    video: str, reading: Reading | None, compared: Compared | None, *, is_mp4: bool, trusting: bool
) -> list[str]:  # fmt: skip
    lines = [one_line(video)]
    if reading is None:
        no_video = "" if is_mp4 else "is no mp4 video, and "
        lines.append(f"{no_video}carries no C2PA manifest: nothing says who made it")
    else:
        lines.append(_WORDS[reading.verdict])
        if trusting and reading.verdict == VALID:
            lines.append("NOT TRUSTED: no certificate of --trust vouches for the signer")
        lines += [f"  {_shown(problem)}" for problem in reading.problems]
        lines += _told("signed by", {name: reading.signer.get(name) for name in ("common_name", "issuer")})
        lines += _told("certificate", {name: reading.signer.get(name) for name in ("alg", "cert_serial_number")})
        lines += _told("says", reading.says)
        lines += _told("of the clip", reading.clip)
        lines += _told("manifest", {"label": reading.manifest})
    if compared is not None:
        lines.append(f"record      {compared.record}: {'agrees' if not compared.differences else 'DOES NOT AGREE'}")
        lines += [f"  {_shown(each)}" for each in compared.differences]
    return lines


def _told(head: str, values: Mapping[str, Any]) -> list[str]:
    """Writes one value a line, the first one behind `head`."""
    told = [f"{_shown(name)}: {_shown(value)}" for name, value in values.items() if value not in (None, [], "")]
    return [f"{head if not i else '':<12}{each}" for i, each in enumerate(told)]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {_shown(each)}" for name, each in value.items() if each is not None)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = "; ".join(map(_shown, value))
    text = one_line(str(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
