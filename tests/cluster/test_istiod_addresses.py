"""Our translation makes the workloads and services of an API server's resources that a real istiod serves.

Both read the same objects from the same API server.  Where they differ on purpose, a test of its own says how, with the reason.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from nodeproxy.model.workload import (
    ApplicationTunnel,
    Balancing,
    Gateway,
    LoadBalancer,
    Locality,
    Protocol,
    Scope,
    Service,
    WeightedGateway,
    Workload,
)
from nodeproxy.proto import workload_pb2 as pb
from nodeproxy.translate.objects import KINDS
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.translator import Translator
from tests.cluster.apiserver import ApiServer
from tests.cluster.istiod import NAMESPACE as ROOT
from tests.cluster.istiod import Istiod
from tests.cluster.kinds import Object, ambient, make, node, pod, service
from tests.cluster.served import Served
from tests.mesh.cluster import wait_until

_SERVED_S = 30.0
CLASS = "test-waypoint"
WEB = {"app": "web"}
USE = "istio.io/use-waypoint"


# ── istiod's in the form of the model ─────────────────────────────────────────────────────────────


def ip(value: bytes) -> str:
    return str(ipaddress.ip_address(value))


def gateway(message: pb.GatewayAddress) -> Gateway:
    port = message.hbone_mtls_port
    if message.HasField("hostname"):
        return Gateway(f"{message.hostname.namespace}/{message.hostname.hostname}", port, True)
    return Gateway(f"{message.address.network}/{ip(message.address.address)}", port)


def ports(messages: Any) -> dict[int, int]:
    return {each.service_port: each.target_port for each in messages}


def workload(message: pb.Workload) -> Workload:
    tunnel, place = message.application_tunnel, message.locality
    return Workload(
        uid=message.uid,
        name=message.name,
        namespace=message.namespace,
        addresses=tuple(ip(value) for value in message.addresses),
        network=message.network,
        protocol=Protocol(pb.TunnelProtocol.Name(message.tunnel_protocol).replace("NONE", "TCP")),
        trust_domain=message.trust_domain or "cluster.local",
        service_account=message.service_account or "default",
        node=message.node,
        cluster=message.cluster_id or "Kubernetes",
        hostname=message.hostname,
        canonical_name=message.canonical_name,
        canonical_revision=message.canonical_revision,
        workload_name=message.workload_name,
        waypoint=gateway(message.waypoint) if message.HasField("waypoint") else None,
        network_gateway=gateway(message.network_gateway) if message.HasField("network_gateway") else None,
        application_tunnel=ApplicationTunnel(tunnel.port, tunnel.protocol == pb.ApplicationTunnel.PROXY)
        if message.HasField("application_tunnel")
        else None,
        native_tunnel=message.native_tunnel,
        host_network=message.network_mode == pb.HOST_NETWORK,
        healthy=message.status == pb.HEALTHY,
        capacity=message.capacity.value if message.HasField("capacity") else 1,
        locality=Locality(place.region, place.zone, place.subzone),
        services={key: ports(value.ports) for key, value in message.services.items()},
        policies=tuple(message.authorization_policies),
    )


def service_of(message: pb.Service) -> Service:
    balancing = message.load_balancing
    return Service(
        name=message.name,
        namespace=message.namespace,
        hostname=message.hostname,
        vips=tuple(f"{each.network}/{ip(each.address)}" for each in message.addresses),
        ports=ports(message.ports),
        subject_alt_names=tuple(message.subject_alt_names),
        waypoint=gateway(message.waypoint) if message.HasField("waypoint") else None,
        weighted_waypoints=tuple(WeightedGateway(gateway(each.destination), each.weight) for each in message.weighted_waypoints),
        load_balancer=LoadBalancer(
            tuple(Scope(pb.LoadBalancing.Scope.Name(each)) for each in balancing.routing_preference),
            Balancing(pb.LoadBalancing.Mode.Name(balancing.mode)),
            balancing.health_policy == pb.LoadBalancing.ALLOW_ALL,
        ),
        canonical=message.canonical,
        namespace_only=message.visibility == pb.Service.NAMESPACE,
    )


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────


def ours(api: ApiServer, *spaces: str) -> tuple[dict[str, Workload], dict[str, Service]]:
    """What our translation makes of all that the API server has, in these namespaces."""
    translator = Translator(MeshSettings(root_namespace=ROOT))
    for kind in KINDS.values():
        for item in api.list(kind.name):
            resource = msgspec.convert(item, kind.type)
            translator.apply(kind.name, resource.key, resource)
    delta = translator.take()
    return (
        {each.uid: comparable(each) for each in delta.workloads if each.namespace in spaces},
        {each.key: each for each in delta.services if each.namespace in spaces},
    )


def comparable(mine: Workload) -> Workload:
    """Without its type: istiod calls what pods are made by a pod, and an endpoint of a slice a deployment."""
    return msgspec.structs.replace(mine, workload_type="pod")


def compare(api: ApiServer, served: Served, *spaces: str) -> tuple[dict[str, Workload], dict[str, Service]]:
    """Waits until istiod serves what we do in these namespaces; what that is."""
    expected = ours(api, *spaces)

    def same() -> bool:
        nonlocal expected
        if actual() == expected:
            return True
        expected = ours(api, *spaces)  # istiod writes addresses of ServiceEntries, which we read
        return False

    def actual() -> tuple[dict[str, Workload], dict[str, Service]]:
        return (
            {uid: workload(each) for uid, each in served.workloads().items() if each.namespace in spaces},
            {key: service_of(each) for key, each in served.services().items() if each.namespace in spaces},
        )

    try:
        wait_until(same, "istiod serves what we do", _SERVED_S)
    except AssertionError:
        differing = []
        for left, right in zip(expected, actual(), strict=True):
            for key in sorted(left | right):
                differing += [f"{key}: {line}" for line in differences(left.get(key), right.get(key))]
        pytest.fail("ours, istiod's:\n" + "\n".join(differing))
    return expected


def differences(left: Workload | Service | None, right: Workload | Service | None) -> list[str]:
    if left is None or right is None:
        return [] if left is right else [f"{left} | {right}"]
    fields = ((name, getattr(left, name), getattr(right, name)) for name in left.__struct_fields__)
    return [f"{name}: {one!r} | {other!r}" for name, one, other in fields if one != other]


@pytest.fixture(scope="module")
def served(istiod: Istiod, api: ApiServer) -> Iterator[Served]:
    api.create(node("n1"), node("n2", "zone-b"), make("GatewayClass", CLASS, spec={"controllerName": "example.org/test"}))
    client = Served(istiod)
    yield client
    client.close()


def waypoint(name: str, space: str, address: str = "10.96.9.9", *, allowed: Any = None, **more: Any) -> Object:
    listener: Object = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    if allowed is not None:
        listener["allowedRoutes"] = {"namespaces": allowed}
    kind = "IPAddress" if address[0].isdigit() else "Hostname"
    status = {"addresses": [{"type": kind, "value": address}]}
    return make("Gateway", name, space, spec={"gatewayClassName": CLASS, "listeners": [listener]}, status=status, **more)


def entry(name: str, space: str, hosts: list[str], resolution: str = "STATIC", **spec: Any) -> Object:
    metadata = {key: spec.pop(key) for key in ("labels", "annotations") if key in spec}
    spec.setdefault(
        "ports", [{"number": 443, "name": "https", "protocol": "TLS"}, {"number": 80, "name": "http", "protocol": "HTTP"}]
    )
    return make("ServiceEntry", name, space, spec={"hosts": hosts, "resolution": resolution, **spec}, **metadata)


# ── pods ──────────────────────────────────────────────────────────────────────────────────────────


def owned(item: Object, kind: str, owner: str) -> Object:
    reference = {"apiVersion": "apps/v1", "kind": kind, "name": owner, "controller": True, "uid": "1"}
    item["metadata"] |= {"generateName": f"{owner}-", "ownerReferences": [reference]}
    return item


def test_pods(api: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space = unique("space")
    at = {"node": "n1"}
    api.create(
        ambient(space),
        pod("plain", space, ips=["10.2.0.1"], **at),
        pod("dual", space, ips=["10.2.0.2", "fd00::2"], node="n2", account="web"),
        pod("unready", space, ips=["10.2.0.3"], ready=False, **at),
        pod("versioned", space, ips=["10.2.0.4"], labels={**WEB, "version": "v2"}, **at),
        pod("named", space, ips=["10.2.0.5"], labels={"app": "a", "app.kubernetes.io/name": "b"}, **at),
        pod("renamed", space, ips=["10.2.0.6"], labels={"app": "a", "service.istio.io/canonical-name": "c"}, **at),
        pod("relabelled", space, ips=["10.2.0.18"], labels={"service.istio.io/workload-name": "w"}, **at),
        pod("captured-not", space, ips=["10.2.0.7"], labels={"istio.io/dataplane-mode": "none"}, annotations={}, **at),
        pod("native", space, ips=["10.2.0.8"], labels={"networking.istio.io/tunnel": "http"}, annotations={}, **at),
        pod("host", space, ips=["10.0.0.1"], annotations={}, spec={"hostNetwork": True}, **at),
        pod("host-too", space, ips=["10.0.0.1"], annotations={}, spec={"hostNetwork": True}, **at),
        owned(pod("web-5d8-x", space, ips=["10.2.0.9"], labels={"pod-template-hash": "5d8"}, **at), "ReplicaSet", "web-5d8"),
        owned(pod("rs-x", space, ips=["10.2.0.10"], **at), "ReplicaSet", "rs-5d8"),
        owned(pod("db-0", space, ips=["10.2.0.11"], **at), "StatefulSet", "db"),
        owned(pod("report-x", space, ips=["10.2.0.12"], **at), "Job", "report-28912345"),
        owned(pod("once-x", space, ips=["10.2.0.13"], **at), "Job", "once"),
        pod("nowhere", space, ips=["10.2.0.14"], node="unknown"),
    )  # fmt: skip
    ended = pod("ended", space, ips=["10.2.0.15"], **at)
    ended["status"]["phase"] = "Succeeded"
    pending = pod("pending", space, ips=["10.2.0.16"], ready=False, **at)
    pending["status"]["phase"] = "Pending"
    addressless = pod("addressless", space, ips=["10.2.0.17"], **at)
    addressless["status"] |= {"podIP": "", "podIPs": []}
    api.create(ended, pending, addressless)
    workloads, _ = compare(api, served, space)
    names = {each.name for each in workloads.values()}
    assert {"pending", "host-too"} <= names
    assert not {"ended", "addressless"} & names


def test_a_pod_that_only_its_labels_put_into_the_mesh(api: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    """Our agents enrol by labels and write no annotation, which is all that istiod goes by."""
    space = unique("space")
    api.create(ambient(space), pod("p", space, node="n1", ips=["10.2.1.1"], annotations={}))
    uid = f"Kubernetes//Pod/{space}/p"
    wait_until(lambda: uid in served.workloads(), "istiod serves the pod", _SERVED_S)
    mine = ours(api, space)[0][uid]
    assert differences(mine, workload(served.workloads()[uid])) == ["protocol: <Protocol.HBONE: 'HBONE'> | <Protocol.TCP: 'TCP'>"]


# ── services ──────────────────────────────────────────────────────────────────────────────────────


def test_services(api: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space = unique("space")
    distribution = {"networking.istio.io/traffic-distribution": "PreferSameNode"}
    api.create(
        ambient(space),
        pod("a", space, node="n1", ips=["10.3.0.1"], labels={**WEB, "x": "y"}, ports={"tls": 8443}),
        pod("b", space, node="n1", ips=["10.3.0.2"], labels=WEB),
        pod("c", space, node="n1", ips=["10.3.0.3"], labels={"app": "other"}),
        service("plain", space, WEB, {80: 8080, 81: 81}),
        service("named", space, WEB, {443: "tls", 80: 8080}),
        service("narrow", space, {**WEB, "x": "y"}, {80: 8080}),
        service("headless", space, WEB, {80: 8080}, clusterIP="None"),
        service("unready", space, WEB, {80: 8080}, publishNotReadyAddresses=True),
        service("local", space, WEB, {80: 8080}, internalTrafficPolicy="Local"),
        service("local-unready", space, WEB, {80: 8080}, internalTrafficPolicy="Local", publishNotReadyAddresses=True),
        service("close", space, WEB, {80: 8080}, trafficDistribution="PreferClose"),
        service("annotated", space, WEB, {80: 8080}, annotations=distribution),
        service("nonsense", space, WEB, {80: 8080}, annotations={"networking.istio.io/traffic-distribution": "x"}),
        make("Service", "external", space, spec={"type": "ExternalName", "externalName": "example.com"}),
    )
    workloads, services = compare(api, served, space)
    assert len(services) == 10
    assert len(workloads[f"Kubernetes//Pod/{space}/b"].services) == 9
    api.patch("Namespace", space, metadata={"annotations": distribution})
    _, services = compare(api, served, space)
    assert services[f"{space}/plain.{space}.svc.cluster.local"].load_balancer.mode is Balancing.FAILOVER
    api.delete("Service", "plain", space)
    compare(api, served, space)


def test_of_ports_only_those_of_tcp(api: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    """istiod lists ports of UDP too, and maps port 53 of both protocols to one of the two."""
    space = unique("space")
    dns = service("dns", space, WEB, {})
    dns["spec"]["ports"] = [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 5354},
        {"name": "udp", "port": 99, "protocol": "UDP"},
    ]
    api.create(ambient(space), dns)
    key = f"{space}/dns.{space}.svc.cluster.local"
    wait_until(lambda: key in served.services(), "istiod serves the service", _SERVED_S)
    mine = ours(api, space)[1][key]
    assert mine.ports == {53: 5354}
    assert {99} == set(service_of(served.services()[key]).ports) - set(mine.ports)


def slice_of(name: str, space: str, of: str, endpoints: list[Object]) -> Object:
    labels = {"kubernetes.io/service-name": of}
    ports = [{"name": "p80", "port": 9090, "protocol": "TCP"}, {"name": "p53", "port": 53, "protocol": "UDP"}]
    return make("EndpointSlice", name, space, labels=labels, addressType="IPv4", endpoints=endpoints, ports=ports)


def test_services_without_selectors(api: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space = unique("space")
    manual = service("manual", space, {}, {80: 8080, 81: 81})
    made = api.create(ambient(space), manual, pod("a", space, node="n1", ips=["10.3.1.1"]))
    reference = {"kind": "Pod", "name": "a", "namespace": space, "uid": made["metadata"]["uid"]}
    endpoints = [
        {"addresses": ["192.0.2.1"]},
        {"addresses": ["192.0.2.2"], "conditions": {"ready": False}},
        {"addresses": ["10.3.1.1"], "targetRef": reference},
    ]
    api.create(slice_of("manual-1", space, "manual", endpoints), slice_of("other-1", space, "missing", endpoints[:1]))
    workloads, _ = compare(api, served, space)
    assert len(workloads) == 3
    assert workloads[f"Kubernetes//Pod/{space}/a"].services
    api.delete("EndpointSlice", "manual-1", space)
    workloads, _ = compare(api, served, space)
    assert len(workloads) == 1


# ── waypoints ─────────────────────────────────────────────────────────────────────────────────────


def test_waypoints(api: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space, infra = unique("space"), unique("space")
    home = ambient(space)
    home["metadata"]["labels"] |= {USE: "wp", "team": "a"}
    for_all = {"istio.io/waypoint-for": "all"}
    of_team = {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}
    api.create(
        home,
        ambient(infra),
        waypoint("wp", space, labels=for_all),
        waypoint("services", space, "10.96.9.8"),
        waypoint("workloads", space, "10.96.9.7", labels={"istio.io/waypoint-for": "workload"}),
        waypoint("nothing", space, "10.96.9.6", labels={"istio.io/waypoint-for": "none"}),
        waypoint("host", space, f"host.{space}.svc.cluster.local"),
        waypoint("sandwich", space, "10.96.9.5", annotations={"ambient.istio.io/waypoint-inbound-binding": "PROXY/15088"}),
        waypoint("same", infra, "10.96.9.4", labels=for_all),
        waypoint("open", infra, "10.96.9.3", allowed={"from": "All"}, labels=for_all),
        waypoint("team", infra, "10.96.9.2", allowed=of_team, labels=for_all),
    )  # fmt: skip
    theirs = {"istio.io/use-waypoint-namespace": infra}
    for number, labels in enumerate(
        (
            {},
            {USE: "none"},
            {USE: "missing"},
            *({USE: name} for name in ("services", "workloads", "nothing", "host")),
            *({USE: name, **theirs} for name in ("same", "open", "team")),
            {"gateway.networking.k8s.io/gateway-name": "wp"},
            {"gateway.networking.k8s.io/gateway-name": "sandwich"},
            {"gateway.networking.k8s.io/gateway-name": "missing"},
            {"gateway.istio.io/managed": "istio.io-mesh-controller"},
            {"istio.io/use-waypoint-canary": "services"},
            {USE: "wp", "istio.io/use-waypoint-canary": "open", "istio.io/use-waypoint-canary-namespace": infra},
            {USE: "wp", "istio.io/use-waypoint-canary": "workloads"},
            {USE: "wp", "istio.io/use-waypoint-canary": "wp"},
        )
    ):
        annotations = {"istio.io/use-waypoint-canary-weight": "30"}
        api.create(
            pod(f"p{number}", space, node="n1", ips=[f"10.3.2.{number + 1}"], labels={**WEB, **labels}),
            service(f"s{number}", space, WEB, {80: 80}, labels=labels, annotations=annotations),
        )
    api.create(service("weightless", space, WEB, {80: 80}, labels={USE: "wp", "istio.io/use-waypoint-canary": "services"}))
    workloads, services = compare(api, served, space, infra)
    assert {each.waypoint for each in services.values()} > {None}
    assert len({str(each.waypoint) for each in workloads.values()}) == 5
    assert any(each.weighted_waypoints for each in services.values())
    api.delete("Gateway", "wp", space)
    api.patch("Namespace", space, metadata={"labels": {"team": "b"}})
    compare(api, served, space, infra)


# ── entries ───────────────────────────────────────────────────────────────────────────────────────


def test_service_entries_and_workload_entries(api: ApiServer, served: Served, unique: Callable[[str], str]) -> None:
    space = unique("space")
    home = ambient(space)
    home["metadata"]["labels"][USE] = "wp"
    endpoints = [
        {"address": "192.0.2.1", "ports": {"https": 8443}, "weight": 3, "locality": "r/z/s", "serviceAccount": "ext"},
        {"address": "db.example.com", "labels": {USE: "none"}, "locality": "r"},
    ]
    addresses = ["240.0.0.1/32", "240.0.0.2"]
    near = {"networking.istio.io/traffic-distribution": "PreferClose"}
    spiffe = ["spiffe://cluster.local/ns/a/sa/b"]
    machine = {"address": "192.0.2.9", "labels": WEB, "ports": {"p80": 8000, "http": 8001}, "network": "n2", "weight": 2}
    targeted = [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}]
    api.create(
        home,
        waypoint("wp", space, labels={"istio.io/waypoint-for": "all"}),
        pod("a", space, node="n1", ips=["10.3.3.1"], labels=WEB, ports={"https": 8443}),
        service("web", space, WEB, {80: 8080, 443: "p80"}),
        entry("static", space, ["a.com", "b.com"], addresses=addresses, endpoints=endpoints, subjectAltNames=spiffe),
        entry("dns", space, ["c.com", "d.com"], "DNS"),
        entry("robin", space, ["e.com"], "DNS_ROUND_ROBIN", endpoints=endpoints[1:]),
        entry("none", space, ["f.com"], "NONE", addresses=["240.0.0.3"]),
        entry("wild", space, ["*.g.com"], "NONE"),
        entry("selecting", space, ["h.com"], workloadSelector={"labels": WEB}, ports=targeted),
        entry("selecting-named", space, ["i.com"], workloadSelector={"labels": WEB}),
        entry("own", space, ["j.com"], endpoints=endpoints[:1], labels={USE: "none", "app": "x"}),
        entry("taken", space, [f"web.{space}.svc.cluster.local"], endpoints=endpoints[:1]),
        entry("near", space, ["k.com"], endpoints=endpoints[:1], annotations=near),
        make("WorkloadEntry", "vm", space, spec=machine),
        make("WorkloadEntry", "named-vm", space, spec={"address": "vm.com", "serviceAccount": "vm"}, labels=WEB),
        make("WorkloadEntry", "hbone-vm", space, spec={"address": "192.0.2.8"}, labels={"networking.istio.io/tunnel": "http"}),
    )  # fmt: skip
    workloads, services = compare(api, served, space)
    assert len([key for key in services if key.endswith(".com")]) == 11
    assert len(workloads) == 11
    api.delete("Service", "web", space)
    compare(api, served, space)
    api.delete("ServiceEntry", "static", space)
    api.delete("WorkloadEntry", "vm", space)
    compare(api, served, space)


def test_addresses_that_are_ranges_and_names_that_are_no_identities(
    api: ApiServer, served: Served, unique: Callable[[str], str]
) -> None:
    """A node here looks up addresses, not ranges; and no peer in a mesh shows a name of DNS."""
    space = unique("space")
    api.create(
        ambient(space),
        entry("range", space, ["r.com"], addresses=["240.1.0.0/16", "240.2.0.1"], subjectAltNames=["r.com"]),
    )
    key = f"{space}/r.com"
    wait_until(lambda: key in served.services(), "istiod serves the service", _SERVED_S)
    mine = ours(api, space)[1][key]
    assert differences(mine, service_of(served.services()[key])) == [
        "vips: ('/240.2.0.1',) | ('/240.1.0.0', '/240.2.0.1')",
        "subject_alt_names: () | ('r.com',)",
    ]
