"""A small shop of pods that the tests of commands and of telemetry look at."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

from nodeproxy.linux.netns import inside
from tests.mesh.attempts import Greeter, start_fast
from tests.mesh.cluster import TIMEOUT_S, Cluster

PORT, DENIED_PORT = 7200, 7201
SERVICE = "web.shop.svc.cluster.local"
HAND = "Kubernetes//Pod/shop/hand"


@contextlib.contextmanager
def shop() -> Iterator[Cluster]:
    """Node 0 logs JSON, node 1 text.  "hand" is a pod of node 0 that the mesh file knows as a workload outside the mesh."""
    cluster = Cluster()
    with contextlib.ExitStack() as closing:
        closing.callback(cluster.close)
        cluster.pod(0, "client", canonicalName="client-app", canonicalRevision="v2", locality={"region": "r1", "zone": "z1"})
        for node, name in ((0, "near"), (1, "server")):
            pod = cluster.pod(node, name)
            closing.callback(Greeter(pod.host, (PORT, DENIED_PORT)).close)
        hand = cluster.lab.pod(0, "hand")
        closing.callback(Greeter(hand, (PORT,)).close)
        entry = {"uid": HAND, "name": "hand", "namespace": "shop", "serviceAccount": "hand", "node": "node0"}
        cluster.extra_workloads.append({**entry, "workloadIps": list(hand.addresses)})
        cluster.service(SERVICE, "10.96.0.10", {80: PORT}, [cluster.pods["server"]])
        match = {"destinationPorts": [DENIED_PORT]}
        cluster.policies.append(
            {"name": "no-port", "namespace": "shop", "scope": "Namespace", "action": "Deny", "rules": [[[match]]]}
        )
        cluster.agents[1].arguments = ["--log-format", "text"]
        yield start_fast(cluster)


def asked_over_tcp(
    mesh: Cluster, port: int, method: str, path: str, token: str | None = None, body: Any = None
) -> tuple[int, str]:
    with inside(mesh.lab.nodes[0].netns_fd):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        connection.connect()
    with contextlib.closing(connection):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
