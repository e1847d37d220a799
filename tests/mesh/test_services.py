"""Services on the running mesh: which endpoint a connection to a virtual address gets, and by what name it is refused one."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mesh.attempts import Greeter, answer, connected, start_fast
from tests.mesh.cluster import Agent, Cluster, MeshPod, wait_until
from tests.mesh.direct import wait_direct
from tests.mesh.evidence import Row, refused_total, rows_of

# Where the applications listen; services' own ports are others.
PORTS = (8080, 8081, 8082)
ENDPOINTS = ("a", "b", "c")
ROUNDS = 12
# "client" is on a node with one worker, "peer" on one with two.
WORKERS = {"client": 1, "peer": 2}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    """Endpoints a and b with c on the other node, a workload outside the mesh, and who calls from each node."""
    cluster = Cluster()
    with contextlib.ExitStack() as closing:
        closing.callback(cluster.close)
        cluster.agents[0].arguments = ["--workers", "1"]
        for node, name in ((0, "client"), (1, "peer"), (0, "a"), (0, "b"), (1, "c")):
            pod = cluster.pod(node, name)
            closing.callback(Greeter(pod.host, PORTS).close)
        legacy = cluster.pod(1, "legacy", protocol="TCP")
        closing.callback(Greeter(legacy.host, PORTS).close)
        cluster.pod(1, "silent", protocol="HBONE")  # in the mesh by its entry, but nobody serves it
        cluster.pods["silent"].host.node = -1
        yield start_fast(cluster)


class Services:
    """Puts services into the mesh file, each with virtual addresses of its own, and takes them out again."""

    _numbers = itertools.count(10)

    def __init__(self, mesh: Cluster) -> None:
        self.mesh = mesh

    def add(self, pods: list[MeshPod], ports: dict[int, int] | None = None, **more: Any) -> tuple[str, str]:
        """Its virtual addresses, IPv4 and IPv6."""
        number = next(self._numbers)  # none is used twice: its lines in the log are its own
        vip4, vip6 = f"10.96.0.{number}", f"fd00:96::{number:x}"
        entry = self.mesh.service(f"svc{number}.shop.svc.cluster.local", vip4, ports or {80: 8080}, pods, **more)
        entry["vips"] = [f"/{vip4}", f"/{vip6}"]
        return vip4, vip6

    def key(self, vip: str) -> str:
        return next(f"shop/{entry['hostname']}" for entry in self.mesh.services if f"/{vip}" in entry["vips"])


@pytest.fixture
def services(mesh: Cluster) -> Iterator[Services]:
    yield Services(mesh)
    mesh.services.clear()
    for pod in mesh.pods.values():
        for key in ("services", "status", "waypoint", "capacity"):
            pod.entry.pop(key, None)
    mesh.extra_workloads.clear()
    mesh.apply()


def written(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def asked(mesh: Cluster, who: str, address: str, port: int, count: int) -> list[str | None]:
    return [answer(mesh.pods[who].host, address, port) for _ in range(count)]


def refused(mesh: Cluster, who: str, address: str, port: int, error: str) -> Row:
    """`who` gets a reset instead of an answer; line and metric on its node say why."""
    agent = mesh.agents[mesh.pods[who].host.node]
    target, reason = written(address, port), error.partition(":")[0]
    seen, before = len(rows_of(agent, dst_addr=target)), refused_total(agent, reason)
    assert answer(mesh.pods[who].host, address, port) is None
    (row,) = wait_until(lambda: rows_of(agent, dst_addr=target)[seen:], f"the line of {target}")
    assert row["error"] == error
    assert row["direction"] == "outbound"
    assert row["src.workload"] == who
    assert refused_total(agent, reason) == before + 1
    return row


# ── which endpoint ──


@pytest.mark.parametrize("who", WORKERS)
@pytest.mark.parametrize("family", [4, 6])
def test_round_robin_over_both_nodes(mesh: Cluster, services: Services, who: str, family: int) -> None:
    """One worker's counts differ by one at most at any time; W workers each turn on their own: by W at most."""
    vip = services.add([mesh.pods[name] for name in ENDPOINTS])[family == 6]
    mesh.apply()
    counts: Counter[str | None] = Counter()
    for _ in range(ROUNDS * len(ENDPOINTS) + 1):
        counts[answer(mesh.pods[who].host, vip, 80)] += 1
        at_all = [counts[name] for name in ENDPOINTS]
        assert max(at_all) - min(at_all) <= WORKERS[who]
    assert counts.keys() == set(ENDPOINTS)
    print(f"{who}, {WORKERS[who]} workers: {dict(counts)}")
    agent = mesh.agents[mesh.pods[who].host.node]
    for row in lines(agent, services.key(vip), ROUNDS * len(ENDPOINTS) + 1):
        pod = mesh.pods[row["dst.workload"]]
        assert row["dst.addr"] == written(pod.ip6 if family == 6 else pod.ip, 8080)
        assert ("dst.hbone_addr" in row) == (pod.host.node != agent.number)


