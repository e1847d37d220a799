"""What an xDS server serves to a node of the mesh, as it is now: a plain client for comparisons, without nodeproxy's own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import grpc

from nodeproxy.proto.authorization_pb2 import Authorization
from nodeproxy.proto.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from nodeproxy.proto.workload_pb2 import Address, Service, Workload
from tests.cluster.istiod import AUDIENCE, NAMESPACE, NODE_AGENT, Istiod

AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"
ADDRESS = "type.googleapis.com/istio.workload.Address"
_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


class Served:
    """Keeps what is served of both types, by resource name."""

    def __init__(self, istiod: Istiod) -> None:
        self._resources: dict[str, dict[str, bytes]] = {AUTHORIZATION: {}, ADDRESS: {}}
        self._lock = threading.Lock()
        self._requests: queue.Queue[DeltaDiscoveryRequest | None] = queue.Queue()
        credentials = grpc.ssl_channel_credentials(istiod.roots().read_bytes())
        self._channel = grpc.secure_channel(istiod.address, credentials, [("grpc.max_receive_message_length", -1)])
        call = self._channel.stream_stream(
            _METHOD,
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        node = Node(id=f"ztunnel~10.0.0.1~ztunnel-1.{NAMESPACE}~{NAMESPACE}.svc.cluster.local")
        node.metadata.update({"NAME": "ztunnel-1", "NAMESPACE": NAMESPACE, "NODE_NAME": "n1"})
        for name in self._resources:
            self._requests.put(DeltaDiscoveryRequest(node=node, type_url=name))
        token = istiod.api.token(NAMESPACE, NODE_AGENT, audience=AUDIENCE)
        self._call = call(iter(self._requests.get, None), metadata=[("authorization", f"Bearer {token}")])
        self._thread = threading.Thread(target=self._read, args=(self._call,))
        self._thread.start()

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)
        self._thread.join()
        self._channel.close()

    def policies(self) -> dict[str, Authorization]:
        """By "namespace/name"."""
        with self._lock:
            found = [Authorization.FromString(value) for value in self._resources[AUTHORIZATION].values()]
        return {f"{each.namespace}/{each.name}": each for each in found}

    def workloads(self) -> dict[str, Workload]:
        """By uid."""
        with self._lock:
            found = [Address.FromString(value) for value in self._resources[ADDRESS].values()]
        return {each.workload.uid: each.workload for each in found if each.HasField("workload")}

    def services(self) -> dict[str, Service]:
        """By "namespace/hostname"."""
        with self._lock:
            found = [Address.FromString(value) for value in self._resources[ADDRESS].values()]
        return {f"{each.service.namespace}/{each.service.hostname}": each.service for each in found if each.HasField("service")}

    def _read(self, responses: Iterator[DeltaDiscoveryResponse]) -> None:
        try:
            for response in responses:
                with self._lock:
                    resources = self._resources[response.type_url]
                    for name in response.removed_resources:
                        resources.pop(name, None)
                    resources |= {each.name: each.resource.value for each in response.resources}
                self._requests.put(DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:  # type: ignore[attr-defined]
                raise
