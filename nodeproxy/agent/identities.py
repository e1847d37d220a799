"""Which identities this node needs certificates for, and handing them to the workers.

Invariant: a worker that has a pod has, or gets, the certificate of that pod's identity as the state names it now.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable

import msgspec

from nodeproxy.identity.certificate import CertificateAuthority, IssuedCertificate
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.identity.manager import CertificateManager
from nodeproxy.model.messages import CertificateDropped, CertificateIssued

_EXPECTED = ""  # in place of a pod's uid


class Identities:
    """`broadcast` reaches all workers."""

    def __init__(
        self, authority: CertificateAuthority, broadcast: Callable[[msgspec.Struct], None], kept: KeptCertificates | None = None
    ) -> None:
        self._broadcast = broadcast
        self._issued: dict[str, IssuedCertificate] = {}
        self._roots = b""
        self._by_pod: dict[str, str] = {}
        self._expected: set[str] = set()
        self._holders = 0
        self.manager = CertificateManager(
            authority, on_certificate=self._on_certificate, on_dropped=self._on_dropped, on_roots=self._on_roots, kept=kept
        )

    def assign(self, changed: Iterable[tuple[str, str]]) -> None:
        """Pods whose identity may have changed, each (uid, identity), "" for one that has left or is not in the state.

        New identities are wanted, then those that no pod has any more are dropped: what passes from pod to pod is kept.
        """
        over = []
        for uid, identity in changed:
            before = self._by_pod.pop(uid, "")
            if identity:
                self._by_pod[uid] = identity
            if before != identity:
                if identity:
                    self.manager.want(identity, uid)
                if before:
                    over.append((before, uid))
        for identity, uid in over:
            self.manager.unwant(identity, uid)

    def wanted(self) -> list[str]:
        """The identities of this node's pods."""
        return sorted(set(self._by_pod.values()))

    def expect(self, identities: Iterable[str]) -> None:
        """Have certificates for pods that are not this agent's yet."""
        for identity in identities:
            self._expected.add(identity)
            self.manager.want(identity, _EXPECTED)

    def expected_missing(self) -> bool:
        """Whether one of them is not there."""
        return not self._expected <= self._issued.keys()

    def expect_no_more(self) -> None:
        """What was expected has come, or does not come."""
        for identity in self._expected:
            self.manager.unwant(identity, _EXPECTED)
        self._expected.clear()

    @contextlib.asynccontextmanager
    async def beforehand(self, identities: Collection[str], timeout_s: float) -> AsyncIterator[None]:
        """Within, there are certificates for these, whoever has them; or the CA has not made them in time."""
        self._holders += 1
        holder = f"beforehand {self._holders}"
        for identity in identities:
            self.manager.want(identity, holder)
        try:
            if any(identity not in self._issued for identity in identities):
                waiting = [asyncio.ensure_future(self.manager.wait_certificate(identity)) for identity in identities]
                _, late = await asyncio.wait(waiting, timeout=timeout_s)
                for each in late:
                    each.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            yield
        finally:
            for identity in identities:
                self.manager.unwant(identity, holder)

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