def lines(agent: Agent, key: str, count: int, after: int = 0) -> list[Row]:
    """The `count` outbound lines about a service, without the first `after`; there must be no more."""

    def there() -> list[Row] | None:
        rows = rows_of(agent, dst_service=key.partition("/")[2], direction="outbound")[after:]
        assert len(rows) <= count
        return rows if len(rows) == count else None

    return list(wait_until(there, f"{count} lines about {key}"))


def test_capacity_is_weight(mesh: Cluster, services: Services) -> None:
    vip, _ = services.add([mesh.pods[name] for name in ENDPOINTS])
    mesh.pods["a"].entry["capacity"] = 4
    mesh.pods["b"].entry["capacity"] = 0
    mesh.apply()
    assert Counter(asked(mesh, "client", vip, 80, 20)) == {"a": 16, "c": 4}


def test_who_it_was_is_seen_at_the_address_that_was_asked_for(mesh: Cluster, services: Services) -> None:
    vips = services.add([mesh.pods["a"], mesh.pods["c"]])
    mesh.apply()
    for vip in vips:
        for _ in range(2):
            sock, _ = connected(mesh.pods["client"].host, vip, 80)
            with sock:
                assert sock.getpeername()[:2] == (vip, 80)


def test_ports_are_mapped(mesh: Cluster, services: Services) -> None:
    """By the service, by the endpoint's own map before it; 0 leaves the port."""
    a, c = mesh.pods["a"], mesh.pods["c"]
    vip, vip6 = services.add([a, c], {80: 8081, 81: 8082, 8080: 0})
    key = services.key(vip)
    c.entry["services"][key] = {80: 8082}
    mesh.apply()
    seen = 0
    for address in (vip, vip6):
        for port, wanted in ((80, {"a": 8081, "c": 8082}), (81, {"a": 8082, "c": 8082}), (8080, {"a": 8080, "c": 8080})):
            assert set(asked(mesh, "client", address, port, 4)) == {"a", "c"}
            rows = lines(mesh.agents[0], key, 4, seen)
            seen += 4
            assert {row["dst.workload"]: int(row["dst.addr"].rpartition(":")[2]) for row in rows} == wanted


def test_an_endpoint_that_is_edited_away(mesh: Cluster, services: Services) -> None:
    """New connections go elsewhere, what stands goes on: the pod itself is well."""
    vip, _ = services.add([mesh.pods["a"], mesh.pods["c"]])
    mesh.apply()
    held = [connected(mesh.pods["client"].host, vip, 80) for _ in range(4)]
    assert Counter(name for _, name in held) == {"a": 2, "c": 2}
    del mesh.pods["c"].entry["services"][services.key(vip)]
    mesh.apply()
    assert set(asked(mesh, "client", vip, 80, 6)) == {"a"}
    for sock, _ in held:
        with sock:
            sock.sendall(b"still here")
    mesh.pods["c"].entry["services"][services.key(vip)] = {80: 8080}
    mesh.apply()
    assert Counter(asked(mesh, "client", vip, 80, 6)) == {"a": 3, "c": 3}


def test_unhealthy_endpoints_are_left_out(mesh: Cluster, services: Services) -> None:
    members = [mesh.pods["a"], mesh.pods["c"]]
    usual, _ = services.add(members)
    lenient, _ = services.add(members, loadBalancer={"healthPolicy": "AllowAll"})
    mesh.pods["c"].entry["status"] = "Unhealthy"
    mesh.apply()
    assert set(asked(mesh, "client", usual, 80, 6)) == {"a"}
    assert Counter(asked(mesh, "client", lenient, 80, 6)) == {"a": 3, "c": 3}
    mesh.pods["a"].entry["status"] = "Unhealthy"
    mesh.apply()
    key = services.key(usual)
    detail = f"service {key} has 2 endpoints, none of them healthy, in scope and with port 80"
    refused(mesh, "client", usual, 80, f"no_endpoint: {detail}")
    assert set(asked(mesh, "client", lenient, 80, 6)) == {"a", "c"}


