"""The certificate of the controller's own gRPC port: signed by its CA, renewed at half of its life and with each change of keys.

gRPC asks for it before each handshake, in threads of its own, so a new one takes effect with the next connection and ends none.
Invariant: what can't be renewed is served on; a failure is logged and tried again with the next connection.  It must not know
which services are behind the port.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

import grpc

from nodeproxy.controller.ca.keys import CaKeys
from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import LIFETIME_S

log = logging.getLogger(__name__)

SERVICE = "nodeproxy-controller"


def dns_names(
    namespace: str, *, service: str = SERVICE, cluster_domain: str = "cluster.local", more: Sequence[str] = ()
) -> list[str]:
    """The names that clients reach the controller by.  more: others, as "istiod.istio-system.svc"."""
    base = f"{service}.{namespace}"
    return [*dict.fromkeys((service, base, f"{base}.svc", f"{base}.svc.{cluster_domain}", *more))]


class ServingCertificate:
    """Key and certificate of the port.

    keys: the CA's as they are now, called from any thread.  names: DNS names, at least one.  clock: seconds since the epoch.
    Raises IdentityError if the first certificate can't be made; `CaStore.load` comes before.
    """

    def __init__(
        self,
        keys: Callable[[], CaKeys | None],
        names: Sequence[str],
        *,
        lifetime_s: float = LIFETIME_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._names = tuple(names)
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._lock = threading.Lock()
        self._signed_by: CaKeys | None = None
        self._renew_at = self._not_after = 0.0
        self._first = self._make(keys())

    def credentials(self) -> grpc.ServerCredentials:
        """For `grpc.aio.Server.add_secure_port`."""
        # "or None for no change" (its docstring), which its type does not say.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self.fetch)
        return grpc.dynamic_ssl_server_credentials(self._first, fetch, require_client_authentication=False)

    def not_after(self) -> float:
        """When the present certificate ends, seconds since the epoch."""
        return self._not_after

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Another certificate if one is due, None to go on with the last."""
        with self._lock:
            keys = self._keys()
            if keys is self._signed_by and self._clock() < self._renew_at:
                return None
            try:
                return self._make(keys)
            except IdentityError as exc:
                log.error("the controller's serving certificate can't be renewed: %s; the last one stays in use", exc)
                return None

    def _make(self, keys: CaKeys | None) -> grpc.ServerCertificateConfiguration:
        if keys is None:
            raise IdentityError("the CA has no key yet, and nothing else signs the controller's own certificate")
        key, now = pki.new_key(), self._clock()
        leaf = pki.make_serving(self._names, key.public_key(), keys.certificate, keys.key, now, self._lifetime_s)
        self._not_after = leaf.not_valid_after_utc.timestamp()
        self._renew_at = now + (self._not_after - now) / 2
        self._signed_by = keys
        chain = pki.certificate_pem(leaf) + keys.chain_pem()
        return grpc.ssl_server_certificate_configuration([(pki.key_pem(key), chain)])
