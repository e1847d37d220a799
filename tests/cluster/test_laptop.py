"""The commands from a laptop: through a real API server and Kubernetes' own port-forward to agents that listen on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from nodeproxy.__main__ import main
from tests.cluster.kinds import make, node, pod
from tests.cluster.mesh import SPACE
from tests.cluster.streaming import StreamingKubelets
from tests.cluster.world import PORT, World
from tests.mesh.cluster import MeshPod, wait_until
from tests.unit.cli.documented import cluster_examples, differences

VIEWER = Path(__file__).parents[2] / "docs" / "examples" / "viewer.yaml"


class Result(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


class Laptop(World):
    """A world with kubelets, a pod that nobody enrolled, a node without an agent, and a user who may only look."""

    kubelets: StreamingKubelets
    late: MeshPod
    viewer: Path

    def fill(self) -> None:
        for agent in self.cluster.agents:
            agent.arguments += ["--enrolment", "labels"]
        super().fill()
        self.kubelets = StreamingKubelets(self)
        self.late = self.pod(0, "late")  # no kubelet runs it, so that its node's agent finds nothing of it
        self.api.create(pod("apart", SPACE, node="node0", ips=["10.10.0.99"], labels={"istio.io/dataplane-mode": "none"}))
        more = {"generateName": "web-"}
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8", "uid": "1", "controller": True}
        replica = pod("web-5d4f8-abcde", SPACE, node="node2", ips=["10.99.0.7"], labels={"pod-template-hash": "5d4f8"})
        replica["metadata"] |= more | {"ownerReferences": [owner]}
        self.api.create(node("node2"), replica)
        for item in yaml.safe_load_all(VIEWER.read_text()):
            for subject in item.get("subjects", ()):
                subject |= {"kind": "ServiceAccount", "name": "developer", "namespace": SPACE, "apiGroup": ""}
            self.api.apply(item)
        self.api.apply(make("ServiceAccount", "developer", SPACE))
        self.viewer = self.api.kubeconfig(self.api.token(SPACE, "developer"), "developer")

    def run(self, *arguments: str, kubeconfig: Path | None = None) -> Result:
        """`nodeproxy …` where only the API server is; in this process, whose imports are paid for."""
        out, err = io.StringIO(), io.StringIO()
        with self.api.inside(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([*arguments, "--kubeconfig", str(kubeconfig or self.viewer)])
        return Result(status, out.getvalue(), err.getvalue())

    def run_apart(self, *arguments: str, **environ: str) -> Result:
        """The same as a program of its own, and without --kubeconfig."""
        assert self.api.host is not None
        assignments = [f"{name}={value}" for name, value in environ.items()]
        done = self.api.host.run(["env", *assignments, sys.executable, "-m", "nodeproxy", *arguments])
        return Result(done.returncode, done.stdout, done.stderr)

    def asked(self, *arguments: str, status: int = 0) -> Any:
        done = self.run(*arguments, "-o", "json")
        assert done.status == status, done.err + done.out
        return json.loads(done.out)

    def told(self, *arguments: str, status: int = 0) -> str:
        done = self.run(*arguments)
        assert done.status == status, done.err + done.out
        return done.out + done.err

    def close(self) -> None:
        if hasattr(self, "kubelets"):
            self.kubelets.close()
        super().close()


@pytest.fixture(scope="module")
def laptop(definitions: list[Path]) -> Iterator[Laptop]:
    made = Laptop.of_controller(definitions)
    try:
        made.fill()
        yield made
    finally:
        made.close()


def told_as_documented(command: str, found: Any) -> list[str]:
    """Where it differs from docs/json.md; what agents say, which is handed on, left out."""
    example = cluster_examples()[command]
    for each in (found, example):
        for row in [*each.get("nodes", ()), *each.get("parts", ())]:
            if isinstance(row, dict):
                row |= dict.fromkeys({"status", "answer"} & set(row))
        if "refusal" in each:
            each["refusal"] = {}
    return differences(found, example)


def test_status_shows_nodes_and_pods_in_or_why_not(laptop: Laptop) -> None:
    found = laptop.asked("status", "-n", SPACE)
    nodes = {row["node"]: row for row in found["nodes"]}
    assert sorted(nodes) == ["node0", "node1", "node2"]
    assert [nodes[name]["ready"] for name in sorted(nodes)] == [True, True, False]
    assert nodes["node0"]["agent"] == f"{laptop.namespace}/agent-node0"
    assert (nodes["node0"]["pods_in"], nodes["node0"]["missing"], nodes["node2"]["error"]) == (1, [], "no agent runs on it")
    assert nodes["node1"]["status"]["node"] == "node1"
    pods = {row["name"]: row for row in found["pods"]}
    assert {name: row["in_mesh"] for name, row in pods.items()} == {
        "client": True,
        "server": True,
        "late": False,
        "apart": False,
        "web-5d4f8-abcde": False,
    }
    assert pods["client"]["identity"] == laptop.client.identity
    assert pods["late"]["why"] not in ("", pods["apart"]["why"])
    assert pods["apart"]["why"] == "its own label istio.io/dataplane-mode keeps it out"
    assert pods["web-5d4f8-abcde"]["why"] == "no agent runs on node node2"
    assert told_as_documented("status", json.loads(json.dumps(found))) == []
    text = laptop.told("status", "-n", SPACE)
    assert "2 of 3 nodes ready, nodeproxy" in text
    assert "2 of 5 pods in the mesh." in text


def test_why_tells_the_whole_way(laptop: Laptop) -> None:
    found = laptop.asked("why", f"{SPACE}/client", "api:80")
    source, destination = found["parts"]
    assert (source["node"], source["side"], destination["node"], destination["side"]) == (
        "node0",
        "source",
        "node1",
        "destination",
    )
    assert source["answer"]["way"]["identity"] == laptop.client.identity
    assert destination["answer"]["outcome"] == f"let in to {laptop.server.ip}:{PORT}"
    assert (found["passes"], found["refusal"], found["destination"]) == (True, None, f"{laptop.vip}:80")
    assert told_as_documented("why", json.loads(json.dumps(found))) == []
    for names in (
        ("client", "api"),
        ("pod/client", "svc/api"),
        ("client.shop", f"{laptop.vip}:80"),
        (laptop.client.ip, "server:80"),
    ):
        assert laptop.asked("why", *names, "-n", SPACE)["passes"]
    text = laptop.told("why", "client", "svc/api:80", "-n", SPACE)
    assert "node0, where it comes from:" in text
    assert "node1, where it arrives:" in text
    assert f"It would pass: let in to {laptop.server.ip}:{PORT}" in text or "It would pass: tunnelled" in text


def test_why_tells_what_policy_refuses_there(laptop: Laptop) -> None:
    laptop.policy("deny", action="DENY", rules=[laptop.rule_from_client()])
    wait_until(lambda: not laptop.answers(), "it is denied")
    found = laptop.asked("why", "client", "api", "-n", SPACE, status=1)
    assert found["refusal"]["reason"] == "policy_deny"
    assert found["parts"][1]["answer"]["refusal"]["resource"] == f"{SPACE}/deny"
    laptop.api.delete("AuthorizationPolicy", "deny", SPACE)
    wait_until(laptop.answers, "it is allowed again")


def test_why_explains_a_source_outside_the_mesh(laptop: Laptop) -> None:
    found = laptop.asked("why", "late", "api", "-n", SPACE)
    source, destination = found["parts"]
    assert source["answer"]["enrolled"] is False
    (late,) = [row for row in laptop.asked("status", "-n", SPACE)["pods"] if row["name"] == "late"]
    assert source["answer"]["steps"][1]["outcome"] == f"no: {late['why']}"
    assert source["answer"]["way"]["kind"] == "plain"
    assert destination["answer"]["source"] == laptop.late.ip
    replica = laptop.asked("why", "deploy/web", "api", "-n", SPACE)
    assert replica["notes"][0] == "shop/web-5d4f8-abcde is taken, the pod of deployment/web"
    assert replica["notes"][1].startswith("no agent runs on node2")
    assert replica["parts"][0]["answer"]["enrolled"] is False
    assert "asked for want of an agent where it comes from:" in laptop.told("why", "web", "api", "-n", SPACE)


def test_why_explains_a_destination_that_nobody_enrolled(laptop: Laptop) -> None:
    found = laptop.asked("why", "server", f"pod/late:{PORT}", "-n", SPACE, status=1)
    assert found["refusal"]["reason"] == "connect_refused"
    assert "nothing listens at port 15008" in found["outcome"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("why", "clint", "api"), "has no pod 'clint', and no workload of that name has one; did you mean client?"),
        (("why", "client", "nothing"), "no workload is called 'nothing.shop'"),
        (("why", "svc/api", "client"), "is a service, which connects to nobody"),
        (("why", "client", "api:99999"), "'99999' is no port"),
        (("why", "Client", "api"), "'Client' is no name of a pod"),
        (("why", "client", "api", "--system-namespace", "elsewhere"), "no agent's pod is in namespace elsewhere"),
    ],
)
def test_asked_wrongly(laptop: Laptop, arguments: tuple[str, ...], said: str) -> None:
    assert said in laptop.told(*arguments, "-n", SPACE, status=2)


def test_what_a_pod_calls_its_owner_steers_no_terminal(laptop: Laptop) -> None:
    """An owner's name is anything to the API server, and whoever may create a pod says it."""
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web\x1b]0;owned\x07", "uid": "1", "controller": True}
    hostile = pod("hostile-0", SPACE, node="node0", ips=["10.10.0.98"])
    hostile["metadata"] |= {"generateName": "hostile-", "ownerReferences": [owner]}
    laptop.api.create(hostile)
    try:
        for arguments in (("why", "we", "api"), ("connections", "--pod", "we")):
            said = laptop.told(*arguments, "-n", SPACE, status=2)
            assert "web\ufffd]0;owned\ufffd" in said
    finally:
        laptop.api.delete("Pod", "hostile-0", SPACE)


