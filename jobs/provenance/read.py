"""Reads the manifest in a video back: who signed it, what it says, and whether the bytes are still those that were signed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from jobs.provenance.errors import ProvenanceError
from jobs.provenance.library import load_library
from jobs.provenance.manifest import CLIP

TRUSTED, VALID, EXPIRED, INVALID = "trusted", "valid", "expired", "invalid"
"""Verdicts. `valid`: bytes and signature hold, and nobody vouches for the certificate. `expired`: the same, but the
certificate has ended since. `invalid`: the bytes are not those that were signed, or the manifest is damaged."""
_OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}
# A video must not choose which servers this machine asks.
_NOT_BROKEN = "signingCredential.untrusted"
_ENDED = "signingCredential.expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The manifest of a video. `manifest`: its label, None where it is too damaged to have one.

    `problems`: in the library's words, why it is not valid. `signer`, `says`, `clip`: of the certificate, of the manifest in
    general, and of our own assertion; all of it was written by whoever made the video, who may be anybody if the verdict is
    not `trusted`.
    """

    verdict: str
    manifest: str | None = None
    problems: tuple[str, ...] = ()
    signer: Mapping[str, Any] = field(default_factory=dict)
    says: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether bytes and signature are right, whoever signed."""
        return self.verdict in (TRUSTED, VALID)


def read_video(video: BinaryIO, *, trust: bytes | None = None) -> Reading | None:
    """Reads the manifest in a video, or in another kind of file; None if there is none.

    `trust`: certificates as PEM whose signers are trusted; nobody's are by default. Asks no server. Raises ProvenanceError if
    the library is missing, or if `trust` holds no certificate.
    """
    c2pa = load_library()
    settings: dict[str, Any] = {"verify": _OFFLINE}
    try:
        if trust is not None:
            settings = {"verify": {**_OFFLINE, "verify_trust": True}, "trust": {"trust_anchors": trust.decode()}}
        context = c2pa.Context.from_dict(settings)
    except (c2pa.C2paError, UnicodeDecodeError) as error:
        raise ProvenanceError(
            f"the certificates to trust cannot be used ({error}); needs a PEM file of them"
        ) from error
    try:
        with c2pa.Reader(video, context=context) as reader:
            store = json.loads(reader.json())
    except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported):
        return None  # the second: no kind of file that can have one
    except c2pa.C2paError as error:
        return Reading(verdict=INVALID, problems=(f"cannot be read: {error}",))
    return _reading(store)


def _reading(store: Mapping[str, Any]) -> Reading:
    label = str(store.get("active_manifest"))
    manifest = store.get("manifests", {}).get(label, {})
    failures = [each for each in store.get("validation_status") or () if each.get("code") != _NOT_BROKEN]
    state = store.get("validation_state")
    verdict = TRUSTED if state == "Trusted" else VALID if state == "Valid" else INVALID
    if failures and {each.get("code") for each in failures} == {_ENDED}:
        verdict = EXPIRED
    assertions = {each.get("label"): each.get("data") for each in manifest.get("assertions") or ()}
    actions = [
        action
        for name, data in assertions.items()
        if str(name).startswith("c2pa.actions") and isinstance(data, Mapping)
        for action in data.get("actions") or ()
    ]
    own = assertions.get(CLIP)
    return Reading(
        verdict=verdict,
        manifest=label,
        problems=tuple(f"{each.get('explanation')} ({each.get('code')})" for each in failures),
        signer=manifest.get("signature_info") or {},
        says={
            "title": manifest.get("title"),
            "made_with": [
                {name: agent.get(name) for name in ("name", "version")}
                for agent in manifest.get("claim_generator_info") or ()
            ],
            "actions": actions,
        },
        clip=own if isinstance(own, Mapping) else {},
    )
