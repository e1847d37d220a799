"""AuthorizationPolicies of every shape that the API server takes, by name."""

from __future__ import annotations

from typing import Any

from nodeproxy.translate.values import CONDITIONS, LAYER_7_FIELDS, SOURCE_FIELDS

Spec = dict[str, Any]

PRINCIPALS = ["cluster.local/ns/a/sa/b", "*", "cluster.local/ns/*", "*/sa/b", "spiffe://cluster.local/ns/a/sa/b", "a*b", "*a*"]
NAMESPACES = ["a", "*", "a-*", "*-a"]
BLOCKS = ["10.0.0.1", "10.1.2.3/8", "0.0.0.0/0", "2001:db8::1", "2001:db8::/32", "::/0"]
PORTS = ["80", "0443", "0", "65535"]
_BY_MATCH = {
    "principals": PRINCIPALS,
    "namespaces": NAMESPACES,
    "source_ips": BLOCKS,
    "destination_ips": BLOCKS,
    "destination_ports": PORTS,
    "service_accounts": ["web", "a/web"],
}
_LAYER_7_OF_SOURCES = sorted(name for name in LAYER_7_FIELDS if "rincipal" in name or "Blocks" in name)
_LAYER_7_OF_OPERATIONS = sorted(LAYER_7_FIELDS - {*_LAYER_7_OF_SOURCES})
_LAYER_7_KEYS = [
    *("request.headers[x]", "request.auth.principal", "request.auth.audiences", "request.auth.presenter"),
    *("request.auth.claims[a]", "remote.ip", "connection.sni", "source.serviceAccount", "source.trustDomain", "experimental.x"),
]


def source(**fields: Any) -> Spec:
    return {"from": [{"source": fields}]}


def operation(**fields: Any) -> Spec:
    return {"to": [{"operation": fields}]}


def when(key: str, **fields: Any) -> Spec:
    return {"when": [{"key": key, **fields}]}


def _values(match: str) -> list[str]:
    return _BY_MATCH[match.removeprefix("not_")]


def readable_rules() -> dict[str, list[Spec]]:
    """Rules whose every field a node can ask for."""
    rules = {
        **{f"source-{name}": [source(**{name: _values(field.name)})] for name, field in SOURCE_FIELDS.items()},
        "operation-ports": [operation(ports=PORTS)],
        "operation-notports": [operation(notPorts=PORTS)],
    }
    for key, pair in CONDITIONS.items():
        for name, field in pair.items():
            rules[f"when-{key}-{name}"] = [when(key, **{name: _values(field.name)})]
        rules[f"when-{key}-both"] = [when(key, **{name: _values(field.name)[:2] for name, field in pair.items()})]
    several = {
        "from": [
            {"source": {"principals": ["a"], "namespaces": ["b"], "ipBlocks": ["10.0.0.0/8"], "notIpBlocks": ["10.0.0.1"]}},
            {"source": {"notPrincipals": ["c*"], "notNamespaces": ["d"], "namespaces": []}},
            {"source": {"serviceAccounts": ["x"], "notServiceAccounts": ["y/z"]}},
        ],
        "to": [{"operation": {"ports": ["80"], "notPorts": ["81"], "paths": []}}, {"operation": {"ports": ["443"]}}],
        "when": [{"key": "source.ip", "values": ["10.0.0.0/9"]}, {"key": "destination.port", "notValues": ["1"]}],
    }
    return {
        **rules,
        "none": [],
        "any": [{}],
        "several": [several, {}, operation(ports=["1"]), source(namespaces=["a"])],
        "empty-when": [{**operation(ports=["80"]), "when": []}],
    }


def layer_7_rules() -> dict[str, list[Spec]]:
    """Rules that ask for something that istiod calls HTTP, alone and beside what a node can ask for."""
    rules: dict[str, list[Spec]] = {}
    for name in _LAYER_7_OF_SOURCES:
        rules[f"l7-{name}"] = [source(**{name: ["x"]}), operation(ports=["80"])]
        rules[f"l7-{name}-beside"] = [source(**{name: ["x"], "namespaces": ["a"]})]
        rules[f"l7-{name}-or"] = [{"from": [{"source": {name: ["x"]}}, {"source": {"namespaces": ["a"]}}]}]
    for name in _LAYER_7_OF_OPERATIONS:
        rules[f"l7-{name}"] = [operation(**{name: ["x"]}), source(namespaces=["a"])]
        rules[f"l7-{name}-beside"] = [operation(**{name: ["x"], "ports": ["80"]})]
        rules[f"l7-{name}-and"] = [{**operation(**{name: ["x"]}), **source(namespaces=["a"])}]
    for key in _LAYER_7_KEYS:
        rules[f"l7-{key}"] = [when(key, values=["x"])]
        rules[f"l7-{key}-and"] = [{**operation(ports=["80"]), **when(key, notValues=["x"])}]
    return rules


def unreadable_rules() -> dict[str, list[Spec]]:
    """Rules that the definition allows, and Istio's validation does not: what istiod drops of them can widen access."""
    return {
        "bad-port": [operation(ports=["http"]), operation(ports=["http", "80"])],
        "bad-block": [source(ipBlocks=["10.0.0.0/33"]), source(ipBlocks=["ten", "10.0.0.1"])],
        "bad-values": [when("source.ip", values=["ten"]), when("destination.port", values=["http"])],
        "no-values": [when("source.ip"), {**operation(ports=["80"]), **when("source.principal", values=[])}],
        "empty-source": [source(), {"from": [{"source": {}}, {"source": {"namespaces": ["a"]}}]}],
        "empty-operation": [operation(), {**operation(ports=[]), **source(namespaces=["a"])}],
    }


def widened_rules() -> dict[str, tuple[list[Spec], list[Spec]]]:
    """Rules of which istiod drops a part, which in an ALLOW policy widens access; and what is left of them."""
    left = source(namespaces=["a"])
    return {
        "trust-domains": ([source(trustDomains=["x"], namespaces=["a"])], [left]),
        "not-trust-domains": ([source(notTrustDomains=["x"], namespaces=["a"])], [left]),
        "empty-from": ([{**operation(ports=["80"]), "from": []}], [operation(ports=["80"])]),
        "empty-to": ([{**left, "to": []}], [left]),
        "bad-block-beside": ([source(ipBlocks=["10.0.0.0/33"], namespaces=["a"])], [left]),
        "bad-exclusion-beside": ([source(notIpBlocks=["ten"], namespaces=["a"])], [left]),
        "bad-ports-beside": ([operation(ports=["http"], notPorts=["81"])], [operation(notPorts=["81"])]),
        "some-bad-exclusions": ([operation(notPorts=["81", "http"])], [operation(notPorts=["81"])]),
    }


def all_specs() -> dict[str, Spec]:
    """By name: of every rule above an ALLOW and a DENY policy."""
    specs: dict[str, Spec] = {}
    for name, rules in {**readable_rules(), **layer_7_rules(), **unreadable_rules()}.items():
        for action in ("ALLOW", "DENY"):
            specs[kubernetes_name(action, name)] = {"action": action, "rules": rules}
    return specs


def kubernetes_name(action: str, name: str) -> str:
    """A name that the API server takes."""
    return f"{action}-{name}".lower().replace("[", ".").replace("]", "")
