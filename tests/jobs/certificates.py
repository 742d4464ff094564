"""Certificates and keys as users have them, good and bad ones, made for a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SIGNING = ExtendedKeyUsageOID.EMAIL_PROTECTION
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
"""A usage with which nothing may be signed."""
KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "rsa1024": lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),
    "curve": lambda: ec.generate_private_key(ec.SECP256K1()),
}


def make_pair(
    folder: Path, name: str = "mine", *, kind: str = "es256", usage=SIGNING, begins_h: float = -1, ends_h: float = 2000
) -> tuple[Path, Path]:
    """Writes NAME.pem, with its authority behind it, and NAME.key; also NAME-authority.pem. Hours are from now."""
    now = datetime.now(UTC)
    authority_key, key = KEYS["es256"](), KEYS[kind]()

    def built(subject: str, public, *, ca: bool) -> x509.CertificateBuilder:
        use = {"digital_signature": not ca, "key_cert_sign": ca, "crl_sign": ca}
        rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("Authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(hours=begins_h))
            .not_valid_after(now + timedelta(hours=ends_h))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**use, **dict.fromkeys(rest, False), decipher_only=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    root = built("Authority", authority_key.public_key(), ca=True).sign(authority_key, hashes.SHA256())
    own = built("Studio \x1b[31m", key.public_key(), ca=False).add_extension(
        x509.ExtendedKeyUsage([usage]), critical=False
    )
    certificate, secret = folder / f"{name}.pem", folder / f"{name}.key"
    pem = serialization.Encoding.PEM
    certificate.write_bytes(own.sign(authority_key, hashes.SHA256()).public_bytes(pem) + root.public_bytes(pem))
    (folder / f"{name}-authority.pem").write_bytes(root.public_bytes(pem))
    # As openssl writes keys of curves: not the form that the C2PA library reads.
    form = serialization.PrivateFormat.PKCS8 if kind == "ed25519" else serialization.PrivateFormat.TraditionalOpenSSL
    secret.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    secret.chmod(0o600)
    return certificate, secret


def locked(key: Path) -> Path:
    """Writes the key beside itself, locked by a password."""
    held = serialization.load_pem_private_key(key.read_bytes(), password=None)
    path = key.with_suffix(".locked")
    lock = serialization.BestAvailableEncryption(b"word")
    path.write_bytes(held.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    return path


def named(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
