"""Metrics and access log of running nodes: exact names, and values that follow from known traffic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nodeproxy.observe.labels import LABELS
from tests.mesh.attempts import answer, connected, total
from tests.mesh.cluster import Agent, Cluster, exactly, wait_until
from tests.mesh.shop import DENIED_PORT, SERVICE, asked_over_tcp, shop


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    with shop() as cluster:
        yield cluster


# ── metrics ──

# Names and types that dashboards made for ztunnel ask for (protocols.md); DNS and xDS come with DNS capture and xDS.
FAMILIES = {
    "istio_tcp_connections_opened": "counter",
    "istio_tcp_connections_closed": "counter",
    "istio_tcp_connections_failed": "counter",
    "istio_tcp_received_bytes": "counter",
    "istio_tcp_sent_bytes": "counter",
    "istio_tcp_sockets_open": "gauge",
    "istio_build": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_cpu_seconds": "counter",
    "process_open_fds": "gauge",
}


def test_metrics_after_known_traffic(mesh: Cluster) -> None:
    client, server = mesh.pods["client"], mesh.pods["server"]
    ends = list(zip(mesh.agents, ("source", "destination"), strict=True))
    names = [f"istio_tcp_{name}_total" for name in ("connections_opened", "connections_closed", "received_bytes", "sent_bytes")]
    source = {"workload": "client", "workload_namespace": "shop", "principal": client.identity, "cluster": "Kubernetes"}
    source |= {"canonical_service": "client-app", "app": "client-app", "canonical_revision": "v2", "version": "v2"}
    destination = {"workload": "server", "principal": server.identity, "canonical_service": "unknown", "region": "unknown"}
    destination |= {"service": SERVICE, "service_name": "web", "service_namespace": "shop"}
    labels = {f"source_{name}": value for name, value in {**source, "region": "r1", "zone": "z1"}.items()}
    labels |= {f"destination_{name}": value for name, value in destination.items()}
    labels |= {"request_protocol": "tcp", "response_flags": "-", "connection_security_policy": "mutual_tls"}

    def values() -> list[list[float]]:
        return [[total(agent, name, reporter=reporter, **labels) for name in names] for agent, reporter in ends]

    def sockets() -> list[float]:
        return [total(agent, "istio_tcp_sockets_open", reporter=reporter) for agent, reporter in ends]

    wait_until(lambda: sockets() == [0, 0], "nothing is open")
    before = values()
    held = [connected(client.host, "10.96.0.10", 80)[0] for _ in range(3)]
    for sock in held:
        sock.sendall(b"x" * 1000)
    wait_until(lambda: [each[2] for each in values()] == [each[2] + 3000 for each in before], "bytes are counted while it stands")
    assert sockets() == [3, 3]
    assert [each[:2] for each in values()] == [[each[0] + 3, each[1]] for each in before]
    for sock in held:
        sock.close()
    wait_until(lambda: sockets() == [0, 0], "all have ended")
    sent = len("server")
    assert values() == [[each[0] + 3, each[1] + 3, each[2] + 3000, each[3] + 3 * sent] for each in before]
    page = mesh.agents[0].metrics()
    assert asked_over_tcp(mesh, 15020, "GET", "/stats/prometheus")[1].splitlines()[0] == page.splitlines()[0]
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert {name: families[name].type for name in FAMILIES} == FAMILIES
    for name in ("istio_tcp_connections_opened", "istio_tcp_connections_failed"):
        assert all(sample.labels.keys() == set(LABELS) for sample in families[name].samples)
    (build,) = families["istio_build"].samples
    assert build.labels == {"component": "nodeproxy", "tag": mesh.agents[0].get("/version")["version"]}


def test_failures_in_metrics(mesh: Cluster) -> None:
    """A denial and an application that does not listen, each by its flag, on both nodes."""
    client, server = mesh.pods["client"], mesh.pods["server"]
    for port, flag, reasons in (
        (DENIED_PORT, "DENY", ("hbone_denied", "policy_deny")),
        (7299, "CONNECT", ("hbone_refused", "connect_refused")),
    ):
        ends = list(zip(mesh.agents, ("source", "destination"), reasons, strict=True))

        def counts(ends: Any = ends, flag: str = flag) -> list[tuple[float, float]]:
            name = "istio_tcp_connections_failed_total"
            return [
                (
                    total(agent, name, reporter=reporter, response_flags=flag, source_workload="client"),
                    total(agent, "nodeproxy_refused_total", reason=reason),
                )
                for agent, reporter, reason in ends
            ]

        before = counts()
        assert answer(client.host, server.ip, port) is None
        assert counts() == [(failed + 1, refused + 1) for failed, refused in before]


# ── the access log ──

_FIELD = re.compile(r'([a-z_.]+)=("(?:[^"\\]|\\.)*"|\S+)')


def test_the_access_log_as_text(mesh: Cluster) -> None:
    """What ztunnel writes: time, level, scope and message parted by tabs, then key=value."""
    client, server = mesh.pods["client"], mesh.pods["server"]
    with server.listen(7250) as listener:
        ours = client.connect(server.ip, 7250)
        theirs, _ = listener.accept()
    with ours, theirs:
        ours.sendall(b"a" * 700)
        assert exactly(theirs, 700)
        theirs.sendall(b"b" * 30)
        assert exactly(ours, 30)
    line = text_line(mesh.agents[1], f"dst.addr={server.ip}:7250")
    when, level, scope, message, rest = line.split("\t")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", when)
    assert (level, scope, message) == ("info", "access", "connection complete")
    fields = dict(_FIELD.findall(rest))
    assert " ".join(f"{key}={value}" for key, value in fields.items()) == rest
    port = fields.pop("src.addr").rpartition(":")
    assert port[0] == client.ip
    assert re.fullmatch(r'"\d+ms"', fields.pop("duration"))
    source = {"workload": '"client"', "namespace": '"shop"', "identity": f'"{client.identity}"', "cluster": '"Kubernetes"'}
    destination = {**source, "workload": '"server"', "identity": f'"{server.identity}"'}
    destination |= {"addr": f"{server.ip}:7250", "hbone_addr": f"{server.ip}:15008"}
    assert fields == {
        **{f"src.{name}": value for name, value in source.items()},
        **{f"dst.{name}": value for name, value in destination.items()},
        **{"direction": '"inbound"', "bytes_sent": "30", "bytes_recv": "700"},
    }
    assert answer(client.host, server.ip, DENIED_PORT) is None
    line = text_line(mesh.agents[1], f"dst.addr={server.ip}:{DENIED_PORT}")
    assert line.split("\t")[1] == "error"
    assert line.endswith('error="policy_deny: denied by DENY policy shop/no-port, rule 0"')


def text_line(agent: Agent, field: str) -> str:
    """The newest line with this field."""

    def found() -> list[str]:
        return [line for line in agent.log().splitlines() if f" {field} " in line]

    return str(wait_until(found, f"a line with {field}")[-1])
