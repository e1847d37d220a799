"""Which identities this node needs certificates for, and handing them to the workers.

Invariant: a worker that has a pod has, or gets, the certificate of that pod's identity as the state names it now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from nodeproxy.identity.certificate import CertificateAuthority, IssuedCertificate
from nodeproxy.identity.manager import CertificateManager
from nodeproxy.model.messages import CertificateDropped, CertificateIssued


class Identities:
    """`broadcast` reaches all workers."""

    def __init__(self, authority: CertificateAuthority, broadcast: Callable[[msgspec.Struct], None]) -> None:
        self._broadcast = broadcast
        self._issued: dict[str, IssuedCertificate] = {}
        self._roots = b""
        self._by_pod: dict[str, str] = {}
        self.manager = CertificateManager(
            authority, on_certificate=self._on_certificate, on_dropped=self._on_dropped, on_roots=self._on_roots
        )

    def assign(self, pods: Iterable[tuple[str, str]]) -> None:
        """The pods of this node, each (uid, identity).  New identities are wanted, those that no pod has any more are dropped."""
        wanted = dict(pods)
        for uid, identity in wanted.items():
            if self._by_pod.get(uid) != identity:
                self.manager.want(identity, uid)
        for uid, identity in self._by_pod.items():
            if wanted.get(uid) != identity:
                self.manager.unwant(identity, uid)
        self._by_pod = wanted

    def messages(self) -> list[CertificateIssued]:
        """What a new worker must be told."""
        return [self._message(issued) for issued in self._issued.values()] if self._roots else []

    def missing(self) -> list[str]:
        """Identities of this node's pods that have no certificate."""
        return sorted({identity for identity in self._by_pod.values() if identity not in self._issued})

    def valid_until(self, identity: str) -> float:
        """When the certificate of `identity` expires, seconds since the epoch; 0.0 if there is none."""
        issued = self._issued.get(identity)
        return issued.not_after if issued else 0.0

    def _on_certificate(self, issued: IssuedCertificate) -> None:
        self._issued[issued.identity] = issued
        if self._roots:
            self._broadcast(self._message(issued))

    def _on_dropped(self, identity: str) -> None:
        self._issued.pop(identity, None)
        self._broadcast(CertificateDropped(identity))

    def _on_roots(self, roots: bytes) -> None:
        self._roots = roots
        for message in self.messages():
            self._broadcast(message)

    def _message(self, issued: IssuedCertificate) -> CertificateIssued:
        return CertificateIssued(issued.identity, issued.chain_pem, issued.key_pem, self._roots)
