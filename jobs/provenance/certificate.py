"""The certificate and key that sign videos: read and checked, or made for tries.

A key is a secret. It is read from its file where it is used, and is in no setting, pickle, log or record.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobs.provenance.errors import CertificateError

FOR_TRIES = "pab-pipeline tries, trusted by nobody"
"""Who made a certificate for tries, as the certificate itself says."""
CERTIFICATE_FILE, KEY_FILE = "c2pa-certificate.pem", "c2pa-key.pem"
_TRIES_DAYS = 365
_LEFT_DAYS = 30
"""A certificate for tries that ends sooner is made anew; of the user's own the user is warned."""
_MAX_BYTES = 1 << 20
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_MIN_RSA_BITS = 2048
_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningPair:
    """A certificate with its chain, and its key, both as PEM. `algorithm`: as C2PA names it. `sha256`: of the certificate.

    `subject`: whom the certificate names. `for_tries`: whether `make_pair_for_tries` made it.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    algorithm: str
    sha256: str
    subject: str
    ends: datetime
    for_tries: bool

    @property
    def facts(self) -> dict[str, object]:
        """What a record says of it."""
        return {"sha256": self.sha256, "subject": self.subject, "made_for_tries": self.for_tries}


def read_pair(certificate: Path, key: Path, *, now: datetime | None = None) -> SigningPair:
    """Reads a certificate, its own first and then its chain, and its key. `now`: in UTC, by default the clock's.

    Raises CertificateError if a file cannot be read, the two do not belong together, or the certificate is not valid now.
    """
    chain = _read_chain(certificate)
    private = _read_key(key)
    own, now = chain[0], now or datetime.now(UTC)
    if _public_bytes(own) != _public_bytes(private):
        raise CertificateError(
            f"certificate {certificate} and key {key} do not belong together; name the key that this certificate was made "
            "for. In a file with several certificates the signer's own comes first"
        )
    begins, ends = own.not_valid_before_utc, own.not_valid_after_utc
    if not begins <= now < ends:
        word = "has expired" if now >= ends else "is not valid yet"
        raise CertificateError(
            f"certificate {certificate} {word}: it is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC; name "
            "one that is valid now"
        )
    return SigningPair(
        chain=b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain),
        # As PKCS #8, the one form that the C2PA library reads.
        key=private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        algorithm=_algorithm(private, key),
        sha256=own.fingerprint(hashes.SHA256()).hex(),
        subject=own.subject.rfc4514_string(),
        ends=ends,
        for_tries=_issuer(own) == FOR_TRIES,
    )


def warnings_of(pair: SigningPair, key: Path) -> list[str]:
    """Returns what a user should know of a pair that can sign: a key that others can read, an end that is near."""
    warnings: list[str] = []
    if key.stat().st_mode & _BY_OTHERS:
        warnings.append(f"key {key} can be read by other users of this machine; say: chmod 600 {key}")
    left = pair.ends - datetime.now(UTC)
    if left < timedelta(days=_LEFT_DAYS):
        warnings.append(
            f"the certificate ends on {pair.ends:%Y-%m-%d %H:%M} UTC: clips fail that would be signed after that, and from "
            "then on readers call all of its videos expired"
        )
    return warnings


def make_pair_for_tries(folder: Path) -> tuple[Path, Path]:
    """Makes a certificate and key for tries in a private folder, unless a good pair is there. Returns their paths.

    Its authority is made with it, and that key is thrown away, so nobody can trust it: readers call it untrusted, rightly.
    Raises CertificateError if the files cannot be written.
    """
    certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
    now = datetime.now(UTC)
    try:
        if read_pair(certificate, key).ends - now > timedelta(days=_LEFT_DAYS):
            return certificate, key
    except CertificateError:
        pass  # there is none, or it is of no use any more
    chain, private = _new_pair(now)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_private(key, private)
        _write_private(certificate, chain)
    except OSError as error:
        raise CertificateError(f"cannot write a certificate for tries into {folder}: {error}") from error
    return certificate, key


def _new_pair(now: datetime) -> tuple[bytes, bytes]:
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _name(FOR_TRIES)

    def begun(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.CertificateBuilder:
        usage = x509.KeyUsage(
            digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority,
            content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            # Clocks of nodes differ a little.
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=_TRIES_DAYS))
            .add_extension(
                x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True
            )
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    root = begun(authority, authority_key.public_key(), is_authority=True).sign(authority_key, hashes.SHA256())
    own = (
        begun(_name("videos of a try"), key.public_key(), is_authority=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    chain = own.public_bytes(pem) + root.public_bytes(pem)
    return chain, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, FOR_TRIES),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _write_private(path: Path, data: bytes) -> None:
    # Never there with another mode, and never half.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    temporary.replace(path)


def _read_chain(path: Path) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path, "certificate"))
    except ValueError as error:
        raise CertificateError(
            f"certificate {path} holds no certificate as PEM, which begins with -----BEGIN CERTIFICATE-----"
        ) from error


def _read_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(_read(path, "key"), password=None)
    except TypeError as error:
        raise CertificateError(
            f"key {path} is locked by a password, which jobs do not have; write it without one (openssl pkey -in ... -out "
            "...), readable by you alone"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        # Without the library's words, which could quote the file.
        raise CertificateError(
            f"key {path} holds no private key as PEM, which begins with -----BEGIN PRIVATE KEY-----"
        ) from error


def _read(path: Path, what: str) -> bytes:
    try:
        if not path.is_file():
            raise CertificateError(f"{what} {path} is no file here; name a PEM file that jobs can read too")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise CertificateError(f"{what} {path} cannot be read: {error.strerror or error}") from error


def _public_bytes(held: x509.Certificate | PrivateKeyTypes) -> bytes:
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return held.public_key().public_bytes(*form)


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return "ps256"
    raise CertificateError(
        f"key {path} is of a kind that C2PA does not take; needs one on the curves P-256, P-384 or P-521, an Ed25519 key, or "
        f"an RSA key of {_MIN_RSA_BITS} bits or more"
    )


def _issuer(certificate: x509.Certificate) -> str:
    found = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""
