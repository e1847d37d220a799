"""The CA put together: what the controller's process starts, serves, asks and ends.

Invariant: there is a key before a port is opened (`load`).  It must not know what else the process does, nor who is the leader.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc

from nodeproxy.controller import callers, root_publisher
from nodeproxy.controller.ca_metrics import CaCollector, CaParts
from nodeproxy.controller.ca_rotation import Rotation
from nodeproxy.controller.ca_service import CertificateService
from nodeproxy.controller.ca_settings import CaSettings
from nodeproxy.controller.ca_store import POLL_S, CaStore
from nodeproxy.controller.callers import Callers
from nodeproxy.controller.placement import Placement
from nodeproxy.controller.root_publisher import RootConfigMap, RootPublisher
from nodeproxy.controller.serving import ServingCertificate
from nodeproxy.errors import ConfigError
from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.reflector import Reflector

DEFAULT_SECRET = "nodeproxy-ca"


class Ca:
    """The CA's parts.  In order: `load`, `open_port`, `run` in a task; at the end `close`, when the server has stopped.

    namespace: the controller's.  secret: where the key is; own: ours to make and change, False for cert-manager's and the like.
    roots_name: of the ConfigMaps.  lists: see `Reflector`.  clock: seconds since the epoch.
    """

    def __init__(
        self,
        client: KubeClient,
        placement: Placement,
        settings: CaSettings,
        *,
        namespace: str,
        lists: asyncio.Semaphore,
        secret: str = DEFAULT_SECRET,
        own: bool = True,
        audience: str = callers.DEFAULT_AUDIENCE,
        roots_name: str = root_publisher.DEFAULT_NAME,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.callers = Callers(client, audience=audience, clock=clock)
        self.store = CaStore(client, namespace, secret, settings.trust_domain, own=own, clock=clock)
        self.service = CertificateService(self.callers, placement, self.store.signing_keys, settings, clock=clock)
        self.publisher = RootPublisher(client, self._roots, name=roots_name)
        self.publisher.need(namespace, True)  # where the controller is, the node proxies are, and mount it
        self._namespace = namespace
        self._rotation = Rotation(self.store, settings, clock=clock)
        self._serving: ServingCertificate | None = None
        self._maps = Reflector(
            client,
            ["/api/v1/configmaps"],
            RootConfigMap,
            query=self.publisher.query(),
            on_change=self.publisher.observe,
            on_synced=self.publisher.observed_all,
            lists=lists,
        )
        self.store.on_change.append(lambda _: self.publisher.changed())

    def need(self, namespace: str, needed: bool) -> None:
        """Say whether a namespace is in the mesh, so that the roots are published there."""
        self.publisher.need(namespace, needed or namespace == self._namespace)

    async def load(self) -> None:
        """Wait until there is a key, however long."""
        await self.store.load()

    def open_port(self, server: grpc.aio.Server, address: str, names: Sequence[str]) -> int:
        """Serve certificates, and whatever else `server` has, on "host:port" in TLS as these DNS names; returns the port.

        IdentityError: there is no key, `load` was not awaited.  ConfigError: it can't listen there.
        """
        self._serving = ServingCertificate(lambda: self.store.keys, names)
        server.add_generic_rpc_handlers((self.service.handler(),))
        try:
            return server.add_secure_port(address, self._serving.credentials())
        except RuntimeError as exc:
            raise ConfigError(f"--listen {address}: the port is taken, or the address is another host's; give another") from exc

    def collector(self) -> CaCollector:
        """The metrics."""
        return CaCollector(CaParts(self.callers, self.service, self.store, self.publisher, lambda: self._serving))

    async def run(self, is_leader: Callable[[], bool], *, poll_s: float = POLL_S) -> None:
        """Follow the Secret and the published roots, and do what is the leader's while we are it; returns never."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._maps.run(), name="published roots")
            tasks.create_task(self.publisher.run(is_leader), name="root publisher")
            tasks.create_task(self.store.run(is_leader, self._rotation.rotate_if_due, poll_s=poll_s), name="CA secret")

    async def close(self) -> None:
        """End what callers wait for."""
        await self.callers.close()

    def _roots(self) -> bytes | None:
        return None if self.store.keys is None else self.store.keys.roots_pem()
