"""Whatever stands in a manifest: it is refused in words, or it means a mesh that can be written, read, and looked at."""

from __future__ import annotations

import random

import pytest

from nodeproxy.agent.sources.mesh_file import parse_mesh
from nodeproxy.errors import ConfigError
from nodeproxy.translate.analysis.analyze import analyze
from nodeproxy.translate.compilation import compile_manifests
from nodeproxy.translate.manifests import read_manifests
from nodeproxy.translate.mesh_writer import mesh_tree, mesh_yaml
from nodeproxy.translate.settings import MeshSettings

pytestmark = pytest.mark.fuzz

SETTINGS = MeshSettings()
SEED = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: wp
  namespace: shop
  annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}}}
status: {addresses: [{type: IPAddress, value: 10.96.0.9}]}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {istio.io/use-waypoint-canary: wp}
  annotations: {istio.io/use-waypoint-canary-weight: "30"}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: a, containers: [{ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: shop}
spec:
  hosts: [e.com]
  addresses: [240.0.0.1]
  resolution: STATIC
  ports: [{number: 443, name: https, protocol: TLS}]
  endpoints:
  - {address: 192.0.2.1, ports: {https: 8443}, locality: r/z/s, weight: 3}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec: {address: vm.example.com, labels: {app: web}, ports: {http: 8000}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.7]}]
ports: [{name: http, port: 8080, protocol: TCP}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from:
    - source: {principals: [cluster.local/ns/shop/sa/front], notNamespaces: [default]}
    to:
    - operation: {ports: ["8080"]}
    when:
    - {key: destination.port, values: ["80"]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}
"""
VALUES = (
    "",
    "null",
    "[]",
    "{}",
    "-1",
    "0",
    "65536",
    "9" * 5000,
    "0x" + "f" * 5000,
    "1.5",
    "yes",
    "~",
    '""',
    "a/b",
    "*",
    "::1",
    "&a [*a]",
)
VALUES += (
    "2026-01-01",
    "!!binary aGk=",
    "{a: {b: [c]}}",
    "[[[]]]",
    "'é\\u0000'",
    "10.0.0.1/33",
    "- x",
    "? x",
    "<<: {a: b}",
    "x" * 300,
)


def _mutated(chance: random.Random) -> str:
    text = SEED
    for _ in range(chance.randrange(1, 4)):
        kind = chance.randrange(6)
        lines = text.split("\n")
        at = chance.randrange(len(lines))
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, chance.choice(lines))
        elif kind == 2:
            lines[at] = lines[at][: chance.randrange(len(lines[at]) + 1)]
        else:  # a value
            words = [place for place in range(len(lines[at])) if lines[at][place : place + 2] == ": "]
            if words:
                place = chance.choice(words) + 2
                end = min([lines[at].find(mark, place) for mark in ",}]" if mark in lines[at][place:]] or [len(lines[at])])
                lines[at] = lines[at][:place] + chance.choice(VALUES) + lines[at][end if kind < 5 else len(lines[at]) :]
        text = "\n".join(lines)
    return text


def _look(text: str) -> bool:
    try:
        manifests = read_manifests("f.yaml", text.encode())
    except ConfigError:
        return False
    compilation = compile_manifests(manifests, SETTINGS)
    mesh = parse_mesh("mesh.yaml", mesh_yaml(mesh_tree(compilation.everything)).encode())
    assert len(mesh.everything.workloads) == len(compilation.everything.workloads)
    analyze(compilation, SETTINGS)
    return True


@pytest.mark.parametrize("seed", range(4))
def test_mutated_manifests_are_refused_in_words_or_mean_a_mesh(seed: int):
    chance = random.Random(seed)
    taken = sum(_look(_mutated(chance)) for _ in range(150))
    assert 10 < taken < 150
