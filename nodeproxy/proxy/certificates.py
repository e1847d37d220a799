"""The worker's certificates: an identity of this node → the TLS contexts of its pods.  Keys are in memory only."""

from __future__ import annotations

import ssl

from nodeproxy.identity.tls import client_context, server_context
from nodeproxy.model.messages import CertificateIssued


class Contexts:
    """What one certificate serves for; contexts are made when first needed."""

    __slots__ = ("_client", "_issued", "_server")

    def __init__(self, issued: CertificateIssued) -> None:
        self._issued = issued
        self._client: ssl.SSLContext | None = None
        self._server: ssl.SSLContext | None = None

    @property
    def client(self) -> ssl.SSLContext:
        """For tunnels that a pod of this identity opens."""
        if self._client is None:
            self._client = client_context(self._issued.chain, self._issued.key, self._issued.roots)
        return self._client

    @property
    def server(self) -> ssl.SSLContext:
        """For tunnels that arrive at a pod of this identity."""
        if self._server is None:
            self._server = server_context(self._issued.chain, self._issued.key, self._issued.roots)
        return self._server


class Certificates:
    """The newest certificate of each identity; tunnels that stand keep the one they were made with."""

    def __init__(self) -> None:
        self._contexts: dict[str, Contexts] = {}

    def put(self, issued: CertificateIssued) -> None:
        """A certificate came, the first or a newer one."""
        self._contexts[issued.identity] = Contexts(issued)

    def drop(self, identity: str) -> None:
        """The identity has no pod here any more."""
        self._contexts.pop(identity, None)

    def get(self, identity: str) -> Contexts | None:
        """The contexts of `identity`, or None."""
        return self._contexts.get(identity)
