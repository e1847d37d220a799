"""Certificates for the tests of the CA, and what a peer that trusts a bundle makes of a chain."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from nodeproxy.identity import pki

NOW = float(int(time.time()))
DAY_S = 86_400.0
KEYS = [pki.new_key() for _ in range(3)]
RSA_KEY = rsa.generate_private_key(65537, 2048)


def ca_certificate(
    name: str,
    key: pki.SigningKey,
    issuer: x509.Certificate | None = None,
    issuer_key: pki.SigningKey | None = None,
    *,
    days: tuple[float, float] = (-1, 100),
    path_length: int | None = None,
    ca: bool = True,
) -> x509.Certificate:
    """A CA's certificate as others make it, self-signed without an issuer."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin, end = (datetime.fromtimestamp(NOW, UTC) + timedelta(days=day) for day in days)
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = (
        x509.CertificateBuilder(
            issuer.subject if issuer else subject, subject, key.public_key(), x509.random_serial_number(), begin, end
        )
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(pki.authority_key_identifier(issuer), critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(map(pki.certificate_pem, certificates))


def sec1(key: pki.SigningKey) -> bytes:
    """A key as cert-manager writes it: PKCS #1, or SEC 1."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def verifies(leaf: x509.Certificate, chain: Iterable[x509.Certificate], roots: Iterable[x509.Certificate], now_s: float) -> bool:
    """Whether a peer that trusts `roots` accepts the leaf as a client's."""
    verifier = PolicyBuilder().store(Store(list(roots))).time(datetime.fromtimestamp(now_s, UTC)).build_client_verifier()
    try:
        verifier.verify(leaf, list(chain))
    except VerificationError:
        return False
    return True
