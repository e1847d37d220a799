"""What a node's agent is told of its own pods, by the controller as a program and a real API server: those, and in time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from nodeproxy.model.node_pod import Membership, NodePod
from nodeproxy.xds.decode import decode_mesh_namespace, decode_node_pod
from nodeproxy.xds.names import ADDRESS, MESH_NAMESPACE, NODE_POD
from tests.cluster.apiserver import ApiServer
from tests.cluster.controller import HOME, ControllerProcess, install
from tests.cluster.kinds import make, node, pod
from tests.mesh.cluster import wait_until
from tests.xds_client import StreamEnded, XdsClient

AUDIENCE = "istio-ca"
MODE = "istio.io/dataplane-mode"
LABELS = {"": {}, "ambient": {MODE: "ambient"}, "none": {MODE: "none"}}
Unique = Callable[[str], str]
PODS = 20


@pytest.fixture(scope="module")
def home(bare_api: ApiServer) -> ApiServer:
    """An API server with the controller's rights, and two nodes with an agent each."""
    install(bare_api)
    bare_api.create(make("ServiceAccount", "nodeproxy", HOME), node("n1"), node("n2"))
    for number in (1, 2):
        bare_api.create(pod(f"agent-{number}", HOME, node=f"n{number}", ips=[f"10.9.0.{number}"], account="nodeproxy"))
    return bare_api


