"""A control plane that answers for names as istiod does, and tells how often it was asked for each."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Any

from nodeproxy.linux.netns import inside
from nodeproxy.proto import workload_pb2
from nodeproxy.xds.names import ADDRESS
from tests.mesh.cluster import Agent, Cluster, MeshPod
from tests.xds_server import ControlPlaneServer, Request, Stream


class _NameStream(Stream):
    """istiod's delta.go and workload.go, for addresses by name: it answers for what is new to it, by uid, address, service key or
    virtual address, a service with its endpoints; what it sends is watched by its own name, and nothing is told by another."""

    server: Istiod

    def receive(self, request: Request) -> None:
        if request.type_url != ADDRESS:
            super().receive(request)
            return
        self.requests.append(request)
        is_first = ADDRESS not in self.names
        mine = self.names.setdefault(ADDRESS, set())
        asked = (set(request.resource_names_subscribe) | set(request.initial_resource_versions)) - {"*"}
        dropped = set(request.resource_names_unsubscribe)
        is_news = is_first or bool(asked - mine) or bool(dropped & mine)
        mine |= asked
        mine -= dropped
        if request.response_nonce or not is_news:
            return
        asked -= dropped
        self.server.asked.update(asked)
        if self.server.is_silent and not is_first:
            return
        found: set[str] = set()
        missing = set()
        for name in asked:
            answer = self.server.look_up(name)
            found |= answer
            if not answer:
                missing.add(name)
        mine |= found
        known = request.initial_resource_versions
        self.send(ADDRESS, [name for name in found if known.get(name) != self.server.resources[ADDRESS][name][1]], missing)


class Istiod(ControlPlaneServer):
    """asked: how often each name was asked for.  is_silent: it takes questions and does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.stream_type = _NameStream
        self.identifier = '{"Component":"istiod","ID":"istiod-0","Info":{"version":"unknown"}}'
        self.asked: Counter[str] = Counter()
        self.is_silent = False
        self._names: dict[str, set[str]] = {}  # alias → resources

    def put(self, *messages: Any, push: bool = True) -> None:
        with self._lock:
            for message in messages:
                for name in _names_of(message):
                    self._names.setdefault(name, set()).add(_names_of(message)[0])
        super().put(*messages, push=push)

    def look_up(self, name: str) -> set[str]:
        """The resources that a name stands for."""
        found = set(self._names.get(name, ()))
        return found | {each for key in found for each in self._names.get(f"endpoints of {key}", ())}

    def _push(self, type_url: str, names: list[str], removed: Iterable[str] = ()) -> None:
        if type_url != ADDRESS:
            super()._push(type_url, names, removed)
            return
        with self._lock:
            for stream in self.streams:
                mine = stream.names.get(ADDRESS, set())
                wanted, gone = [name for name in names if name in mine], [name for name in removed if name in mine]
                if wanted or gone:
                    stream.send(ADDRESS, wanted, gone)


def _names_of(message: Any) -> list[str]:
    """Its own name first, and then what else it is found by."""
    if isinstance(message, workload_pb2.Workload):
        addresses = [f"{message.network}/{ipaddress.ip_address(raw)}" for raw in message.addresses]
        return [message.uid, *addresses, *(f"endpoints of {key}" for key in message.services)]
    vips = [f"{vip.network}/{ipaddress.ip_address(vip.address)}" for vip in message.addresses]
    return [f"{message.namespace}/{message.hostname}", *vips]


def workload(pod: MeshPod, **more: Any) -> workload_pb2.Workload:
    """A pod's entry, as the control plane has it."""
    entry = pod.entry
    message = workload_pb2.Workload(
        uid=pod.uid,
        name=entry["name"],
        namespace=entry["namespace"],
        service_account=entry["serviceAccount"],
        addresses=[ipaddress.ip_address(ip).packed for ip in entry["workloadIps"]],
        node=entry["node"],
        tunnel_protocol="HBONE" if entry["protocol"] == "HBONE" else "NONE",
        **more,
    )
    for key, ports in entry.get("services", {}).items():
        for port, target in ports.items():
            message.services[key].ports.add(service_port=port, target_port=target)
    return message


def service(hostname: str, vip: str, ports: dict[int, int], **more: Any) -> workload_pb2.Service:
    """A service of the namespace "shop"."""
    message = workload_pb2.Service(name=hostname.partition(".")[0], namespace="shop", hostname=hostname, **more)
    message.addresses.add(address=ipaddress.ip_address(vip).packed)
    for port, target in ports.items():
        message.ports.add(service_port=port, target_port=target)
    return message


def serve(cluster: Cluster, agent: Agent, control: Istiod) -> None:
    """Have the agent, which is to be started, ask this control plane."""
    with inside(cluster.lab.nodes[agent.number].netns_fd):
        url = control.start()
    agent.source = ["--source", "xds", "--xds-address", url, "--xds-on-demand", "--auth-token", "off", "--ca", str(cluster.ca)]


def enrol(agent: Agent, pod: MeshPod) -> None:
    """Put a pod of its node into the mesh, by command."""
    status, said = agent.request("POST", "/pods", {"uid": pod.uid, "netns": pod.host.netns_path})
    assert status == 200, said
