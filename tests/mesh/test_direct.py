"""Two pods of a node talk without the proxy where policy can be asked beforehand, and everybody is told of it as before."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.attempts import Greeter, answer, connected, is_open, start_fast, total, until_reset
from tests.mesh.cluster import Cluster, MeshPod, exactly, wait_until
from tests.mesh.direct import hindrance, live_to, settled, wait_direct, why
from tests.mesh.evidence import refused_total, rows_of
from tests.pace import PACE

PORT, SECOND_PORT = 7500, 7501
SERVICE, VIP, VIP6 = "web.shop.svc.cluster.local", "10.96.0.50", "fd00:96::50"

Policy = dict[str, Any]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    cluster = Cluster(1)
    with contextlib.ExitStack() as closing:
        closing.callback(cluster.close)
        cluster.pod(0, "client", namespace="web")
        cluster.pod(0, "other", namespace="back")
        for name in ("server", "second"):
            pod = cluster.pod(0, name)
            closing.callback(Greeter(pod.host, (PORT, SECOND_PORT)).close)
        service = cluster.service(SERVICE, VIP, {80: PORT, 81: 9}, [cluster.pods["server"], cluster.pods["second"]])
        service["vips"].append(f"/{VIP6}")
        yield start_fast(cluster)


@pytest.fixture(autouse=True)
def policies(mesh: Cluster) -> Iterator[list[Policy]]:
    """The mesh's policies, none at first and none left."""
    mesh.policies.clear()
    settled(mesh.agents[0])
    yield mesh.policies
    if mesh.policies:
        mesh.policies.clear()
        mesh.apply()


def policy(action: str, match: dict[str, Any], **more: Any) -> Policy:
    return {"name": "test", "namespace": "shop", "scope": "Namespace", "action": action, "rules": [[[match]]], **more}