@pytest.fixture(scope="module")
def controller(home: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    with ControllerProcess(home, tmp_path_factory.mktemp("controller")) as process:
        process.wait_ready()
        yield process


def agent(home: ApiServer, controller: ControllerProcess, number: int) -> XdsClient:
    client = controller.client(home.token(HOME, "nodeproxy", audience=AUDIENCE, pod=f"agent-{number}"), f"n{number}")
    client.begin(MESH_NAMESPACE)
    client.begin(NODE_POD)
    client.take()
    client.take()
    return client


def pending(name: str, space: str, node: str, *, labels: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A pod as the scheduler leaves it: with a node, without a status."""
    annotations = more.pop("annotations", {})
    spec = {"nodeName": node, "containers": [{"name": "app", "image": "app"}], **more}
    return make("Pod", name, space, labels=labels or {}, annotations=annotations, spec=spec)


def pods(client: XdsClient, space: str) -> dict[str, NodePod]:
    found = [decode_node_pod(resource.resource.value) for resource in client.resources[NODE_POD].values()]
    return {each.name: each for each in found if each.namespace == space}


def test_a_node_is_told_of_its_own_pods_whatever_their_labels_are(
    home: ApiServer, controller: ControllerProcess, unique: Unique
) -> None:
    wanted: dict[str, dict[str, Membership]] = {}
    spaces = {mode: unique("space") for mode in LABELS}
    for mode, space in spaces.items():
        home.create(make("Namespace", space, labels=LABELS[mode]), make("ServiceAccount", "default", space))
        wanted[space] = {}
    uids = {}
    for (mode, space), (own, labels) in product(spaces.items(), LABELS.items()):
        inherited = Membership.NAMESPACE_LABEL if mode == "ambient" else Membership.UNLABELLED
        ways: dict[str, tuple[Membership, dict[str, Any]]] = {
            "plain": ({"": inherited, "ambient": Membership.POD_LABEL, "none": Membership.OPTED_OUT}[own], {}),
            "host": (Membership.HOST_NETWORK, {"hostNetwork": True}),
            "sidecar": (Membership.SIDECAR, {"annotations": {"sidecar.istio.io/status": "{}"}}),
        }
        for way, (membership, more) in ways.items():
            name = f"{way}-{own or 'unlabelled'}"
            made = home.create(pending(name, space, "n1", labels=labels, **more))
            uids[space, name] = made["metadata"]["uid"]
            wanted[space][name] = membership
    for space in spaces.values():
        home.create(pending("elsewhere", space, "n2", labels=LABELS["ambient"]))
    with agent(home, controller, 1) as first, agent(home, controller, 2) as second:
        for space, memberships in wanted.items():
            first.until(lambda space=space: pods(first, space).keys() == wanted[space].keys())
            found = pods(first, space)
            assert {name: each.membership for name, each in found.items()} == memberships
            assert {each.pod_uid for each in found.values()} == {uid for (where, _), uid in uids.items() if where == space}
            assert all((each.workload is not None) is each.membership.in_mesh for each in found.values())
            second.until(lambda space=space: pods(second, space))
            assert list(pods(second, space)) == ["elsewhere"]
        # A namespace's label changes what all of its pods are, and the pods' own win.
        space = spaces["ambient"]
        home.patch("Namespace", space, metadata={"labels": {MODE: None}})
        first.until(lambda: pods(first, space)["plain-unlabelled"].membership is Membership.UNLABELLED)
        assert pods(first, space)["plain-ambient"].membership is Membership.POD_LABEL
        first.until(lambda: not namespaces(first)[space])
        for client in (first, second):
            client.until(lambda client=client: set(spaces.values()) <= namespaces(client).keys())
        # Pods that end or go are gone.
        home.patch("Pod", "plain-ambient", space, "status", status={"phase": "Succeeded"})
        home.delete("Pod", "plain-none", space)
        first.until(lambda: not {"plain-ambient", "plain-none"} & pods(first, space).keys())


def namespaces(client: XdsClient) -> dict[str, bool]:
    found = [decode_mesh_namespace(resource.resource.value) for resource in client.resources[MESH_NAMESPACE].values()]
    return {each.name: each.labelled for each in found}


def test_others_are_told_of_no_pods_whatever_they_say(home: ApiServer, controller: ControllerProcess, unique: Unique) -> None:
    space = unique("shop")
    home.create(make("Namespace", space, labels=LABELS["ambient"]), make("ServiceAccount", "default", space))
    home.create(pod("cart", space, node="n1", ips=["10.9.7.1"]))
    with agent(home, controller, 1) as first:
        first.until(lambda: pods(first, space))
    # Of the node, but no proxy of it.
    with controller.client(home.token(space, "default", audience=AUDIENCE, pod="cart"), "n1") as client:
        for type_url in (NODE_POD, MESH_NAMESPACE):
            client.begin(type_url)
            assert not client.take().resources
    # A proxy of another node that says it is of this one.
    with controller.client(home.token(HOME, "nodeproxy", audience=AUDIENCE, pod="agent-2"), "n1") as client:
        client.begin(NODE_POD)
        client.take()
        assert not pods(client, space)
        assert f"{HOME}/agent-2" in client.resources[NODE_POD]
    # One that is no more: its token is known for a minute.
    home.create(pod("agent-3", HOME, node="n1", ips=["10.9.0.3"], account="nodeproxy"))
    token = home.token(HOME, "nodeproxy", audience=AUDIENCE, pod="agent-3")
    with controller.client(token, "n1") as client:
        client.begin(NODE_POD)
        client.take()
    home.delete("Pod", "agent-3", HOME)
    with agent(home, controller, 1) as first:
        first.until(lambda: f"{HOME}/agent-3" not in first.resources[NODE_POD])
    with controller.client(token, "n1") as client:
        client.begin(NODE_POD)
        with pytest.raises(StreamEnded, match="has not been seen"):
            client.take()
    wait_until(lambda: controller.metric("xds_streams_ended_total", reason="unplaced") == 1, "that it is counted")


def test_a_pod_is_known_to_its_node_before_it_has_an_address(
    home: ApiServer, controller: ControllerProcess, unique: Unique, record_property: Callable[[str, object], None]
) -> None:
    space = unique("shop")
    home.create(make("Namespace", space, labels=LABELS["ambient"]), make("ServiceAccount", "default", space))
    took: list[float] = []
    with agent(home, controller, 1) as client:
        client.wildcard()
        client.until(lambda: space in namespaces(client))
        for number in range(PODS):
            name = f"pod-{number}"
            began = time.monotonic()
            home.create(pending(name, space, "n1", labels={"app": "cart"}))
            client.until(lambda name=name: name in pods(client, space))
            took.append(time.monotonic() - began)
            told = pods(client, space)[name].workload
            assert told is not None
            assert (told.uid, told.addresses) == (f"Kubernetes//Pod/{space}/{name}", ())
            assert told.uid not in client.resources[ADDRESS]
        home.patch(
            "Pod", "pod-0", space, "status", status={"phase": "Running", "podIP": "10.9.8.1", "podIPs": [{"ip": "10.9.8.1"}]}
        )
        client.until(lambda: f"Kubernetes//Pod/{space}/pod-0" in client.resources[ADDRESS])
        known = pods(client, space)["pod-0"].workload
        assert known is not None
        assert known.addresses == ("10.9.8.1",)
        assert controller.metric("xds_resources", kind="node_pod") >= PODS
        versions = client.versions(NODE_POD)
    with controller.client(home.token(HOME, "nodeproxy", audience=AUDIENCE, pod="agent-1"), "n1") as client:
        client.begin(NODE_POD, versions=versions)
        assert not client.take().resources  # it resumes
    record_property(
        f"controller: from a pod's creation to its node's knowing, of {PODS}",
        f"{statistics.median(took) * 1000:.0f} ms, at most {max(took) * 1000:.0f} ms",
    )
    assert max(took) < 2.0
