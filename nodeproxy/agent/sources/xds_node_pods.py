"""What an xDS source says of this node's pods, into the store and then into the roster.

Invariant: what can be used of a response is applied, the rest is told; what can't be understood stays as it was.
It must not know what becomes of a pod.
"""

from __future__ import annotations

import asyncio

from nodeproxy.agent.pods.roster import Roster, namespace_meta, pod_meta
from nodeproxy.agent.sources.xds_apply import MAX_BATCH, Outcome, Sink, XdsChange
from nodeproxy.agent.sources.xds_kept import version_meta
from nodeproxy.agent.sources.xds_rejected import RejectedResources
from nodeproxy.errors import ResourceError
from nodeproxy.model.delta import Delta
from nodeproxy.model.node_pod import MeshNamespace, NodePod
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.decode import decode_mesh_namespace, decode_node_pod
from nodeproxy.xds.delta_client import MAX_NAMED, Rejected
from nodeproxy.xds.message import Response
from nodeproxy.xds.names import MAX_NAME_BYTES, MESH_NAMESPACE, NODE_POD

# In the order in which they are asked for: whoever knows all pods knows the namespaces.
NODE_TYPES = (MESH_NAMESPACE, NODE_POD)

_Named = NodePod | MeshNamespace


class NodePodsApplier:
    """Applies one response after the other."""

    def __init__(self, sink: Sink, rejected: RejectedResources, roster: Roster) -> None:
        self._sink = sink
        self._rejected = rejected
        self._roster = roster

    async def apply(self, response: Response) -> Outcome:
        """Apply what can be used.  Raises StateError if it can't be written."""
        outcome = Outcome()
        found: dict[str, tuple[_Named, str]] = {}
        given: set[str] = set()
        for resource in response.resources():
            try:
                if isinstance(resource, ResourceError):
                    raise resource
                given.add(resource.name)
                found[resource.name] = _decode(response.type_url, resource), resource.version
            except ResourceError as exc:
                name = exc.name if isinstance(resource, ResourceError) else resource.name[:MAX_NAME_BYTES]
                self._reject(response.type_url, Rejected(name, exc.reason, str(exc)), outcome)
            else:
                self._rejected.clear(response.type_url, resource.name)
            if len(found) >= MAX_BATCH:
                await self._write(response.type_url, found, [])
                found = {}
        # What is both given and removed stays, as with addresses.
        removed = [name for name in response.removed if name not in given and 0 < len(name.encode()) <= MAX_NAME_BYTES]
        for name in removed:
            self._rejected.clear(response.type_url, name)
        await self._write(response.type_url, found, removed)
        return outcome

    async def settled(self) -> None:
        """All pods of the node were told.  Raises StateError."""
        if not self._roster.received:
            await self._sink.keep(self._roster.SETTLED)
            self._roster.settled()

    async def _write(self, type_url: str, found: dict[str, tuple[_Named, str]], removed: list[str]) -> None:
        if not found and not removed:
            return
        pods = [each for each, _ in found.values() if isinstance(each, NodePod)]
        namespaces = [each for each, _ in found.values() if isinstance(each, MeshNamespace)]
        meta = dict(version_meta(type_url, name, version) for name, (_, version) in found.items())
        meta |= dict(version_meta(type_url, name, None) for name in removed)
        meta |= dict(pod_meta(pod.key, pod) for pod in pods)
        meta |= dict(namespace_meta(namespace.name, namespace) for namespace in namespaces)
        forget = pod_meta if type_url == NODE_POD else namespace_meta
        meta |= dict(forget(name, None) for name in removed)
        await self._sink.apply(XdsChange(Delta(), meta))
        if type_url == NODE_POD:
            self._roster.pods_written(pods, removed)
        else:
            self._roster.namespaces_written(namespaces, removed)
        await asyncio.sleep(0)

    def _reject(self, type_url: str, rejected: Rejected, outcome: Outcome) -> None:
        self._rejected.add(type_url, rejected, outcome.count)
        outcome.count += 1
        if len(outcome.rejected) < MAX_NAMED:
            outcome.rejected.append(rejected)


def _decode(type_url: str, resource: discovery_pb2.Resource) -> _Named:
    if resource.resource.type_url != type_url:
        raise ResourceError("wrong_type", f"it is a {resource.resource.type_url[:200]!r} in a response of {type_url!r}")
    if not 0 < len(resource.name.encode()) <= MAX_NAME_BYTES:
        raise ResourceError("name", f"its name is empty or has more than {MAX_NAME_BYTES} bytes")
    raw = resource.resource.value
    found: _Named = decode_node_pod(raw) if type_url == NODE_POD else decode_mesh_namespace(raw)
    own = found.key if isinstance(found, NodePod) else found.name
    if own != resource.name:
        raise ResourceError("name_mismatch", f"it calls itself {own[:200]!r}")
    return found
