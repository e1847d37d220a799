"""TLS as a peer may speak it that has no right to: certificates that no good CA would make, and the contexts that show them."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeproxy.identity import pki

CLIENT_ONLY = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER_ONLY = (ExtendedKeyUsageOID.SERVER_AUTH,)
DAY = timedelta(days=1)


@dataclass
class Signer:
    """Who signs: a root, or whatever claims to be one."""

    certificate: x509.Certificate
    key: pki.SigningKey
    above: bytes = b""  # what is sent after the leaf

    @classmethod
    def unknown(cls) -> Signer:
        """A root that nobody here trusts."""
        key = pki.new_key()
        return cls(pki.make_root(key, "cluster.local", datetime.now(UTC).timestamp()), key)


@dataclass
class Shown:
    """A certificate with its key, in PEM."""

    chain: bytes
    key: bytes
    certificate: x509.Certificate
    signing_key: pki.SigningKey

    def signer(self) -> Signer:
        """The leaf as if it were a CA."""
        return Signer(self.certificate, self.signing_key, self.chain)


def forge(
    signer: Signer,
    *names: str,
    usages: tuple[x509.ObjectIdentifier, ...] = CLIENT_ONLY + SERVER_ONLY,
    begin: timedelta = -DAY,
    end: timedelta = DAY,
) -> Shown:
    """A leaf with these URIs, valid from now + `begin` to now + `end`."""
    key, now = pki.new_key(), datetime.now(UTC)
    issuer, number = signer.certificate.subject, x509.random_serial_number()
    builder = (
        x509.CertificateBuilder(issuer, x509.Name([]), key.public_key(), number, now + begin, now + end)
        .add_extension(pki.authority_key_identifier(signer.certificate), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    if names:
        uris = [x509.UniformResourceIdentifier(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=True)
    leaf = builder.sign(signer.key, hashes.SHA256())
    return Shown(pki.certificate_pem(leaf) + signer.above, pki.key_pem(key), leaf, key)


def context(
    shown: Shown | None,
    *,
    server: bool = False,
    trusted: bytes = b"",
    alpn: str = "h2",
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A context that shows `shown`; it checks the other side only where it is told whom to trust."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED if trusted else ssl.CERT_NONE
    made.minimum_version = made.maximum_version = version
    if trusted:
        made.load_verify_locations(cadata=trusted.decode())
    if alpn:
        made.set_alpn_protocols([alpn])
    if shown is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(shown.key + shown.chain)
            file.flush()
            made.load_cert_chain(file.name)
    return made