def test_connections_of_all_nodes_or_of_a_pod(laptop: Laptop) -> None:
    with laptop.connect():
        found = laptop.asked("connections")["connections"]
        assert {(row["node"], row["direction"]) for row in found} == {("node0", "outbound"), ("node1", "inbound")}
        (row,) = laptop.asked("connections", "--pod", "client", "-n", SPACE)["connections"]
        assert (row["node"], row["source"]["identity"]) == ("node0", laptop.client.identity)
        assert laptop.asked("connections", "-n", "elsewhere")["connections"] == []
        text = laptop.told("connections")
    assert "2 connections" in text
    assert "node1" in text


def test_check_tells_where_nodes_differ(laptop: Laptop) -> None:
    done = laptop.run("check", "-o", "json")
    found = json.loads(done.out)
    assert told_as_documented("check", found) == []
    assert found["nodes"] == ["node0", "node1"]
    assert not any(row["differs"] for row in found["requirements"])
    assert found["ok"] == (done.status == 0) == all(row["ok"] for row in found["requirements"])
    assert "the same and good everywhere" in laptop.run("check").out
    assert "BCC" in laptop.run("check", "--all").out


def test_what_a_node_fails_at_is_named_and_keeps_nobody_from_the_others(laptop: Laptop) -> None:
    laptop.cluster.agents[1].kill()
    try:
        found = laptop.asked("status", "-n", SPACE, status=1)
        nodes = {row["node"]: row for row in found["nodes"]}
        assert "connection refused" in nodes["node1"]["error"]
        assert "nothing listens there" in nodes["node1"]["error"]
        assert nodes["node0"]["ready"]
        (server,) = [row for row in found["pods"] if row["name"] == "server"]
        assert server["in_mesh"] is None
        assert "node1" in laptop.told("check", status=1)
        way = laptop.asked("why", "client", "api", "-n", SPACE, status=1)
        assert (way["passes"], way["parts"][0]["error"]) == (None, "")
        assert "connection refused" in way["parts"][1]["error"]
    finally:
        laptop.cluster.agents[1].start()


