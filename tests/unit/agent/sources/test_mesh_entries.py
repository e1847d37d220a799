"""Entries as they come, and what they owe to each other."""

from __future__ import annotations

import pytest

from nodeproxy.agent.sources.mesh_entries import Entries
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import PodSpec

# The lists stand in another order than they are told of.
MESH = """\
pods:
  - {uid: web, netns: /run/netns/web}
policies:
  - {name: p, namespace: ns, scope: WorkloadSelector, action: Allow, rules: [[]]}
services:
  - {name: web, namespace: ns, hostname: web.svc, vips: [/10.96.0.1], ports: {80: 8080}}
workloads:
  - {uid: web, namespace: ns, workloadIps: [10.0.0.1], services: {ns/web.svc: {}}, authorizationPolicies: [ns/p]}
  - {uid: db, namespace: ns, workloadIps: [10.0.0.2], services: {ns/web.svc: {}}, authorizationPolicies: [ns/p]}
"""


def read(text: str, known: dict[str, list[str]] | None = None) -> tuple[Entries, list[tuple[str, str]], bool]:
    taken: list[tuple[str, str]] = []
    entries = Entries("f", lambda name, key, resource: taken.append((name, key)), known)
    return entries, taken, entries.read(text.encode())


def test_resources_are_handed_on_in_the_order_of_the_file() -> None:
    entries, taken, alone = read(MESH)
    assert taken == [("policies", "ns/p"), ("services", "ns/web.svc"), ("workloads", "web"), ("workloads", "db")]
    assert {name: list(keys.items()) for name, keys in entries.keys.items()} == {
        "workloads": [("web", 8), ("db", 9)],
        "services": [("ns/web.svc", 6)],
        "policies": [("ns/p", 4)],
        "pods": [("web", 2)],
    }
    assert entries.pods == [PodSpec("web", "/run/netns/web")]
    assert alone


def test_aliases_are_told() -> None:
    assert not read(MESH.replace("services: {ns/web.svc: {}}", "services: &s {ns/web.svc: {}}", 1))[2]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        # A later one of syntax before all others; then the file's keys; then list by list, reading before uniqueness.
        ([("uid: web, netns", "uid: web, nets"), ("[10.0.0.2]", "[10.0.0.2}")], "f:9:52: not YAML"),
        ([("uid: web, netns", "uid: web, nets"), ("services:\n", "srvices:\n")], "f:5:1: the file has no key 'srvices'"),
        ([("uid: web, netns", "uid: web, nets"), ("[10.0.0.2]", "[ten]")], "f:9:44: an address must be an IP address"),
        ([("uid: db", "uid: web"), ("[10.0.0.2]", "[ten]")], "f:9:45: an address must be an IP address"),
        ([("uid: db", "uid: web"), ("name: p,", "")], "f:9:5: workloads: 'web' is there twice, first in line 8"),
        ([("uid: db", "uid: web"), ("[ns/p]", "[ns/q]")], "f:9:5: workloads: 'web' is there twice"),
        # The first workload that names it, its services before its policies, and workloads before pods.
        (
            [("name: p,", "name: q,")],
            "f:8:5: workload 'web' names the policy 'ns/p', which is not in the file; did you mean ns/q?",
        ),
        ([("name: p,", "name: q,"), ("hostname: web", "hostname: x")], "f:8:5: workload 'web' names the service 'ns/web.svc'"),
        ([("name: p,", "name: q,"), ("uid: web, netns", "uid: x, netns")], "f:8:5: workload 'web' names the policy 'ns/p'"),
        ([("uid: web, netns", "uid: x, netns")], "f:2:5: pod 'x' names the workload 'x', which is not in the file; add the"),
    ],
)
def test_of_two_errors_the_same_is_told_wherever_they_are(changes: list[tuple[str, str]], error: str) -> None:
    text = MESH
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(error)


def test_what_is_known_already_is_there_but_not_again() -> None:
    text = "workloads: [{uid: db, namespace: ns, workloadIps: [], services: {ns/web.svc: {}}}]"
    with pytest.raises(ConfigError, match="names the service 'ns/web.svc', which is not in the file"):
        read(text)
    entries, taken, _ = read(text, {"services": ["ns/web.svc"], "workloads": ["web"]})
    assert taken == [("workloads", "db")]
    assert list(entries.keys["workloads"]) == ["web", "db"]
    with pytest.raises(ConfigError, match="'db' is there twice"):
        read(text, {"services": ["ns/web.svc"], "workloads": ["db"]})
