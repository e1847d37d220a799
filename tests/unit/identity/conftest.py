"""Certificates that no CA would make, and TLS handshakes in memory, for the tests of identity."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import LocalCA

BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass
class Material:
    """What one side of a handshake loads."""

    chain: bytes
    key: bytes
    roots: bytes


@dataclass
class Ends:
    """The two sides of a handshake and how it ended on each."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    to_client: ssl.MemoryBIO
    to_server: ssl.MemoryBIO
    errors: dict[str, ssl.SSLError] = field(default_factory=dict)

    def step(self) -> None:
        """Each side once, as far as it comes."""
        for name, tls in (("client", self.client), ("server", self.server)):
            if name in self.errors:
                continue
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                self.errors[name] = error

    def read(self, name: str) -> None:
        """In TLS 1.3 a client learns of the server's refusal by its first read."""
        try:
            getattr(self, name).read(1)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self.errors[name] = error


def shake(client: ssl.SSLContext, server: ssl.SSLContext) -> Ends:
    """A whole handshake over memory; the errors of both sides are in the result."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = Ends(
        client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True), to_client, to_server
    )
    for _ in range(3):
        ends.step()
    if not ends.errors.get("client"):
        ends.read("client")
    return ends


@dataclass
class Forger:
    """Signs whatever is asked for, with a CA's own key."""

    ca: LocalCA

    def good(self, identity: str) -> Material:
        issued = self.ca.issue(identity)
        return Material(issued.chain_pem, issued.key_pem, self.ca.roots_pem)

    def forge(
        self,
        names: list[x509.GeneralName],
        *,
        begin: float = 0.0,
        end: float = 2e9,
        usages: tuple[x509.ObjectIdentifier, ...] = BOTH,
        raw_names: bytes = b"",
    ) -> Material:
        key = pki.new_key()
        builder = x509.CertificateBuilder(
            self.ca.signing_root.subject,
            x509.Name([]),
            key.public_key(),
            x509.random_serial_number(),
            datetime.fromtimestamp(begin, UTC),
            datetime.fromtimestamp(end, UTC),
        ).add_extension(pki.authority_key_identifier(self.ca.signing_root), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if raw_names:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, raw_names), critical=True
            )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        leaf = builder.sign(self.ca.key, hashes.SHA256())
        return Material(pki.certificate_pem(leaf), pki.key_pem(key), self.ca.roots_pem)


@pytest.fixture
def ca(tmp_path: Path) -> LocalCA:
    return LocalCA.create(tmp_path / "ca")


@pytest.fixture
def forger(ca: LocalCA) -> Forger:
    return Forger(ca)


@pytest.fixture
def other_forger(tmp_path: Path) -> Forger:
    """A CA that nobody here trusts."""
    return Forger(LocalCA.create(tmp_path / "other"))


@pytest.fixture
def handshake() -> Callable[[ssl.SSLContext, ssl.SSLContext], Ends]:
    return shake