def test_scopes(mesh: Cluster, services: Services) -> None:
    """STRICT NODE keeps to one's own node, FAILOVER prefers it."""
    members = [mesh.pods[name] for name in ENDPOINTS]
    strict, _ = services.add(members, loadBalancer={"routingPreferences": ["NODE"], "mode": "Strict"})
    failover, _ = services.add(members, loadBalancer={"routingPreferences": ["NODE"], "mode": "Failover"})
    mesh.apply()
    for vip in (strict, failover):
        assert Counter(asked(mesh, "client", vip, 80, 4)) == {"a": 2, "b": 2}
        assert set(asked(mesh, "peer", vip, 80, 4)) == {"c"}
    mesh.pods["c"].entry["status"] = "Unhealthy"
    mesh.apply()
    assert set(asked(mesh, "peer", failover, 80, 8)) == {"a", "b"}
    key = services.key(strict)
    detail = f"service {key} has 3 endpoints, none of them healthy, in scope and with port 80"
    refused(mesh, "peer", strict, 80, f"no_endpoint: {detail}")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("who", WORKERS)
def test_endpoints_outside_the_mesh(mesh: Cluster, services: Services, family: int, who: str) -> None:
    """A plain-TCP workload is reached in plain, whichever node it is on."""
    vip = services.add([mesh.pods["legacy"]])[family == 6]
    mesh.apply()
    assert set(asked(mesh, who, vip, 80, 3)) == {"legacy"}
    agent = mesh.agents[mesh.pods[who].host.node]
    for row in lines(agent, services.key(vip), 3):
        assert not {"dst.hbone_addr", "dst.identity", "error"} & row.keys()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("who", ["a", "c"])
def test_a_pod_that_calls_itself_through_its_service(mesh: Cluster, services: Services, who: str, family: int) -> None:
    vip = services.add([mesh.pods[who]])[family == 6]
    mesh.apply()
    assert asked(mesh, who, vip, 80, 3) == [who] * 3
    own = mesh.pods[who].ip6 if family == 6 else mesh.pods[who].ip
    assert answer(mesh.pods[who].host, own, 8080) == who


# ── no endpoint ──


def test_no_endpoint(mesh: Cluster, services: Services) -> None:
    empty, empty6 = services.add([])
    one, _ = services.add([mesh.pods["a"]], {80: 8080, 443: 8081})
    mesh.apply()
    detail = f"no_endpoint: service {services.key(empty)} has no endpoint for port 80; is a pod of it running?"
    for vip in (empty, empty6):
        row = refused(mesh, "client", vip, 80, detail)
        assert "dst.workload" not in row
    refused(mesh, "client", one, 81, f"no_endpoint: service {services.key(one)} has no port 81; it has 80, 443")


def test_an_endpoint_where_nothing_listens(mesh: Cluster, services: Services) -> None:
    vip, _ = services.add([mesh.pods["a"]], {80: 9999})
    far, _ = services.add([mesh.pods["c"]], {80: 9999})
    mesh.apply()
    for address, pod, error in ((vip, "a", "connect_refused: "), (far, "c", "hbone_refused: ")):
        if pod == "a":  # within the node the kernel itself says so
            wait_direct(mesh.agents[0], mesh.pods["client"], address, 80)
            with pytest.raises(ConnectionRefusedError):
                answer(mesh.pods["client"].host, address, 80)
        else:
            assert answer(mesh.pods["client"].host, address, 80) is None
        target = written(mesh.pods[pod].ip, 9999)
        (row,) = wait_until(lambda target=target: rows_of(mesh.agents[0], dst_addr=target), f"the line of {target}")
        assert row["error"].startswith(error)
        assert row["dst.service"] == services.key(address).partition("/")[2]


# ── waypoints ──


def test_a_waypoint_that_does_not_exist(mesh: Cluster, services: Services) -> None:
    """By name or by address, of a service or of a workload: refused, never gone around."""
    by_name, _ = services.add([mesh.pods["c"]], waypoint={"destination": "infra/waypoint.infra", "hboneMtlsPort": 15008})
    by_address, _ = services.add([mesh.pods["c"]], waypoint={"destination": "/10.10.1.99"})
    mesh.pods["a"].entry["waypoint"] = {"destination": "/10.10.1.99"}
    mesh.apply()
    for vip, name in ((by_name, "infra/waypoint.infra"), (by_address, "/10.10.1.99")):
        key = services.key(vip)
        detail = f"waypoint {name} is not known; is it deployed, and part of the mesh?"
        refused(mesh, "client", vip, 80, f"no_waypoint: {key} must be reached through its waypoint: {detail}")
    a = mesh.pods["a"]
    detail = "waypoint /10.10.1.99 is not known; is it deployed, and part of the mesh?"
    for who in ("client", "peer"):
        for address in (a.ip, a.ip6):
            refused(mesh, who, address, 8080, f"no_waypoint: {a.uid} must be reached through its waypoint: {detail}")


