"""The controller as a program, under its own account, with a real API server: what is written there is what nodes are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.proto.authorization_pb2 import Action
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION
from tests.cluster.apiserver import ApiServer
from tests.cluster.controller import HOME, ControllerProcess, install
from tests.cluster.fault_proxy import Fault, FaultProxy
from tests.cluster.kinds import ambient, make, node, pod, service
from tests.mesh.cluster import wait_until
from tests.xds_client import XdsClient

AUDIENCE = "istio-ca"
Unique = Callable[[str], str]


@pytest.fixture(scope="module")
def home(bare_api: ApiServer) -> ApiServer:
    """An API server with the controller's rights, and a node's agent."""
    install(bare_api)
    bare_api.create(make("ServiceAccount", "nodeproxy", HOME), node("n1"))
    bare_api.create(pod("agent", HOME, node="n1", ips=["10.9.0.1"], account="nodeproxy"))
    return bare_api


@pytest.fixture
def token(home: ApiServer) -> str:
    return home.token(HOME, "nodeproxy", audience=AUDIENCE, pod="agent")


@pytest.fixture
def controller(home: ApiServer, tmp_path: Path) -> Iterator[ControllerProcess]:
    with ControllerProcess(home, tmp_path) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def client(controller: ControllerProcess, token: str) -> Iterator[XdsClient]:
    with controller.client(token, "n1") as client:
        client.wildcard()
        yield client


def shop(space: str, number: int) -> list[dict[str, Any]]:
    """A service of one pod."""
    address = f"10.9.{number}.1"
    reference = {"kind": "Pod", "namespace": space, "name": "cart"}
    return [
        ambient(space),
        make("ServiceAccount", "cart", space),
        pod("cart", space, node="n1", ips=[address], account="cart", labels={"app": "cart"}),
        service("cart", space, {"app": "cart"}, {80: 8080}),
        make(
            "EndpointSlice",
            "cart-1",
            space,
            labels={"kubernetes.io/service-name": "cart"},
            addressType="IPv4",
            endpoints=[{"addresses": [address], "conditions": {"ready": True}, "targetRef": reference}],
            ports=[{"name": "p80", "port": 8080, "protocol": "TCP"}],
        ),
    ]


def uid_of(space: str, name: str = "cart") -> str:
    return f"Kubernetes//Pod/{space}/{name}"


def deny(space: str, **rule: Any) -> dict[str, Any]:
    spec = {"action": "DENY", "selector": {"matchLabels": {"app": "cart"}}, "rules": [rule]}
    return make("AuthorizationPolicy", "deny", space, spec=spec)


def condition(api: ApiServer, kind: str, name: str, space: str) -> dict[str, Any]:
    found = api.get(kind, name, space).get("status", {}).get("conditions", [])
    return next((each for each in found if each["type"] == "nodeproxy.io/Accepted"), {})


def test_what_is_written_is_what_a_node_is_told(
    home: ApiServer,
    controller: ControllerProcess,
    client: XdsClient,
    token: str,
    definitions: list[Path],
    unique: Unique,
    record_property: Callable[[str, object], None],
) -> None:
    space = unique("shop")
    home.create(*shop(space, 1))
    host = f"{space}/cart.{space}.svc.cluster.local"
    client.until(lambda: uid_of(space) in client.resources[ADDRESS] and host in client.resources[ADDRESS])
    client.until(lambda: client.workload(uid_of(space)).services)
    workload = client.workload(uid_of(space))
    assert (workload.name, workload.namespace, workload.node, workload.service_account) == ("cart", space, "n1", "cart")
    assert list(workload.addresses) == [bytes([10, 9, 1, 1])]
    assert {key: [(p.service_port, p.target_port) for p in ports.ports] for key, ports in workload.services.items()} == {
        host: [(80, 8080)]
    }
    assert controller.metric("watch_present", kind="AuthorizationPolicy") == 0
    assert controller.certified(token, f"spiffe://cluster.local/ns/{space}/sa/cart") == "OK"
    assert controller.certified(token, f"spiffe://cluster.local/ns/{space}/sa/till") == "PERMISSION_DENIED"
    wait_until(lambda: [each for each in home.list("ConfigMap", space)], "the roots are published in the mesh", 20)

    # Istio's definitions come while it runs.
    home.install_definitions(*definitions)
    wait_until(lambda: controller.metric("watch_present", kind="AuthorizationPolicy") == 1, "the definition is found", 30)
    home.apply(deny(space, to=[{"operation": {"ports": ["8080"]}}]))
    client.until(lambda: f"{space}/deny" in client.resources[AUTHORIZATION])
    assert client.policy(f"{space}/deny").action == Action.DENY
    client.until(lambda: f"{space}/deny" in client.workload(uid_of(space)).authorization_policies)
    wait_until(lambda: condition(home, "AuthorizationPolicy", "deny", space), "its status says so", 20)
    assert condition(home, "AuthorizationPolicy", "deny", space)["status"] == "True"

    began = time.monotonic()
    home.apply(deny(space, to=[{"operation": {"ports": ["9090"], "paths": ["/x"]}}]))
    client.until(lambda: "9090" in str(client.policy(f"{space}/deny")))
    record_property("controller: from a policy's write to a node's knowing", f"{(time.monotonic() - began) * 1000:.0f} ms")
    said = wait_until(
        lambda: (found := condition(home, "AuthorizationPolicy", "deny", space)).get("status") == "False" and found,
        "its status",
        20,
    )
    assert said["reason"] == "NotAsWritten"
    assert "spec.rules[0].to[0].operation.paths" in said["message"]
    assert int(said["observedGeneration"]) == 2

    home.patch("Pod", "cart", space, "status", status={"conditions": [{"type": "Ready", "status": "False"}]})
    client.until(lambda: client.workload(uid_of(space)).status == 1)
    home.delete("AuthorizationPolicy", "deny", space)
    home.delete("Pod", "cart", space)
    client.until(
        lambda: uid_of(space) not in client.resources[ADDRESS] and f"{space}/deny" not in client.resources[AUTHORIZATION]
    )
    home.delete("CustomResourceDefinition", "authorizationpolicies.security.istio.io")
    wait_until(lambda: controller.metric("watch_present", kind="AuthorizationPolicy") == 0, "that it is gone", 40)


def test_what_is_known_is_served_while_the_api_server_is_away(
    home: ApiServer, controller: ControllerProcess, client: XdsClient, token: str, unique: Unique
) -> None:
    space = unique("shop")
    home.create(*shop(space, 2))
    host = f"{space}/cart.{space}.svc.cluster.local"
    client.until(lambda: {uid_of(space), host} <= set(client.resources[ADDRESS]))
    known = set(client.resources[ADDRESS])
    home.kill_apiserver()
    home.kill_etcd()
    try:
        wait_until(lambda: controller.metric("watch_troubles_total", trouble="unreached") >= 12, "that it is away", 30)
        assert controller.pending() == ""
        with controller.client_as_before(token, "n1") as second:  # its token was reviewed a moment ago
            second.wildcard()
            second.until(lambda: set(second.resources[ADDRESS]) == known)
    finally:
        home.start()
    home.create(pod("till", space, node="n1", ips=["10.9.2.2"]))
    client.until(lambda: uid_of(space, "till") in client.resources[ADDRESS], 60)
    assert known < set(client.resources[ADDRESS])


def test_faults_of_the_api_server_keep_the_last_state(home: ApiServer, tmp_path: Path, token: str, unique: Unique) -> None:
    space = unique("shop")
    home.create(*shop(space, 3))
    with FaultProxy(home) as proxy:
        kubeconfig = proxy.kubeconfig(home.token(HOME, "nodeproxy-controller"))
        with ControllerProcess(home, tmp_path, kubeconfig=kubeconfig) as controller:
            controller.wait_ready()
            with controller.client(token, "n1") as client:
                client.wildcard()
                client.until(lambda: uid_of(space) in client.resources[ADDRESS])
                # What it takes as it comes up is not told from growth: the measure is from when it has met each fault once.
                rounds = [Fault.THROTTLE, Fault.FAIL, Fault.GARBAGE, Fault.TRUNCATE, Fault.CUT] * 2
                memory: list[int] = []
                for number, fault in enumerate(rounds):
                    proxy.set(fault)
                    seen = proxy.seen[fault]
                    wait_until(lambda: proxy.seen[fault] >= seen + 15, f"requests that meet {fault}", 40)  # noqa: B023
                    assert controller.pending() == ""
                    proxy.set(Fault.NONE)
                    name = f"p{number}"
                    home.create(pod(name, space, node="n1", ips=[f"10.9.3.{number + 10}"]))
                    client.until(lambda: uid_of(space, name) in client.resources[ADDRESS], 40)  # noqa: B023
                    assert uid_of(space) in client.resources[ADDRESS]
                    memory.append(controller.resident_bytes())
                for trouble in ("throttled", "failed", "garbage", "unreached"):
                    assert controller.metric("watch_troubles_total", trouble=trouble) > 0, trouble
                assert memory[-1] - memory[4] < 8 << 20, memory


def test_one_replica_leads_and_another_follows(home: ApiServer, tmp_path: Path) -> None:
    with ControllerProcess(home, tmp_path, name="a") as first, ControllerProcess(home, tmp_path, name="b") as second:
        first.wait_ready()
        second.wait_ready()
        leads = {each: (lambda each=each: each.metric("leader") == 1) for each in (first, second)}
        wait_until(lambda: leads[first]() or leads[second](), "somebody leads", 40)
        leader, other = (first, second) if leads[first]() else (second, first)
        assert not leads[other]()
        assert leader.terminate() == 0, leader.log()
        wait_until(leads[other], "the other leads, since the first has let go", 8)
        spec = home.get("Lease", "nodeproxy-controller", HOME)["spec"]
        leader.start()
        leader.wait_ready()
        assert leader.metric("leader") == 0
        other.kill()
        wait_until(leads[leader], "it leads again, when the other has been silent", 40)
        assert home.get("Lease", "nodeproxy-controller", HOME)["spec"]["leaseTransitions"] == spec["leaseTransitions"] + 1


def test_it_waits_for_an_api_server_that_comes_later(home: ApiServer, tmp_path: Path, token: str) -> None:
    kubeconfig = home.kubeconfig(home.token(HOME, "nodeproxy-controller"), "early")
    home.kill_apiserver()
    try:
        with ControllerProcess(home, tmp_path, kubeconfig=kubeconfig) as controller:
            wait_until(lambda: "nothing is known yet" in controller.log(), "it asks in vain", 40)
            assert "the CA's key" in controller.pending()
            home.start_apiserver()
            controller.wait_ready()
            with controller.client(token, "n1") as client:
                client.wildcard()
                client.until(lambda: uid_of(HOME, "agent") in client.resources[ADDRESS])
            with ControllerProcess(home, tmp_path, kubeconfig=kubeconfig, name="b") as other:
                other.kill()
                other.port = controller.port
                other.start()
                assert other.process is not None
                assert other.process.wait(40) == 1
                assert f"--listen 127.0.0.1:{controller.port}: the port is taken" in other.log()
    finally:
        assert home.apiserver is not None
        if home.apiserver.poll() is not None:
            home.start_apiserver()


def test_without_rights_it_says_what_to_apply(home: ApiServer, tmp_path: Path, unique: Unique) -> None:
    space = unique("nobody")
    home.create(make("Namespace", space), make("ServiceAccount", "nobody", space))
    kubeconfig = home.kubeconfig(home.token(space, "nobody"), "nobody")
    with ControllerProcess(home, tmp_path, kubeconfig=kubeconfig) as controller:
        wait_until(lambda: "daemonset/base" in controller.log(), "the log says what to do", 40)
        assert "all of kind Pod" in controller.pending()
        assert controller.terminate() == 0
