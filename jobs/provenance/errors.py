"""Why a video cannot be signed, or its manifest not be read.

ProvenanceError         the message says what, and what to do
|-- CertificateError    a certificate or key that cannot sign
`-- SigningError        a video that could not be signed, or does not read back as signed
"""

from __future__ import annotations


class ProvenanceError(Exception):
    """Something about the manifest in a video; the message says what, and what to do."""


class CertificateError(ProvenanceError):
    """A certificate or key that cannot be read, do not belong together, or may not sign videos."""


class SigningError(ProvenanceError):
    """A video could not be signed, or what was written does not read back as signed."""
