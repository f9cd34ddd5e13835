"""Certificates of the tests' own, to sign results with."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Identity:
    """A chain of certificates, its key, and the authority that others have to trust: PEM files."""

    cert: Path
    key: Path
    authority: Path


def make_identity(folder: Path, kind: str = "es256", *, days: int = 30) -> Identity:
    """Write a certificate for `Faceswap Tests`, signed by an authority of its own, that ends in so many days."""
    authority_key, key = _key("es256"), _key(kind)
    authority = _name("Faceswap Test Authority")
    root = _certificate(authority, authority, authority_key, authority_key, days=3650, is_authority=True)
    leaf = _certificate(_name("Faceswap Tests"), authority, key, authority_key, days=days, is_authority=False)
    pem = serialization.Encoding.PEM
    paths = Identity(folder / "chain.pem", folder / "key.pem", folder / "authority.pem")
    paths.cert.write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    paths.authority.write_bytes(root.public_bytes(pem))
    plain = serialization.NoEncryption()
    paths.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return paths


def _key(kind: str) -> PrivateKey:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "ps256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP384R1() if kind == "es384" else ec.SECP256R1())


def _name(common: str) -> x509.Name:
    names = {NameOID.COUNTRY_NAME: "DE", NameOID.ORGANIZATION_NAME: "Faceswap", NameOID.COMMON_NAME: common}
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in names.items()])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, signing_key: PrivateKey, *, days: int, is_authority: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    usage |= {"key_cert_sign": True, "crl_sign": True} if is_authority else {"digital_signature": True}
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    if not is_authority:
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purposes, critical=False)
    return builder.sign(signing_key, hashes.SHA256())
