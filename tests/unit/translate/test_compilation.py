from __future__ import annotations

import pytest

from nodeproxy.translate.compilation import compile_manifests
from nodeproxy.translate.manifests import read_manifests
from nodeproxy.translate.settings import MeshSettings

pytestmark = pytest.mark.unit

MESH = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
status:
  podIP: 10.0.0.1
  conditions: [{type: Ready, status: "True"}]
"""


def compiled(*texts: str):
    found = [item for number, text in enumerate(texts) for item in read_manifests(f"f{number}.yaml", text.encode())]
    return compile_manifests(found, MeshSettings())


def lines(*texts: str) -> list[tuple[str, int, str, str, str]]:
    found = compiled(*texts).findings
    return [(item.file, item.line, item.note.kind, item.note.key, item.note.field) for item in found]


def test_manifests_mean_a_mesh_together():
    service, pod = MESH.split("---")
    found = compiled(service, pod)
    (workload,) = found.everything.workloads
    assert workload.services == {"shop/web.shop.svc.cluster.local": {80: 80}}
    assert [item.key for item in found.everything.services] == ["shop/web.shop.svc.cluster.local"]
    assert found.findings == ()


def test_what_was_not_understood_has_a_place():
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  rules:
  - to:
    - operation:
        paths: ["/a"]
"""
    (found,) = compiled(MESH, policy).findings
    assert str(found) == (
        "f1.yaml:9: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.paths"
        " is of HTTP, which a node does not see: the rule allows nothing"
    )


def test_of_a_resource_that_is_there_twice_the_later_counts():
    found = compiled(MESH, MESH.replace("podIP: 10.0.0.1", "podIP: 10.0.0.2"))
    assert [item.addresses for item in found.everything.workloads] == [("10.0.0.2",)]
    assert [(item.file, item.line, item.note.message) for item in found.findings] == [
        ("f1.yaml", 4, "is that of the one in f0.yaml:2"),
        ("f1.yaml", 9, "is that of the one in f0.yaml:7"),
    ]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("apps/v1 Deployment", True),
        ("batch/v1 CronJob", True),
        ("networking.istio.io/v1 VirtualService", True),
        ("networking.istio.io/v1 Gateway", True),
        ("security.istio.io/v1 RequestAuthentication", True),
        ("gateway.networking.k8s.io/v1 HTTPRoute", True),
        ("networking.k8s.io/v1 NetworkPolicy", True),
        ("example.com/v1 Thing", True),
        ("v1 ConfigMap", False),
        ("rbac.authorization.k8s.io/v1 Role", False),
    ],
)
def test_kinds_that_are_not_read_are_told_unless_they_concern_no_connection(kind: str, told: bool):
    version, _, name = kind.partition(" ")
    found = lines(f"apiVersion: {version}\nkind: {name}\nmetadata: {{name: a, namespace: b}}\n")
    assert found == ([("f0.yaml", 2, name, "b/a", "kind")] if told else [])


def test_fields_that_a_definition_does_not_have_are_told():
    service = MESH.split("---")[0].replace("selector", "selectors").replace("{port: 80}", "{port: 80, targetport: 8080}")
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e}
spec:
  hosts: [e.com]
  addresses: [10.0.0.0/8, nonsense]
  resolutions: DNS
  endpoints: [{addres: x}]
  ports: [{number: 80, protocol: UDP}]
"""
    assert [item[-1] for item in lines(service, entry)] == [
        "spec.ports[0].targetport",
        "spec.selectors",
        "spec.addresses[0]",
        "spec.addresses[1]",
        "spec.resolutions",
        "spec.endpoints[0].addres",
        "spec.ports[0].protocol",
    ]


def test_what_a_cluster_would_have_filled_in_is_told():
    bare = MESH.replace("clusterIP: 10.96.0.1, ", "").replace("  podIP: 10.0.0.1\n", "")
    assert [item[-1] for item in lines(bare)] == ["spec.clusterIP", "status.podIPs"]
    assert [item[-1] for item in lines(MESH.replace("Ready", "Other"))] == ["status.conditions"]
    assert lines(MESH.replace("podIP: 10.0.0.1", "phase: Succeeded")) == []