def test_a_hundred_nodes_are_asked_at_once_and_one_that_is_down_is_named(
    laptop: Laptop, record_property: pytest.RecordProperty
) -> None:
    """All of them on one kubelet and one agent, which is the slowest that they could be."""
    names = [f"many{number}" for number in range(100)]
    kubelet = laptop.api.get("Node", "node0")["status"]
    down = {**kubelet, "addresses": [{"type": "InternalIP", "address": "10.10.255.77"}]}  # of the lab's underlay, nobody's
    agents = [f"{laptop.namespace}/agent-{name}" for name in (*names, "down")]
    laptop.kubelets.place({agent: laptop.cluster.lab.nodes[0].netns_path for agent in agents})
    for name in (*names, "down"):
        laptop.api.create(node(name) | {"status": down if name == "down" else kubelet})
        labels, more = {"app": "nodeproxy"}, {"spec": {"hostNetwork": True}}
        agent = pod(f"agent-{name}", laptop.namespace, node=name, ips=["10.0.0.1"], labels=labels, **more)
        laptop.api.create(agent)
    began = time.monotonic()
    found = laptop.asked("status", *(f"--node={name}" for name in (*names, "down")), status=1)
    took = time.monotonic() - began
    record_property("status of 100 nodes and one that is down, from a laptop", f"{took:.1f} s")
    rows = {row["node"]: row for row in found["nodes"]}
    assert [name for name in names if not rows[name]["ready"]] == []
    assert "does not reach the kubelet of node down: is the node up?" in rows["down"]["error"]
    assert took < 30
    for name in (*names, "down"):
        laptop.api.delete("Pod", f"agent-{name}", laptop.namespace)
        laptop.api.delete("Node", name)