def test_a_waypoint_without_endpoints(mesh: Cluster, services: Services) -> None:
    waypoint, _ = services.add([], {15008: 15008})
    vip, _ = services.add([mesh.pods["c"]], waypoint={"destination": services.key(waypoint)})
    mesh.apply()
    detail = f"waypoint service {services.key(waypoint)} has no healthy endpoint; is the waypoint running?"
    refused(mesh, "client", vip, 80, f"no_waypoint: {services.key(vip)} must be reached through its waypoint: {detail}")


def test_a_waypoint_that_is_away(mesh: Cluster, services: Services) -> None:
    """It is in the state, and nothing listens on its port 15008."""
    silent = mesh.pods["silent"]
    vip, _ = services.add([mesh.pods["c"]], waypoint={"destination": f"/{silent.ip}"})
    mesh.apply()
    row = refused(mesh, "client", vip, 80, f"connect_refused: {silent.ip}:15008 refused the connection: nothing listens there")
    assert row["dst.hbone_addr"] == f"{silent.ip}:15008"
    assert row["dst.workload"] == "silent"


# ── the proxy's own ports, and pods without a workload ──


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_own_ports_are_refused(mesh: Cluster, services: Services, port: int) -> None:
    vip, vip6 = services.add([mesh.pods["c"]], {port: 8080})
    mesh.apply()
    near, far = mesh.pods["a"], mesh.pods["c"]
    detail = f"illegal_port: port {port} is the proxy's own; connect to the application's port"
    for address in (vip, vip6, near.ip, near.ip6, far.ip, far.ip6):
        refused(mesh, "client", address, port, detail)


@pytest.mark.parametrize("who", ["the pod itself", "from outside the mesh"])
@pytest.mark.parametrize(("port", "reason"), [(15001, "no_original_destination"), (15006, "illegal_port")])
def test_knocks_at_the_listeners(mesh: Cluster, who: str, port: int, reason: str) -> None:
    """What the proxy listens on for itself leads nowhere, whoever reaches it without being steered there."""
    agent, target = mesh.agents[1], mesh.pods["c"]
    source = target.host if who == "the pod itself" else mesh.pods["legacy"].host
    for address in (target.ip, target.ip6):
        before = refused_total(agent, reason)
        assert answer(source, address, port) is None
        assert refused_total(agent, reason) == before + 1


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_nothing_listens_on_loopback(mesh: Cluster, port: int) -> None:
    """A pod can't talk to the proxy past the hooks."""
    for address in ("127.0.0.1", "::1"):
        with pytest.raises(ConnectionRefusedError):
            answer(mesh.pods["client"].host, address, port)


def test_an_address_that_the_pod_does_not_have(mesh: Cluster) -> None:
    """The state gives it to a pod of this node: refused at once, and not awaited from somebody else."""
    a, wrong = mesh.pods["a"], "10.10.0.99"
    a.entry["workloadIps"].append(wrong)
    try:
        mesh.apply()
        detail = f"connect_unreachable: the state gives {wrong} to {a.uid}, whose namespace has {a.ip}, {a.ip6}"
        refused(mesh, "client", wrong, 8080, detail)
    finally:
        a.entry["workloadIps"].remove(wrong)
        mesh.apply()


def test_a_pod_without_a_workload(mesh: Cluster) -> None:
    """Enrolled by command, but no source has told who it is: closed in both directions, and `status` says why."""
    pod = mesh.lab.pod(0, "nobody")
    agent, uid = mesh.agents[0], "Kubernetes//Pod/shop/nobody"
    greeter = Greeter(pod, (8080,))
    try:
        assert agent.nodeproxy("enrol", uid, pod.netns_path).returncode == 0
        before = refused_total(agent, "unknown_workload")
        target = mesh.pods["c"]
        assert answer(pod, target.ip, 8080) is None
        assert answer(mesh.pods["legacy"].host, pod.address4, 8080) is None
        assert answer(mesh.pods["legacy"].host, pod.address6, 8080) is None
        assert answer(mesh.pods["client"].host, pod.address4, 8080) is None  # passed through, and refused on arrival
        assert greeter.accepted == 0
        wait_until(lambda: refused_total(agent, "unknown_workload") == before + 4, "all counted")
        (row,) = [row for row in agent.access_log() if row["src.addr"].startswith(f"{pod.address4}:")]
        assert row["error"].startswith(f"unknown_workload: this pod's workload {uid} is not in the state")
        (entry,) = [entry for entry in agent.get("/status")["pods"] if entry["uid"] == uid]
        assert entry["error"] == f"the state has no workload {uid}: its connections are refused"
    finally:
        agent.nodeproxy("leave", uid)
        greeter.close()