def worker_cpu(mesh: Cluster) -> int:
    """Clock ticks that the workers have used."""
    found = 0
    for worker in mesh.agents[0].get("/status")["workers"]:
        found += sum(map(int, Path(f"/proc/{worker['pid']}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return found


# ── where the bytes go, and what is told ──


@pytest.mark.parametrize("form", ["4", "6", "mapped"])
def test_bytes_go_past_the_proxy_and_are_told_exactly(mesh: Cluster, form: str) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    address = server.ip6 if form == "6" else server.ip
    port = {"4": 7510, "6": 7511, "mapped": 7512}[form]
    target = f"[{address}]:{port}" if form == "6" else f"{address}:{port}"
    wait_direct(agent, client, address, port)
    names = [f"istio_tcp_{name}_total" for name in ("connections_opened", "connections_closed", "received_bytes", "sent_bytes")]
    labels = {"source_principal": client.identity, "destination_principal": server.identity, "response_flags": "-"}
    labels |= {"source_workload": "client", "destination_workload": "server", "connection_security_policy": "unknown"}

    def counted() -> list[list[float]]:
        return [[total(agent, name, reporter=end, **labels) for name in names] for end in ("source", "destination")]

    before, used = counted(), worker_cpu(mesh)
    begun = time.time()
    with server.listen(port, "::" if form == "6" else "") as listener:
        ours = client.connect(f"::ffff:{address}" if form == "mapped" else address, port)
        theirs, peer = listener.accept()
    with ours, theirs:
        assert peer[0] == (client.ip6 if form == "6" else client.ip)
        data = b"x" * 200_000
        ours.sendall(data)
        assert exactly(theirs, len(data)) == data
        theirs.sendall(b"y" * 300)
        assert exactly(ours, 300) == b"y" * 300
        (row,) = live_to(agent, target)
        assert (row["direct"], row["received_bytes"], row["sent_bytes"]) == (True, 200_000, 300)
        assert (row["source"]["identity"], row["destination"]["identity"]) == (client.identity, server.identity)
        assert begun - 0.1 <= row["started"] <= time.time()
        assert counted() == [[each[0] + 1, each[1], each[2] + 200_000, each[3] + 300] for each in before]
        for _ in range(200):  # 40 MB, which would cost a worker some 4 ticks
            ours.sendall(data)
            exactly(theirs, len(data))
        assert worker_cpu(mesh) - used <= 2 * PACE
    (line,) = wait_until(lambda: rows_of(agent, dst_addr=target), "its line")
    assert (line["src.identity"], line["dst.identity"]) == (client.identity, server.identity)
    assert (line["src.workload"], line["dst.workload"], line["direction"]) == ("client", "server", "outbound")
    assert (line["bytes_sent"], line["bytes_recv"]) == (40_200_000, 300)
    assert 0 <= int(line["duration"].removesuffix("ms")) <= (time.time() - begun) * 1000
    assert "error" not in line
    assert counted() == [[each[0] + 1, each[1] + 1, each[2] + 40_200_000, each[3] + 300] for each in before]


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_a_virtual_address_whose_endpoints_are_all_here(mesh: Cluster, vip: str) -> None:
    agent, client = mesh.agents[0], mesh.pods["client"]
    wait_direct(agent, client, vip, 80)
    seen = len(rows_of(agent, dst_service=SERVICE))
    who = []
    for _ in range(8):
        sock, name = connected(client.host, vip, 80)
        with sock:
            assert sock.getpeername()[:2] == (vip, 80)
            who.append(name)
    assert sorted(who) == ["second"] * 4 + ["server"] * 4
    rows = wait_until(lambda: (rows := rows_of(agent, dst_service=SERVICE)[seen:])[7:] and rows, "eight lines")
    assert {row["dst.workload"] for row in rows} == {"server", "second"}
    assert {row["dst.addr"].rpartition(":")[2] for row in rows} == {str(PORT)}
    labels = {"destination_service": SERVICE, "source_workload": "client", "reporter": "destination"}
    assert total(agent, "istio_tcp_connections_opened_total", **labels) >= 8
    # A port that leads to one where nothing listens: the kernel says so, and the line too.
    with pytest.raises(ConnectionRefusedError):
        answer(client.host, vip, 81)
    row = wait_until(lambda: [row for row in rows_of(agent, dst_service=SERVICE) if "error" in row], "the line")[-1]
    assert row["error"].startswith("connect_refused: ")


def test_a_storm_of_resets_is_counted_and_leaves_nothing(mesh: Cluster) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    wait_direct(agent, client, server.ip, PORT)
    labels = {"source_workload": "client", "destination_workload": "server", "reporter": "source"}

    def counts() -> tuple[float, float]:
        names = ("istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total")
        return tuple(total(agent, name, **labels) for name in names)  # type: ignore[return-value]  # there are two

    before = counts()
    for number in range(400):
        sock, _ = connected(client.host, server.ip, PORT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if number % 2:
            sock.sendall(b"x" * number)
        sock.close()
    wait_until(lambda: counts() == (before[0] + 400, before[1] + 400), "all are counted")
    assert live_to(agent, f"{server.ip}:{PORT}") == []
    assert total(agent, "nodeproxy_direct_connections") == 0
    assert total(agent, "istio_tcp_sockets_open") == 0


# ── policy ──


def test_ports_and_identities(mesh: Cluster, policies: list[Policy]) -> None:
    """A rule on a port or an identity is asked beforehand: who it does not hit goes directly, who it hits is refused as ever."""
    agent, client, other, server = mesh.agents[0], mesh.pods["client"], mesh.pods["other"], mesh.pods["server"]
    policies[:] = [policy("Deny", {"destinationPorts": [PORT], "namespaces": [{"exact": "web"}]})]
    mesh.apply()
    for pod, port in ((client, SECOND_PORT), (other, PORT)):
        wait_direct(agent, pod, server.ip, port)
        assert answer(pod.host, server.ip, port) == "server"
    before = refused_total(agent, "policy_deny")
    assert answer(client.host, server.ip, PORT) is None
    assert answer(client.host, VIP, 80) is None
    assert refused_total(agent, "policy_deny") == before + 2


@pytest.mark.parametrize("action", ["Deny", "Allow"])
def test_a_rule_on_addresses_is_asked_by_the_proxy(mesh: Cluster, policies: list[Policy], action: str) -> None:
    agent, client, other, server = mesh.agents[0], mesh.pods["client"], mesh.pods["other"], mesh.pods["server"]
    policies[:] = [policy(action, {"sourceIps": [f"{client.ip}/32", f"{client.ip6}/128"]})]
    mesh.apply()
    may, may_not = (other, client) if action == "Deny" else (client, other)
    assert hindrance(agent, may, server.ip, PORT).endswith("decides by an address, which only a connection has")
    for address in (server.ip, server.ip6):
        assert answer(may.host, address, PORT) == "server"
        assert answer(may_not.host, address, PORT) is None
    sock, _ = connected(may.host, server.ip, PORT)
    with sock:
        assert [each["direct"] for each in live_to(agent, f"{server.ip}:{PORT}")] == [False]


def test_a_dry_run_policy_is_told_of(mesh: Cluster, policies: list[Policy]) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    policies[:] = [policy("Deny", {"destinationPorts": [PORT]}, dryRun=True)]
    mesh.apply()
    assert hindrance(agent, client, server.ip, PORT).endswith("in dry-run, wants to tell of it")
    before = total(agent, "nodeproxy_policy_dry_run_total", policy="shop/test")
    assert answer(client.host, server.ip, PORT) == "server"
    assert total(agent, "nodeproxy_policy_dry_run_total", policy="shop/test") == before + 1
    wait_direct(agent, client, server.ip, SECOND_PORT)


# ── live connections ──


def test_live_ones_are_judged_again(mesh: Cluster, policies: list[Policy]) -> None:
    """Those that the change denies are reset at both ends, and line and metrics say why; others notice nothing."""
    agent, client, other, server = mesh.agents[0], mesh.pods["client"], mesh.pods["other"], mesh.pods["server"]
    for pod in (client, other):
        wait_direct(agent, pod, server.ip, PORT)
    listener = server.listen(7520)
    ours = client.connect(server.ip, 7520)
    theirs, _ = listener.accept()
    denied = {"own": ours}
    denied |= {f"{address}": connected(client.host, address, PORT)[0] for address in (server.ip, server.ip6)}
    kept = [connected(other.host, server.ip, PORT)[0], connected(client.host, mesh.pods["second"].ip, SECOND_PORT)[0]]
    assert len([each for each in agent.get("/connections")["connections"] if each["direct"]]) == 5
    before = total(agent, "nodeproxy_direct_destroyed_total", reason="policy_deny")
    refused = refused_total(agent, "policy_deny")
    match = {"namespaces": [{"exact": "web"}], "notDestinationPorts": [SECOND_PORT]}
    policies[:] = [policy("Deny", match)]
    mesh.apply()
    assert until_reset(denied).keys() == denied.keys()
    with pytest.raises(ConnectionAbortedError):
        theirs.recv(1)
    settled(agent)
    assert all(map(is_open, kept))
    assert total(agent, "nodeproxy_direct_destroyed_total", reason="policy_deny") == before + 3
    wait_until(lambda: refused_total(agent, "policy_deny") == refused + 3, "each is counted")
    (row,) = wait_until(lambda: rows_of(agent, dst_addr=f"{server.ip}:7520"), "its line")
    assert row["error"] == "policy_deny: denied by DENY policy shop/test, rule 0"
    for sock in (*denied.values(), *kept, listener, theirs):
        sock.close()


def test_another_identity_is_judged_again(mesh: Cluster, policies: list[Policy]) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    policies[:] = [policy("Allow", {"principals": [{"exact": client.identity.removeprefix("spiffe://")}]})]
    mesh.apply()
    wait_direct(agent, client, server.ip, PORT)
    sock, _ = connected(client.host, server.ip, PORT)
    client.entry["serviceAccount"] = "somebody"
    try:
        mesh.apply()
        assert until_reset({"live": sock})
        assert answer(client.host, server.ip, PORT) is None
        assert why(agent, client, server.ip, PORT)["refusal"]["reason"] == "policy_no_allow"
    finally:
        sock.close()
        client.entry["serviceAccount"] = "client"
        mesh.apply()
    wait_direct(agent, client, server.ip, PORT)


def test_a_workload_that_is_removed_takes_its_connections_along(mesh: Cluster) -> None:
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    wait_direct(agent, client, server.ip, PORT)
    sock, _ = connected(client.host, server.ip, PORT)
    gone = mesh.pods.pop("server")
    try:
        mesh.apply()
        assert until_reset({"live": sock})
    finally:
        sock.close()
        mesh.pods["server"] = gone
        mesh.apply()
    wait_direct(agent, client, server.ip, PORT)


# ── membership ──


def test_who_leaves_by_command_keeps_connections_and_loses_the_path(mesh: Cluster, policies: list[Policy]) -> None:
    """As those that the proxy carries: they go on, and policy still holds for them."""
    agent, client, server = mesh.agents[0], mesh.pods["client"], mesh.pods["server"]
    wait_direct(agent, client, server.ip, PORT)
    sock, _ = connected(client.host, server.ip, PORT)
    with sock:
        assert agent.request("DELETE", f"/pods/{client.uid}")[0] == 200
        try:
            settled(agent)
            assert is_open(sock)
            assert len(live_to(agent, f"{server.ip}:{PORT}", direct=True)) == 1
            assert answer(client.host, server.ip, PORT) == "server"  # in plain now, without identity
            policies[:] = [policy("Deny", {"namespaces": [{"exact": "web"}]})]
            mesh.apply()
            assert until_reset({"live": sock})
            assert answer(client.host, server.ip, PORT) == "server"
        finally:
            assert agent.request("POST", "/pods", {"uid": client.uid, "netns": client.host.netns_path})[0] == 200
    settled(agent)
    assert answer(client.host, server.ip, PORT) is None


def test_policy_holds_for_connections_to_who_has_left(mesh: Cluster, policies: list[Policy]) -> None:
    agent, client, second = mesh.agents[0], mesh.pods["client"], mesh.pods["second"]
    wait_direct(agent, client, second.ip, PORT)
    sock, _ = connected(client.host, second.ip, PORT)
    with sock:
        assert agent.request("DELETE", f"/pods/{second.uid}")[0] == 200
        try:
            settled(agent)
            assert is_open(sock)
            second.entry["authorizationPolicies"] = ["shop/test"]
            policies[:] = [policy("Deny", {"namespaces": [{"exact": "web"}]}, scope="WorkloadSelector")]
            mesh.apply()
            assert until_reset({"live": sock})
        finally:
            del second.entry["authorizationPolicies"]
            assert agent.request("POST", "/pods", {"uid": second.uid, "netns": second.host.netns_path})[0] == 200


def test_an_address_that_moves_to_another_pod(mesh: Cluster, policies: list[Policy]) -> None:
    """Whoever may reach the one must not reach the other by it."""
    agent, client = mesh.agents[0], mesh.pods["client"]
    server, second = mesh.pods["server"], mesh.pods["second"]
    moving = "10.10.0.250"
    policies[:] = [policy("Deny", {"namespaces": [{"exact": "web"}]}, scope="WorkloadSelector")]
    second.entry["authorizationPolicies"] = ["shop/test"]
    try:
        for owner, outcome in ((server, "server"), (second, None), (server, "server")):
            move(mesh, moving, owner, (server, second))
            settled(agent)
            assert answer(client.host, moving, PORT) == outcome
            if outcome is not None:
                wait_direct(agent, client, moving, PORT)
                sock, _ = connected(client.host, moving, PORT)
                with sock:
                    assert [each["direct"] for each in live_to(agent, f"{moving}:{PORT}")] == [True]
    finally:
        del second.entry["authorizationPolicies"]
        move(mesh, moving, None, (server, second))


def move(mesh: Cluster, address: str, owner: MeshPod | None, pods: tuple[MeshPod, ...]) -> None:
    """Out of the mesh, another address, and in again: as when a pod ends and its address is given to a new one."""
    agent = mesh.agents[0]
    for pod in pods:
        assert agent.request("DELETE", f"/pods/{pod.uid}")[0] == 200
        has = address in pod.entry["workloadIps"]
        if has != (pod is owner):
            verb = "del" if has else "add"
            assert pod.host.run(["ip", "address", verb, f"{address}/32", "dev", "eth0"]).returncode == 0
            own = [each for each in pod.entry["workloadIps"] if each != address]
            pod.entry["workloadIps"] = [*own, address] if pod is owner else own
    mesh.apply()
    for pod in pods:
        assert agent.request("POST", "/pods", {"uid": pod.uid, "netns": pod.host.netns_path})[0] == 200
