from __future__ import annotations

import pytest

from nodeproxy.translate.analysis.analyze import analyze
from nodeproxy.translate.compilation import compile_manifests
from nodeproxy.translate.manifests import read_manifests
from nodeproxy.translate.settings import MeshSettings

pytestmark = pytest.mark.unit

SOUND = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: front, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from:
    - source: {principals: [cluster.local/ns/shop/sa/front, cluster.local/ns/shop/sa/web], notNamespaces: [default]}
    to:
    - operation: {ports: ["8080"]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: x, namespace: default}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: default}
"""


IN_MESH = """---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: web, istio.io/dataplane-mode: ambient}}
spec: {containers: [{ports: [{containerPort: 8080, name: http}]}]}
"""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: b, labels: {%s}}\n"


def policy(spec: str) -> str:
    return f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: q, namespace: shop}}\nspec: {spec}\n"


def rule(text: str) -> str:
    return policy(f"{{selector: {{matchLabels: {{app: web}}}}, rules: [{text}]}}")


def source(text: str) -> str:
    return rule(f"{{from: [{{source: {{{text}}}}}]}}")


def service(spec: str, labels: str = "") -> str:
    metadata = f"{{name: other, namespace: shop, labels: {{{labels}}}}}"
    return f"apiVersion: v1\nkind: Service\nmetadata: {metadata}\nspec: {spec}\n"


def entry(spec: str) -> str:
    return f"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\nspec: {spec}\n"


def told(*texts: str) -> list[tuple[str, str, str]]:
    """(level, code, field) of what is said of the manifests."""
    found = [item for text in texts for item in read_manifests("f.yaml", text.encode())]
    settings = MeshSettings()
    return [(str(item.level), item.code, item.field) for item in analyze(compile_manifests(found, settings), settings)]


def test_sound_manifests_are_not_warned_of():
    assert told(SOUND) == []


def test_what_is_told_has_a_place_and_an_advice():
    found = read_manifests("f.yaml", SOUND.replace('["8080"]', '["80"]').encode())
    (diagnosis,) = analyze(compile_manifests(found, MeshSettings()), MeshSettings())
    assert (diagnosis.file, diagnosis.kind, diagnosis.key) == ("f.yaml", "AuthorizationPolicy", "shop/p")
    assert SOUND.splitlines()[diagnosis.line - 1].strip() == '- operation: {ports: ["8080"]}'
    assert diagnosis.message == "is 80, a port of Service shop/web: Deployment shop/web gets those connections on 8080"
    assert diagnosis.advice == "write the pod's port, 8080"


PRINCIPAL = "spec.rules[0].from[0].source.principals[0]"
PORT = "spec.rules[0].to[0].operation.ports[0]"
PODS_PORT = "{to: [{operation: {ports: ['%s']}}]}"


@pytest.mark.parametrize(
    ("text", "level", "code", "field"),
    [
        # policies
        (policy("{selector: {matchLabels: {app: wed}}, rules: [{}]}"), "warning", "selector-matches-nothing", "spec.selector"),
        (rule("{to: [{operation: {paths: [/a]}}]}"), "error", "not-understood", "spec.rules[0].to[0].operation.paths"),
        (policy("{action: DENY}"), "error", "not-understood", "spec.rules"),
        (rule(PODS_PORT % 80), "error", "service-port", PORT),
        (rule(PODS_PORT % 9), "warning", "port-unknown", PORT),
        (
            rule("{when: [{key: destination.port, values: ['9']}]}"),
            "warning",
            "port-unknown",
            "spec.rules[0].when[0].values[0]",
        ),
        (source("principals: [spiffe://cluster.local/ns/shop/sa/front]"), "error", "principal-never", PRINCIPAL),
        (source("principals: [shop/front]"), "error", "principal-never", PRINCIPAL),
        (source('principals: ["*/ns/shop/*"]'), "error", "star-never", PRINCIPAL),
        (source('principals: ["cluster.local/ns/*/sa/front"]'), "error", "star-never", PRINCIPAL),
        (source('namespaces: ["s*p"]'), "error", "star-never", "spec.rules[0].from[0].source.namespaces[0]"),
        (source("principals: [other/ns/shop/sa/front]"), "warning", "principal-foreign", PRINCIPAL),
        (source("principals: [cluster.local/ns/shop/sa/fronted]"), "warning", "account-unknown", PRINCIPAL),
        (source("principals: [cluster.local/ns/shopp/sa/front]"), "warning", "namespace-unknown", PRINCIPAL),
        (source("namespaces: [shopp]"), "warning", "namespace-unknown", "spec.rules[0].from[0].source.namespaces[0]"),
        (source("serviceAccounts: [fronted]"), "warning", "account-unknown", "spec.rules[0].from[0].source.serviceAccounts[0]"),
        (
            rule("{when: [{key: source.namespace, values: [shopp]}]}"),
            "warning",
            "namespace-unknown",
            "spec.rules[0].when[0].values[0]",
        ),
        (
            source("namespaces: [shop], notNamespaces: [shop, default]"),
            "error",
            "never-matches",
            "spec.rules[0].from[0].source.notNamespaces",
        ),
        (
            source("namespaces: [default], principals: [cluster.local/ns/shop/sa/front]"),
            "error",
            "never-matches",
            "spec.rules[0].from[0].source",
        ),
        (policy("{targetRefs: [{kind: Service, name: missing}]}"), "warning", "target-missing", "spec.targetRefs[0]"),
        (policy("{targetRef: {kind: Deployment, name: web}}"), "error", "target-unknown", "spec.targetRef"),
        (policy("{targetRefs: [{kind: Gateway, name: wq}]}"), "warning", "target-missing", "spec.targetRefs[0]"),
        (
            SOUND.replace(", istio.io/use-waypoint: wp", "") + "---\n" + policy("{targetRefs: [{kind: Service, name: web}]}"),
            "error",
            "no-waypoint",
            "spec.targetRefs[0]",
        ),
        (
            policy("{action: DENY, rules: [{}]}").replace("shop", "istio-system"),
            "error",
            "denied-anyway",
            "spec.rules",
        ),
        # services
        (
            service("{selector: {app: wed}, ports: [{port: 80}]}"),
            "warning",
            "selector-matches-nothing",
            "spec.selector",
        ),
        (
            service("{selector: {app: web}, ports: [{port: 80, targetPort: htp}]}"),
            "error",
            "target-port-unknown",
            "spec.ports[0].targetPort",
        ),
        (
            service("{ports: [{port: 80}]}"),
            "warning",
            "no-endpoints",
            "spec.selector",
        ),
        (
            service("{selector: {app: web}, ports: [{port: 80, name: a}, {port: 80, name: b}]}"),
            "error",
            "duplicate-port",
            "spec.ports[1].port",
        ),
        (
            service("{selector: {app: web}, ports: [{port: 80}, {port: 81}]}"),
            "error",
            "duplicate-port",
            "spec.ports[1].name",
        ),
        (
            service("{selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80}]}"),
            "error",
            "duplicate-address",
            "spec.clusterIP",
        ),
        (
            service("{selector: {app: web}, port: 80}"),
            "warning",
            "not-understood",
            "spec.port",
        ),
        (
            entry("{hosts: [e.com], resolution: STATIC}"),
            "error",
            "no-endpoints",
            "spec.resolution",
        ),
        (
            entry("{hosts: ['*.e.com'], resolution: DNS}"),
            "error",
            "no-endpoints",
            "spec.hosts[0]",
        ),
        (
            entry("{hosts: [web.shop.svc.cluster.local]}"),
            "error",
            "host-taken",
            "spec.hosts[0]",
        ),
        (
            entry("{hosts: [e.com], workloadSelector: {labels: {app: wed}}}"),
            "warning",
            "selector-matches-nothing",
            "spec.workloadSelector",
        ),
        (
            entry("{hosts: [e.com], ports: [{number: 80, name: http}], endpoints: [{address: 192.0.2.1, ports: {htp: 8080}}]}"),
            "error",
            "endpoint-port-unknown",
            "spec.endpoints[0].ports",
        ),
        # labels
        (
            service("{selector: {app: web}, ports: [{port: 80}]}", "istio.io/use-waypoint: wq"),
            "warning",
            "waypoint-missing",
            "metadata.labels[istio.io/use-waypoint]",
        ),
        (
            SOUND.replace("name: wp, namespace: shop", "name: wp, namespace: shop, labels: {istio.io/waypoint-for: workload}")
            + "---\n"
            + service("{selector: {app: web}, ports: [{port: 80}]}", "istio.io/use-waypoint: wp"),
            "error",
            "waypoint-purpose",
            "metadata.labels[istio.io/use-waypoint]",
        ),
        (
            NAMESPACE % "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop",
            "error",
            "waypoint-closed",
            "metadata.labels[istio.io/use-waypoint]",
        ),
        (
            NAMESPACE % "istio.io/dataplane-mode: Ambient",
            "error",
            "mode-unknown",
            "metadata.labels[istio.io/dataplane-mode]",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: b, labels: {istio.io/dataplane-mode: ambient}}\n"
            "spec: {hostNetwork: true}\n",
            "error",
            "host-network",
            "metadata.labels[istio.io/dataplane-mode]",
        ),
    ],
)
def test_what_cannot_do_what_it_says_is_told(text: str, level: str, code: str, field: str):
    found = told(text) if text.startswith(SOUND.partition(",")[0]) else told(SOUND, text)
    assert found == [(level, code, field)]


@pytest.mark.parametrize(
    ("namespace", "more", "expected"),
    [
        ("istio.io/dataplane-mode: none, ", "", [("error", "outside-mesh", "spec")] * 2),
        ("", "", [("error", "outside-mesh", "spec")] * 2),
        (
            "",
            IN_MESH,
            [("warning", "outside-mesh", "spec")] * 2,
        ),
    ],
)
def test_policies_for_pods_outside_the_mesh_are_told(namespace: str, more: str, expected: list[tuple[str, str, str]]):
    assert told(SOUND.replace("istio.io/dataplane-mode: ambient, ", namespace) + more) == expected


def test_a_namespace_whose_labels_are_not_known_is_not_suspected():
    _, _, rest = SOUND.partition("---\n")
    assert told(rest) == []


def test_of_two_peer_authentications_for_one_pod_the_younger_is_told():
    spec = "{selector: {matchLabels: {app: web}}, mtls: {mode: %s}}"
    of = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: shop}\nspec: %s\n"
    first, second = of % ("a", spec % "PERMISSIVE"), of % ("b", spec % "STRICT")
    assert told(SOUND, second, first) == [("error", "overridden", "spec.selector")]
    assert told(SOUND, first) == []


def test_two_pods_of_one_address_are_told():
    pods = [
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nstatus: {{podIP: 10.0.0.1}}\n" for name in "ab"
    ]
    assert told(*pods) == [("error", "duplicate-address", "status")]
