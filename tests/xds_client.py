"""A client of delta xDS written with plain gRPC, for tests of servers: nodeproxy's controller and istiod.

It speaks as ztunnel does: the first requests, and each response is acknowledged as it is taken.  Calls block, with a deadline.
It reads one response for each that is asked for: one that stops asking is a client that stops reading.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

import grpc

from nodeproxy.proto import authorization_pb2, discovery_pb2, workload_pb2
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD, WILDCARD

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
MAX_MESSAGE_BYTES = 200 << 20  # ztunnel's

Request = discovery_pb2.DeltaDiscoveryRequest
Response = discovery_pb2.DeltaDiscoveryResponse


def channel(target: str, root: Path | None = None, **options: int | str) -> grpc.Channel:
    """root: PEM file of who signs the server's certificate; without one, plain text."""
    arguments: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    arguments += [(f"grpc.{name}", value) for name, value in options.items()]
    if root is None:
        return grpc.insecure_channel(target, options=arguments)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(root.read_bytes()), options=arguments)


class StreamEnded(Exception):
    """The server ended the stream."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details = code, details


class XdsClient:
    """One stream.  token: sent as bearer.  `resources`: what it has, by type and name; `versions` likewise."""

    def __init__(
        self, channel: grpc.Channel, *, token: str = "", node: str = "", metadata: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.resources: dict[str, dict[str, discovery_pb2.Resource]] = {
            type_url: {} for type_url in (ADDRESS, AUTHORIZATION, NODE_POD, MESH_NAMESPACE)
        }
        self.responses = 0
        self._node = node
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._reading = False
        headers = [*metadata, *([("authorization", f"Bearer {token}")] if token else [])]
        self._call = channel.stream_stream(METHOD)(iter(self._requests.get, None), metadata=headers)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> XdsClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)
        self._wanted.release()
        self._reader.join()

    def _read(self) -> None:
        while self._wanted.acquire():
            try:
                self._responses.put(next(self._call))
            except (grpc.RpcError, StopIteration) as exc:
                self._responses.put(exc)
                return

    # What is sent

    def send_bytes(self, data: bytes) -> None:
        self._requests.put(data)

    def finish(self) -> None:
        """End the client's side of the stream."""
        self._requests.put(None)

    def send(
        self,
        type_url: str,
        subscribe: Iterable[str] = (),
        unsubscribe: Iterable[str] = (),
        *,
        versions: Mapping[str, str] | None = None,
        nonce: str = "",
        error: str = "",
    ) -> None:
        request = Request(
            type_url=type_url,
            resource_names_subscribe=subscribe,
            resource_names_unsubscribe=unsubscribe,
            initial_resource_versions=versions or {},
            response_nonce=nonce,
        )
        if error:
            request.error_detail.message = error
        self.send_bytes(request.SerializeToString())

    def begin(self, type_url: str, *, on_demand: bool = False, versions: Mapping[str, str] | None = None) -> None:
        """ztunnel's first request of a type."""
        names = [WILDCARD] if on_demand else []
        request = Request(
            type_url=type_url,
            resource_names_subscribe=names,
            resource_names_unsubscribe=names,
            initial_resource_versions=versions or {},
        )
        request.node.id = f"ztunnel~10.0.0.1~ztunnel-{self._node}.istio-system~istio-system.svc.cluster.local"
        request.node.metadata.update({"NODE_NAME": self._node, "NAMESPACE": "istio-system"})
        self.send_bytes(request.SerializeToString())

    def wildcard(self) -> None:
        """Everything, of both types."""
        self.begin(ADDRESS)
        self.begin(AUTHORIZATION)

    def acknowledge(self, response: Response, error: str = "") -> None:
        self.send(response.type_url, nonce=response.nonce, error=error)

    # What comes

    def receive(self, timeout_s: float = 20.0) -> Response:
        """The next response, neither acknowledged nor kept.  TimeoutError; `StreamEnded` when there is none any more."""
        return Response.FromString(self.receive_bytes(timeout_s))

    def receive_bytes(self, timeout_s: float = 20.0) -> bytes:
        if not self._reading:
            self._reading = True
            self._wanted.release()
        try:
            got = self._responses.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no response within {timeout_s} s") from None
        if isinstance(got, Exception):
            self._responses.put(got)
            code, details = (got.code(), got.details()) if isinstance(got, grpc.Call) else (grpc.StatusCode.OK, "")
            raise StreamEnded(code, details or "")
        self._reading = False
        return got

    def take(self, timeout_s: float = 20.0, *, error: str = "") -> Response:
        """The next response: kept and acknowledged, or rejected if there is an `error`."""
        response = self.receive(timeout_s)
        self.keep(response)
        self.acknowledge(response, error)
        return response

    def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Take responses until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self.take(max(0.0, deadline - time.monotonic()))

    def ended(self, timeout_s: float = 20.0) -> StreamEnded:
        """How the stream ends, whatever comes before that."""
        try:
            while True:
                self.receive_bytes(timeout_s)
        except StreamEnded as exc:
            return exc

    def keep(self, response: Response) -> None:
        self.responses += 1
        kept = self.resources[response.type_url]
        for resource in response.resources:
            kept[resource.name] = resource
        for name in response.removed_resources:
            kept.pop(name, None)

    def versions(self, type_url: str) -> dict[str, str]:
        """What a later stream may resume with."""
        return {name: resource.version for name, resource in self.resources[type_url].items()}

    def workload(self, uid: str) -> workload_pb2.Workload:
        return workload_pb2.Address.FromString(self.resources[ADDRESS][uid].resource.value).workload

    def service(self, key: str) -> workload_pb2.Service:
        return workload_pb2.Address.FromString(self.resources[ADDRESS][key].resource.value).service

    def policy(self, key: str) -> authorization_pb2.Authorization:
        return authorization_pb2.Authorization.FromString(self.resources[AUTHORIZATION][key].resource.value)
