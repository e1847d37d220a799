"""A certificate as it travels from a CA to the workers, and what the agent asks of any CA.

Invariant: the private key is never part of what is printed or logged.  It must not know how a certificate is made.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class IssuedCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's certificate with its key.

    chain_pem: leaf first, then the intermediates.  not_before, not_after: seconds since the epoch.  serial: hexadecimal.
    """

    identity: str
    chain_pem: bytes
    key_pem: bytes
    not_before: float
    not_after: float
    serial: str

    def __repr__(self) -> str:
        return f"IssuedCertificate({self.identity}, serial {self.serial}, valid {self.not_before:.0f} to {self.not_after:.0f})"


class CertificateAuthority(Protocol):
    """What makes certificates: the local CA, or a client of istiod's."""

    async def issue(self, identity: str) -> IssuedCertificate:
        """A new key and certificate; IdentityError says why there is none and what to do."""
        ...

    def roots(self) -> bytes:
        """The trusted roots as they are now (PEM, one or several); b"" if they are not known before the first certificate.

        IdentityError if they can't be read.
        """
        ...

    def rotated(self) -> bool:
        """Whether to ask again now, ahead of renewal, as what vouches for the CA has changed; True once for each change."""
        ...

    async def close(self) -> None:
        """Let go of what is open."""
