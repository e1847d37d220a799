"""The pods of a cluster, as the API server has them: what is read of each, and how lists are fetched.

Invariant: a list is read in pages, so that no answer is larger than the client takes.  It must not know agents.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import msgspec

from nodeproxy.errors import ClusterError
from nodeproxy.kube import answers
from nodeproxy.kube.client import KubeClient
from nodeproxy.translate.names import DATAPLANE_MODE
from nodeproxy.translate.objects import Pod
from nodeproxy.translate.pods import addresses_of, is_healthy, shape_of

_PAGE = 500  # objects; some 5 MB of pods, as kubectl asks
_TYPES = {"pod": "workload"}  # what the mesh calls by the pod itself is a StatefulSet's or a DaemonSet's, say
_ENDED = ("Succeeded", "Failed")


class FoundPod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod.  node: "" until it is scheduled.
    workload: "deployment/name", "workload/name" for kinds that the mesh has no word for, "" if nothing made it.
    mode: its label istio.io/dataplane-mode.  created: RFC 3339, which sorts as time does.
    """

    namespace: str
    name: str
    node: str = ""
    phase: str = ""
    ready: bool = False
    leaving: bool = False
    host_network: bool = False
    addresses: tuple[str, ...] = ()
    workload: str = ""
    mode: str = ""
    created: str = ""

    @property
    def key(self) -> str:
        """ "namespace/name"."""
        return f"{self.namespace}/{self.name}"

    @property
    def ended(self) -> bool:
        """Whether it runs no more, as a Job's."""
        return self.phase in _ENDED


async def list_pods(client: KubeClient, namespace: str = "", *, labels: str = "", fields: str = "") -> list[FoundPod]:
    """Those of a namespace, or of all.  labels, fields: selectors.  Raises ClusterError."""
    path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
    query = {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
    found = []
    async for raw in _items(client, path, query):
        try:
            found.append(found_pod(msgspec.json.decode(raw, type=Pod)))
        except msgspec.MsgspecError as exc:
            raise ClusterError(f"{path}: the API server has a pod that can't be read: {exc}") from exc
    return found


async def list_nodes(client: KubeClient) -> list[str]:
    """The nodes' names.  Raises ClusterError."""
    path = "/api/v1/nodes"
    return [answers.metadata(raw, path).name async for raw in _items(client, path, {})]


async def _items(client: KubeClient, path: str, query: Mapping[str, str]) -> AsyncGenerator[msgspec.Raw, None]:
    """Item by item, for a page is ten times what is kept of it."""
    more = ""
    while True:
        asked = {**query, "limit": f"{_PAGE}", **({"continue": more} if more else {})}
        page = answers.page(await client.request("GET", path, query=asked), path)
        for item in page.items or ():
            yield item
        more = page.metadata.continue_
        if not more:
            return


def found_pod(pod: Pod) -> FoundPod:
    """What is kept of a pod."""
    shape = shape_of(pod)
    return FoundPod(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        node=pod.spec.node_name,
        phase=pod.status.phase,
        ready=is_healthy(pod),
        leaving=pod.metadata.deletion_timestamp is not None,
        host_network=pod.spec.host_network,
        addresses=addresses_of(pod),
        workload=f"{_TYPES.get(shape.workload_type, shape.workload_type)}/{shape.workload_name}" if shape.workload_name else "",
        mode=pod.metadata.labels.get(DATAPLANE_MODE, ""),
        created=pod.metadata.creation_timestamp or "",
    )
