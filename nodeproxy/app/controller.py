"""`nodeproxy controller run`: one replica of the controller, put together from its parts, and its orderly end.

What is read of the cluster and what is served are every replica's; what is written is the leader's.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import Coroutine
from typing import Any

import grpc.aio
import uvloop
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from nodeproxy import __version__
from nodeproxy.app.process import set_up_logging
from nodeproxy.controller import status
from nodeproxy.controller.ca.authority import DEFAULT_SECRET, Ca
from nodeproxy.controller.ca.serving import dns_names
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.controller.endpoints import Endpoints
from nodeproxy.controller.leader import Leader
from nodeproxy.controller.metrics import ControllerCollector, ControllerParts
from nodeproxy.controller.node_proxies import NodeProxies
from nodeproxy.controller.placement import PodPlacement
from nodeproxy.controller.settings import ControllerConfig
from nodeproxy.controller.watches import Watches
from nodeproxy.controller.xds.ads import SERVER_OPTIONS, Ads
from nodeproxy.controller.xds.metrics import XdsMetrics
from nodeproxy.controller.xds.publisher import Publisher
from nodeproxy.kube.client import KubeClient
from nodeproxy.translate import objects
from nodeproxy.translate.names import AMBIENT, DATAPLANE_MODE
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.translator import Translator

log = logging.getLogger("nodeproxy")

# What streams get to end by themselves after SIGTERM: their clients are told, and connect to another replica.
DRAIN_S = 5.0


def run(config: ControllerConfig) -> int:
    """Serve until SIGTERM or SIGINT.  Raises what makes a start impossible; returns the exit status."""
    set_up_logging(config.log_format)
    uvloop.run(_serve(config))
    return 0


async def _serve(config: ControllerConfig) -> None:
    client = await KubeClient.connect(config.kubeconfig)
    try:
        await Controller(config, client).serve()
    finally:
        await client.close()


class Controller:
    """All parts of a replica."""

    def __init__(self, config: ControllerConfig, client: KubeClient) -> None:
        self._config = config
        self._registry = CollectorRegistry()
        mesh = MeshSettings(
            trust_domain=config.trust_domain,
            cluster_id=config.cluster_id,
            cluster_domain=config.cluster_domain,
            network=config.network,
            root_namespace=config.root_namespace,
        )
        self._translator = Translator(mesh)
        self._publisher = Publisher(XdsMetrics(self._registry))
        self._placement = PodPlacement()
        self._leader = Leader(client, config.namespace, f"{config.pod_name}_{uuid.uuid4()}")
        ca = CaSettings(
            trust_domain=config.trust_domain, trusted_node_accounts=config.node_accounts, root_overlap_s=config.root_overlap_s
        )
        self._node_proxies = NodeProxies(self._placement, ca)
        self._ca = Ca(
            client,
            self._placement,
            ca,
            namespace=config.namespace,
            lists=asyncio.Semaphore(1),
            secret=config.ca_secret or DEFAULT_SECRET,
            own=not config.ca_secret,
            audience=config.token_audience,
        )
        # Where node proxies run, in the mesh or not: they check this port by the roots.
        self._homes = {account.partition("/")[0] for account in config.node_accounts}
        self._status = status.StatusWriter(
            client,
            self._translator.notes,
            lambda kind, key: self._watches.path(kind, key),  # noqa: PLW0108 - it comes later
        )
        self._watches = Watches(
            client,
            self._translator,
            self._publisher,
            observers={
                "Pod": [self._placement.apply],
                "Namespace": [self._need_roots],
                **{kind: [_status_observer(self._status, kind)] for kind in status.KINDS},
            },
            synced={"Pod": self._placement.all_told},
        )
        self._endpoints = Endpoints()
        self._server: grpc.aio.Server | None = None
        self._stopping = asyncio.Event()

    async def serve(self) -> None:
        """Serve until a signal, or until a part fails."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        log.info("nodeproxy %s, controller of cluster %s", __version__, self._config.cluster_id)
        leads = self._leader.leads
        try:
            await self._serve_http()
            await self._run_until_stopped(self._watches.run(), self._ca.run(leads), self._status.run(leads), self._serve_grpc())
        finally:
            await self._end()

    def pending(self) -> list[str]:
        """What is waited for before this replica is ready."""
        waits = [f"all of kind {kind}" for kind in self._watches.unsynced()]
        if self._ca.store.keys is None:
            waits.append("the CA's key")
        elif self._server is None:
            waits.append(f"listening on {self._config.listen}")
        if self._stopping.is_set():
            waits.append("the end: it was told to stop")
        return waits

    async def _serve_http(self) -> None:
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(ControllerCollector(ControllerParts(self._watches, self._leader, self._placement, self._status)))
        self._registry.register(self._ca.collector())
        if self._config.metrics is not None:
            await self._endpoints.serve_metrics(self._registry, self._config.metrics)
        if self._config.ready is not None:
            await self._endpoints.serve_ready(self.pending, self._config.ready)

    async def _serve_grpc(self) -> None:
        """As soon as the CA has a key, since the port's certificate is of it; answers wait for the whole state by themselves."""
        await self._ca.load()
        config = self._config
        names = dns_names(config.namespace, cluster_domain=config.cluster_domain, more=config.serving_names)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((Ads(self._publisher, self._ca.callers.authenticate, self._node_proxies.node_of),))
        self._ca.open_port(server, str(config.listen), names)
        await server.start()
        self._server = server
        log.info("xDS and the CA listen on %s", config.listen)
        await server.wait_for_termination()

    async def _run_until_stopped(self, *parts: Coroutine[Any, Any, None]) -> None:
        leading = asyncio.create_task(self._leader.run(), name="leader")
        tasks = [leading, *(asyncio.create_task(part) for part in parts)]
        ending = asyncio.create_task(self._stopping.wait(), name="signal")
        await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
        self._stopping.set()
        log.info("ending: the Lease is released, and streams have %.0f s to end", DRAIN_S)
        leading.cancel()
        await asyncio.wait([leading])
        await self._leader.release()
        if self._server is not None:
            await self._server.stop(DRAIN_S)
        for task in (*tasks, ending):
            task.cancel()
        for outcome in await asyncio.gather(*tasks, ending, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _end(self) -> None:
        self._publisher.close()
        await self._ca.close()
        await self._endpoints.stop()

    def _need_roots(self, key: str, namespace: objects.Namespace | None) -> None:
        in_mesh = namespace is not None and namespace.metadata.labels.get(DATAPLANE_MODE) == AMBIENT
        self._ca.need(key, in_mesh or (namespace is not None and key in self._homes))


def _status_observer(writer: status.StatusWriter, kind: str) -> Any:
    return lambda key, resource: writer.observe(kind, key, resource)
