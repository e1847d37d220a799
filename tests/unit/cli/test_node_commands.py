"""status, connections, why, enrol, leave: what they make of an agent's answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeAdmin, Result

Run = Callable[..., Result]
WORKLOAD = {"uid": "Kubernetes//Pod/shop/frontend", "name": "frontend", "namespace": "shop"}
POD = {
    "uid": WORKLOAD["uid"],
    "netns": "/run/netns/frontend",
    "addresses": ["10.0.0.2", "fd00::2"],
    "identity": "spiffe://cluster.local/ns/shop/sa/frontend",
    "workload": "shop/frontend",
    "since": 1.0,
    "error": "",
    "certificate_until": 0.0,
    "state": "in",
    "why": "",
    "standing_connections": 0,
}
STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "instance": "default",
    "run_dir": "/run/nodeproxy/default",
    "node": "n1",
    "started": 1.0,
    "ready": True,
    "pending": [],
    "state": {
        "source": "file /m.yaml",
        "received": 1.0,
        "epoch": 7,
        "workloads": 2,
        "services": 1,
        "policies": 1,
        "error": "",
        "connection": None,
    },
    "pods": [POD],
    "workers": [{"slot": 0, "pid": 11, "ready": True, "restarts": 3}],
    "kernel": {"adopted": False, "drops": {"no_listener": 4, "foreign_bind": 0}},
    "kubelet": {"pid": 812, "cgroup": "/system.slice/kubelet.service", "why": "", "connections": {"passed": 7}},
    "direct": {
        "same_node": "direct",
        "open": True,
        "off": "",
        "pairs": 1,
        "services": 2,
        "left_out": 0,
        "undestroyed": [],
    },
    "certificates": [
        {
            "identity": POD["identity"],
            "pods": 1,
            "valid_until": 9e9,
            "renewing": False,
            "failing_since": 0.0,
            "failures": 0,
            "why": "",
            "alarm": False,
        }
    ],
}
CONNECTION = {
    "id": 1,
    "direction": "outbound",
    "source": {"address": "10.0.0.2:4000", "workload": WORKLOAD, "identity": POD["identity"]},
    "destination": {"address": "10.0.1.2:8080"},
    "security": "mutual_tls",
    "service": {"name": "orders", "namespace": "shop", "hostname": "orders.shop"},
    "hbone_address": "10.0.1.2:15008",
    "received_bytes": 2048,
    "sent_bytes": 5,
    "started": 1.0,
    "ended": 0.0,
    "reason": None,
    "detail": "",
    "direct": False,
}


@pytest.mark.parametrize(
    ("direct", "lines"),
    [
        ({"same_node": "hbone", "off": "same_node is hbone"}, ["✓ Pods of this node talk through HBONE, as between nodes."]),
        ({"off": "no way"}, ["✓ Pods of this node talk through the proxy: no way."]),
        (
            {"undestroyed": ["pod: why"]},
            [
                "✗ Pods of this node talk through the proxy: a change is being put into effect.",
                "  A direct connection that policy denies can't be ended: pod: why",
            ],
        ),
    ],
)
def test_status_says_why_pods_of_the_node_talk_through_the_proxy(
    admin: FakeAdmin, run_dir: Path, run: Run, direct: dict[str, Any], lines: list[str]
):
    admin.answers["GET /status"] = (200, STATUS | {"direct": STATUS["direct"] | {"open": False} | direct})
    assert run("status", "--run-dir", run_dir).out.splitlines()[2 : 2 + len(lines)] == lines


def test_status_says_first_whether_all_is_well(admin: FakeAdmin, run_dir: Path, run: Run):
    admin.answers["GET /status"] = (200, STATUS)
    result = run("status", "--run-dir", run_dir)
    first = result.out.splitlines()[:5]
    assert first[0].startswith("✓ n1 (instance default, nodeproxy 0.1.0) is ready, started ")
    assert first[1].startswith("✓ State from file /m.yaml: 2 workloads, 1 service, 1 policy; last changed ")
    assert (
        first[2]
        == "✓ Pods of this node talk without the proxy where policy allows it beforehand: 1 pair of pods, 2 service ports."
    )
    assert first[3] == "✓ The kubelet's probes pass policy: process 812 in /system.slice/kubelet.service."
    assert first[4] == "✓ 1 pod enrolled."
    assert "\x1b" not in result.out
    assert "no_listener" in result.out
    assert "foreign_bind" not in result.out
    assert result.status == 0


def test_status_of_a_node_in_trouble(admin: FakeAdmin, run_dir: Path, run: Run):
    broken = STATUS | {"ready": False, "pending": ["the first state"], "certificates": []}
    broken["state"] = STATUS["state"] | {"received": 0.0, "error": "m.yaml:3:1: wrong"}
    broken["kubelet"] = {"pid": 0, "cgroup": "", "why": "no process is called so", "connections": {}}
    broken["pods"] = [POD, POD | {"uid": "other", "error": "netns gone", "addresses": [], "since": 0.0, "state": "failed"}]
    admin.answers["GET /status"] = (200, broken)
    out = run("status", "--run-dir", run_dir).out
    assert "✗ n1 (instance default, nodeproxy 0.1.0) is not ready; it waits for: the first state." in out
    assert "never received" in out
    assert "The kubelet's probes are judged by policy as anybody's: no process is called so." in out
    assert "The last change was refused, the state before it stays: m.yaml:3:1: wrong" in out
    assert "✗ 1 pod enrolled, 1 failed." in out
    assert "netns gone" in out


def test_status_says_of_every_pod_why_it_is_in_or_not(admin: FakeAdmin, run_dir: Path, run: Run):
    outside = POD | {"uid": "", "netns": "", "addresses": [], "identity": "", "since": 0.0}
    pods = [
        POD | {"standing_connections": 3},
        outside | {"uid": "u", "workload": "shop/late", "state": "waiting", "why": "it has no process yet"},
        outside | {"workload": "shop/free", "state": "opted_out", "why": "its own label keeps it out"},
        outside | {"workload": "kube-system/dns", "state": "unlabelled", "why": "neither has the label"},
    ]
    admin.answers["GET /status"] = (200, STATUS | {"pods": pods})
    out = " ".join(run("status", "--run-dir", run_dir).out.split())
    assert "✗ 1 pod enrolled, 1 is waited for, 2 outside the mesh. 3 connections from before go on outside the mesh. " in out
    for shown in ("shop/free", "opted_out", "its own label keeps it out", "kube-system/dns", "waiting", "it has no process yet"):
        assert shown in out


def test_status_of_a_source_that_is_connected_to(admin: FakeAdmin, run_dir: Path, run: Run):
    connection = {"address": "https://istiod:15012", "connected": True, "since": 1.0, "error": "", "rejected": []}
    of_xds = STATUS | {"state": STATUS["state"] | {"source": "xds https://istiod:15012", "connection": connection}}
    admin.answers["GET /status"] = (200, of_xds)
    line = run("status", "--run-dir", run_dir).out.splitlines()[2]
    assert line.startswith("✓ Connected ")
    assert line.endswith(" d ago, server https://istiod:15012.")
    connection |= {"connected": False, "error": "connection_error: refused"}
    connection["rejected"] = [{"type": "Authorization", "name": "ns/p", "reason": "extension", "why": "unknown"}]
    out = run("status", "--run-dir", run_dir).out
    assert "✗ Disconnected " in out
    assert "server https://istiod:15012: connection_error: refused." in out
    assert "  Authorization ns/p can't be used (extension): unknown" in out


def test_status_as_json_is_the_agents_answer(admin: FakeAdmin, tcp: str, run: Run):
    admin.answers["GET /status"] = (200, STATUS)
    assert json.loads(run("status", "--admin", tcp, "-o", "json").out) == STATUS


def test_connections(admin: FakeAdmin, run_dir: Path, run: Run):
    admin.answers["GET /connections"] = (200, {"connections": [CONNECTION]})
    lines = run("connections", "--run-dir", run_dir).out.splitlines()
    assert lines[1] == "1 connection"
    assert lines[3].startswith(
        "shop/frontend 10.0.0.2:4000  orders.shop → 10.0.1.2:8080  spiffe://cluster.local/ns/shop/sa/frontend  -  "
    )
    assert "outbound   mutual TLS  2.0 KiB      5 B" in lines[3]


def test_connections_on_a_terminal_have_identities_below_the_addresses(
    admin: FakeAdmin, run_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    admin.answers["GET /connections"] = (200, {"connections": [CONNECTION]})
    lines = run("connections", "--run-dir", run_dir).out.splitlines()
    address = next(number for number, line in enumerate(lines) if line.lstrip().startswith("shop/frontend 10.0.0.2:4000"))
    assert lines[address + 1].split()[0] == "spiffe://cluster.local/ns/shop/sa/frontend"


def test_connections_of_one_pod(admin: FakeAdmin, run_dir: Path, run: Run):
    admin.answers["GET /connections"] = (200, {"connections": [CONNECTION]})
    by_uid = [
        json.loads(run("connections", "--run-dir", run_dir, "--pod", uid, "-o", "json").out) for uid in (WORKLOAD["uid"], "other")
    ]
    assert by_uid == [{"connections": [CONNECTION]}, {"connections": []}]
    assert run("connections", "--run-dir", run_dir, "--pod", "other").out == "No connection is open.\n"


@pytest.mark.parametrize("refusal", [None, {"reason": "policy_deny", "detail": "policy shop/no says no", "resource": "shop/no"}])
def test_why_numbers_its_steps_and_ends_with_the_verdict(
    admin: FakeAdmin, run_dir: Path, run: Run, refusal: dict[str, str] | None
):
    answer = {
        "source": "a",
        "destination": "10.0.0.3:80",
        "steps": [
            {"what": "who is b?", "outcome": "a service", "resource": "shop/b"},
            {"what": "and then?", "outcome": "x", "resource": ""},
        ],
        "outcome": "refused (policy_deny): policy shop/no says no" if refusal else "connected to b at 10.0.0.3:80 on this node",
        "refusal": refusal,
    }
    admin.answers["GET /why?source=a&destination=b"] = (200, answer)
    result = run("why", "a", "b", "--run-dir", run_dir)
    lines = result.out.splitlines()
    assert lines[:3] == ["a → 10.0.0.3:80", "  1. who is b? a service  [shop/b]", "  2. and then? x"]
    if refusal is None:
        assert (lines[3], result.status) == ("✓ It would be connected to b at 10.0.0.3:80 on this node", 0)
    else:
        assert lines[3] == "✗ It would not pass: refused (policy_deny): policy shop/no says no"
        assert result.status == 1
    as_json = run("why", "a", "b", "--run-dir", run_dir, "-o", "json")
    assert (json.loads(as_json.out), as_json.status) == (answer, result.status)


def test_enrol_and_leave(admin: FakeAdmin, run_dir: Path, run: Run):
    admin.answers["POST /pods"] = (200, {"uid": "K//Pod/a/b", "enrolled_ms": 12.4})
    admin.answers["DELETE /pods/K%2F%2FPod%2Fa%2Fb"] = (200, {"uid": "K//Pod/a/b"})
    assert run("enrol", "K//Pod/a/b", "/run/netns/b", "--run-dir", run_dir).out == "K//Pod/a/b is enrolled (12 ms).\n"
    assert run("leave", "K//Pod/a/b", "--run-dir", run_dir).out == "K//Pod/a/b has left; its traffic is plain again.\n"
    assert json.loads(run("leave", "K//Pod/a/b", "--run-dir", run_dir, "-o", "json").out) == {"uid": "K//Pod/a/b"}


def test_what_the_agent_did_not_understand_is_wrong_use(admin: FakeAdmin, run_dir: Path, run: Run):
    admin.answers["POST /pods"] = (400, {"error": "netns must be absolute"})
    result = run("enrol", "a", "b", "--run-dir", run_dir)
    assert (result.status, result.out, result.err) == (
        2,
        "",
        "nodeproxy: error: netns must be absolute\nTry 'nodeproxy enrol --help'.\n",
    )
    admin.answers["POST /pods"] = (409, {"error": "the netns has gone"})
    result = run("enrol", "a", "b", "--run-dir", run_dir)
    assert (result.status, result.err) == (1, "nodeproxy: error: the netns has gone\n")


def test_one_agent_is_named_one_way(tcp: str, run: Run, monkeypatch: pytest.MonkeyPatch, admin: FakeAdmin):
    admin.answers["GET /status"] = (200, STATUS)
    for named in (("--instance", "blue"), ("--run-dir", "/r")):
        result = run("status", "--admin", tcp, *named)
        assert result.status == 2
        assert f"--admin and {named[0]} are two ways to name one agent" in result.err
    monkeypatch.setenv("NODEPROXY_INSTANCE", "blue")
    assert run("status", "--admin", tcp).status == 0
    assert "/run/nodeproxy/blue/admin.sock" in run("status").err
    assert run("status", "--instance", "B!").status == 2
    assert run("status", "--admin", "nowhere").status == 2