def test_who_may_not_is_told_what_to_ask_for(laptop: Laptop) -> None:
    laptop.api.apply(make("ServiceAccount", "nobody", SPACE))
    nobody = laptop.api.kubeconfig(laptop.api.token(SPACE, "nobody"), "nobody")
    done = laptop.run("status", kubeconfig=nobody)
    assert done.status == 1
    assert "403" in done.err
    assert "ask for the ClusterRole nodeproxy-viewer" in done.err


def test_who_may_not_list_nodes_is_told_what_is_not_shown(laptop: Laptop) -> None:
    role = laptop.api.get("ClusterRole", "nodeproxy-viewer")
    laptop.api.patch("ClusterRole", "nodeproxy-viewer", rules=role["rules"][:1])
    wait_until(lambda: laptop.asked("status")["notes"], "the right is gone")
    found = laptop.asked("status")
    assert [row["node"] for row in found["nodes"]] == ["node0", "node1"]
    assert "nodes without an agent are not shown: this user may not list nodes" in laptop.told("status")
    laptop.api.patch("ClusterRole", "nodeproxy-viewer", rules=role["rules"])
    wait_until(lambda: not laptop.asked("status")["notes"], "it is back")


def test_both_rights_to_forward_are_needed(laptop: Laptop) -> None:
    """As an API server of this version has it; one before 1.35 asks for get alone."""
    role = laptop.api.get("Role", "nodeproxy-viewer", laptop.namespace)
    for verb in ("get", "create"):
        rules = [rule | {"verbs": [verb]} for rule in role["rules"]]
        laptop.api.patch("Role", "nodeproxy-viewer", laptop.namespace, rules=rules)

        def refused() -> bool:
            rows = json.loads(laptop.run("status", "-o", "json").out)["nodes"]
            return all("403" in row["error"] for row in rows if row["agent"])

        wait_until(refused, f"{verb} alone does not do")
    laptop.api.patch("Role", "nodeproxy-viewer", laptop.namespace, rules=role["rules"])
    wait_until(lambda: laptop.run("status").status == 0, "both do")


def test_the_kubeconfig_is_found_as_kubectl_finds_it(laptop: Laptop) -> None:
    done = laptop.run_apart("why", "client", "api", "-n", SPACE, KUBECONFIG=f"/absent:{laptop.viewer}")
    assert (done.status, done.err) == (0, ""), done.out
    done = laptop.run_apart("status", KUBECONFIG=str(laptop.viewer))  # nothing says that a cluster is meant
    assert done.status == 1
    assert "no agent answers" in done.err
    done = laptop.run_apart("status", "--context", "other", KUBECONFIG=str(laptop.viewer))
    assert "(context other) can't be used" in done.err
