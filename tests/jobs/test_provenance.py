"""Manifests in videos: the real C2PA library signs and reads, and what cannot sign is said before anything is rendered."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.media.encode import encode
from jobs.outcome import Failed, Rendered
from jobs.provenance.certificate import FOR_TRIES, make_pair_for_tries, read_pair, warnings_of
from jobs.provenance.errors import CertificateError, ProvenanceError
from jobs.provenance.library import load_library
from jobs.provenance.manifest import MADE_BY_A_MODEL, definition, text_facts
from jobs.provenance.read import read_video
from jobs.provenance.sign import VideoSigner, open_signer
from jobs.store import layout
from tests.jobs.certificates import SERVER, locked, make_pair
from tests.jobs.videos import read_video as decoded
from tests.jobs.world import clip, render_job, write_shard

ENDED = Path(__file__).parents[1] / "data" / "signed_by_an_ended_certificate.mp4"
"""Its certificate was good for a few seconds."""
SAID = definition(title="a.mp4", version="1", made_at="2026-12-01T00:00:00Z", clip={"seed": 2**63 - 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Path, Path]:
    return make_pair(folder)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    encode(np.full((4, 32, 48, 3), 90, np.uint8), path, fps=8, crf=18, tags={})
    return path


def test_the_package_is_an_extra_and_whoever_lacks_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ProvenanceError, match=r"need the package c2pa-python .*pip install 'pab-pipeline\[c2pa\]'"):
        load_library()


@pytest.mark.parametrize("kind", ["es256", "es384", "ed25519", "ps256"])
def test_every_kind_of_key_that_c2pa_takes_signs(folder, video, kind):
    certificate, key = make_pair(folder, kind, kind=kind)
    before = decoded(video, 48, 32)
    told = open_signer(str(certificate), str(key)).sign(video, SAID)
    trust = (folder / f"{kind}-authority.pem").read_bytes()
    with video.open("rb") as file:
        plain, trusted = read_video(file), read_video(file, trust=trust)
    assert plain is not None
    assert trusted is not None
    assert (plain.verdict, trusted.verdict) == ("valid", "trusted")
    assert plain.problems == ()
    assert told["manifest"] == plain.manifest
    assert plain.clip == {"seed": 2**63 - 1}
    assert plain.says["actions"][0]["action"] == "c2pa.created"
    assert plain.says["actions"][0]["digitalSourceType"] == MADE_BY_A_MODEL
    np.testing.assert_array_equal(before, decoded(video, 48, 32))
    assert [path.name for path in video.parent.iterdir()] == ["a.mp4"]


def test_every_byte_of_pictures_and_index_is_guarded_and_no_two_signatures_are_alike(folder, pair, video):
    unsigned, signer = video.read_bytes(), open_signer(*map(str, pair))
    signer.sign(video, SAID)
    signed = video.read_bytes()
    end = signed.index(b"moov")
    assert signed[end:] != unsigned[unsigned.index(b"moov") :], "offsets in the index moved with the pictures"
    for place in range(end, len(signed), 37):
        changed = bytearray(signed)
        changed[place] ^= 1
        reading = read_video(io.BytesIO(changed))
        assert reading is not None
        assert not reading.holds, place
        assert reading.problems
    for cut in (signed[:-1], signed[: end + 40], signed + b"more"):
        reading = read_video(io.BytesIO(cut))
        assert reading is not None
        assert reading.verdict == "invalid"
    assert [read_video(io.BytesIO(data)) for data in (unsigned, b"text", b"")] == [None] * 3
    video.write_bytes(unsigned)
    signer.sign(video, SAID)
    assert video.read_bytes() != signed, "attempts of a clip have different bytes, so they must have different names"


def test_a_certificate_that_has_ended_since_is_told_from_a_changed_video():
    data = ENDED.read_bytes()
    reading = read_video(io.BytesIO(data))
    assert reading is not None
    assert (reading.verdict, reading.holds) == ("expired", False)
    assert reading.problems == ("certificate expired (signingCredential.expired)",)
    changed = read_video(io.BytesIO(data[:-1] + bytes([data[-1] ^ 1])))
    assert changed is not None
    assert changed.verdict == "invalid"


def test_what_cannot_sign_is_said_with_its_reason(folder, pair, tmp_path):
    certificate, key = pair
    other = make_pair(folder, "other")[1]
    late, early = make_pair(folder, "late", ends_h=-0.5), make_pair(folder, "early", begins_h=5)
    for given, reason in (
        ((certificate, other), r"mine\.pem and key .*other\.key do not belong together"),
        (late, r"late\.pem has expired: it is valid from .* UTC; name one that is valid now"),
        (early, r"early\.pem is not valid yet"),
        ((certificate, locked(key)), r"mine\.locked is locked by a password"),
        ((key, key), r"certificate .*mine\.key holds no certificate as PEM"),
        ((certificate, certificate), r"key .*mine\.pem holds no private key as PEM"),
        ((tmp_path / "none.pem", key), r"none\.pem is no file here"),
        ((certificate, tmp_path), "is no file here"),
        (make_pair(folder, "small", kind="rsa1024"), "of a kind that C2PA does not take"),
        (make_pair(folder, "curve", kind="curve"), "of a kind that C2PA does not take"),
    ):
        with pytest.raises(CertificateError, match=reason) as told:
            read_pair(*given)
        assert "MI" not in str(told.value).replace("MII", "MI"), "nothing of a file is quoted"


def test_a_certificate_of_another_purpose_is_refused_by_c2pa_itself(folder):
    signer = open_signer(*map(str, make_pair(folder, "server", usage=SERVER)))
    with pytest.raises(CertificateError, match=r"C2PA does not take this certificate .* needs the key usage"):
        signer.check()


def test_a_key_that_others_can_read_and_an_end_that_is_near_are_told(folder, pair):
    certificate, key = pair
    assert warnings_of(read_pair(certificate, key), key) == []
    certificate, key = make_pair(folder, "near", ends_h=24)
    key.chmod(0o640)
    open_key, near = warnings_of(read_pair(certificate, key), key)
    assert open_key == f"key {key} can be read by other users of this machine; say: chmod 600 {key}"
    assert near.startswith("the certificate ends on ")


def test_a_pair_for_tries_is_made_once_is_private_and_says_what_it_is(tmp_path):
    certificate, key = make_pair_for_tries(tmp_path / "private")
    first = read_pair(certificate, key)
    assert first.for_tries
    assert FOR_TRIES.partition(",")[0] in first.subject
    assert [path.stat().st_mode & 0o777 for path in (key, key.parent)] == [0o600, 0o700]
    assert make_pair_for_tries(tmp_path / "private") == (certificate, key)
    assert read_pair(certificate, key).sha256 == first.sha256
    key.write_text("damaged")
    make_pair_for_tries(tmp_path / "private")
    assert read_pair(certificate, key).sha256 != first.sha256
    assert warnings_of(read_pair(certificate, key), key) == []


def test_a_key_is_in_no_text_and_no_pickle(pair):
    held = read_pair(*pair)
    signer = VideoSigner(held)
    assert b"PRIVATE KEY" in held.key
    assert "PRIVATE" not in f"{held!r} {signer!r} {json.dumps(held.facts)}"
    with pytest.raises(TypeError, match="holds a secret key"):
        pickle.dumps(signer)


def test_a_prompt_is_told_as_its_hash_or_as_it_is():
    assert text_facts("prompt", "ä", "text") == {"prompt": "ä"}
    hashed = hashlib.sha256("ä".encode()).hexdigest()
    assert text_facts("prompt", "ä", "hash") == {"prompt_sha256": hashed}
    assert text_facts("negative_prompt", None, "text") == {}


def test_a_job_signs_clips_and_samples_and_records_what_it_signed(tmp_path, pair):
    certificate, key = map(str, pair)
    item = clip(0, prompt="a secret circle", negative_prompt="squares")
    bucket = write_shard(str(tmp_path), [item])
    job = render_job(
        str(tmp_path), c2pa=True, c2pa_cert=certificate, c2pa_key=key, weights_digests={"tiny": "0123456789abcdef"}
    )
    assert b"PRIVATE KEY" not in pickle.dumps(job)
    (outcome,) = job().clips
    assert isinstance(outcome, Rendered)
    record = bucket.read_json(layout.record(item.key))
    told, data = record["video"]["c2pa"], bucket.read(record["video"]["path"])
    reading, sample = (read_video(io.BytesIO(bucket.read(record["video"][name]))) for name in ("path", "without_reuse"))
    assert reading is not None
    assert sample is not None
    assert (reading.verdict, reading.manifest) == ("valid", told["manifest"])
    assert told["certificate"]["made_for_tries"] is False
    assert {"encode", "sign", "check", "upload"} <= record["seconds"].keys()
    assert record["video"]["size_bytes"] == len(data)
    assert reading.clip["request_digest"] == item.digest
    assert (reading.clip["seed"], reading.clip["model"]) == (item.seed, "tiny")
    assert reading.clip["weights_digest"] == "0123456789abcdef"
    assert reading.clip["plan_digest"] == record["plan"]["rules_digest"] != sample.clip["plan_digest"]
    assert {"prompt_sha256", "negative_prompt_sha256"} <= reading.clip.keys()
    assert b"secret circle" not in data
    assert str(tmp_path).encode() not in data, "a video that is given away tells nothing of this machine"
    assert sample.holds
    assert bucket.read(layout.video(item.clip_id)) == data


def test_another_attempt_has_other_bytes_and_another_name_and_the_first_record_stays(tmp_path, pair):
    item = clip(0)
    bucket = write_shard(str(tmp_path), [item])
    job = render_job(str(tmp_path), c2pa=True, c2pa_cert=str(pair[0]), c2pa_key=str(pair[1]), baseline=False)
    job()
    first = bucket.read(layout.record(item.key))
    job()
    assert bucket.read(layout.record(item.key)) == first, "what is recorded is not rendered again"
    bucket.remove(layout.record(item.key))  # as `rerender` puts it aside
    job()
    second, before = bucket.read_json(layout.record(item.key)), json.loads(first)
    assert second["digest"] == before["digest"]
    paths = {record["video"]["path"] for record in (before, second)}
    assert {f"renders/{name}" for name in bucket.names("renders")} == paths
    assert len(paths) == 2
    for record in (before, second):
        reading = read_video(io.BytesIO(bucket.read(record["video"]["path"])))
        assert reading is not None
        assert (reading.verdict, reading.manifest) == ("valid", record["video"]["c2pa"]["manifest"])
    assert bucket.read(layout.video(item.clip_id)) == bucket.read(second["video"]["path"])


def test_a_video_that_cannot_be_signed_fails_its_clip_there_and_is_recorded_nowhere(tmp_path, folder):
    certificate, key = map(str, make_pair(folder, "wrong", usage=SERVER))
    bucket = write_shard(str(tmp_path), [clip(0)])
    job = render_job(str(tmp_path), c2pa=True, c2pa_cert=certificate, c2pa_key=key, baseline=False)
    (outcome,) = job().clips
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.error) == ("sign", "SigningError")
    assert "C2PA could not sign" in outcome.message
    assert bucket.recorded_keys() == set()
    assert list(bucket.names("renders")) == []


def test_a_job_without_its_key_ends_before_it_renders(tmp_path, pair):
    bucket = write_shard(str(tmp_path), [clip(0)])
    job = render_job(str(tmp_path), c2pa=True, c2pa_cert=str(pair[0]), c2pa_key=str(tmp_path / "gone.key"))
    with pytest.raises(CertificateError, match=r"gone\.key is no file here"):
        job()
    assert list(bucket.names("attempts")) == []
