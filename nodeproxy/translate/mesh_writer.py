"""From the value types to a mesh file: what its reader (`agent/sources/mesh_schema.py`) reads, the other way round.

Invariant: reading what was written gives the same values; a test holds it for every field.  What has its default value is left
out, so that a person finds what matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from nodeproxy.model.delta import Everything
from nodeproxy.model.policy import Action, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch
from nodeproxy.model.workload import (
    DEFAULT_TRUST_DOMAIN,
    HBONE_PORT,
    Balancing,
    Gateway,
    LoadBalancer,
    Locality,
    Service,
    Workload,
)

Tree = dict[str, Any]

_SCOPES = {PolicyScope.GLOBAL: "Global", PolicyScope.NAMESPACE: "Namespace", PolicyScope.WORKLOAD_SELECTOR: "WorkloadSelector"}
_ACTIONS = {Action.ALLOW: "Allow", Action.DENY: "Deny"}
_MODES = {Balancing.STRICT: "Strict", Balancing.FAILOVER: "Failover", Balancing.PASSTHROUGH: "Passthrough"}
_MATCH_FIELDS = (
    ("namespaces", "namespaces"),
    ("principals", "principals"),
    ("serviceAccounts", "service_accounts"),
    ("sourceIps", "source_ips"),
    ("destinationIps", "destination_ips"),
    ("destinationPorts", "destination_ports"),
)


def mesh_tree(everything: Everything) -> Tree:
    """The mesh file as lists and maps, sorted by name, so that a small change of what was translated is a small change here."""
    return {
        "workloads": [workload_tree(item) for item in sorted(everything.workloads, key=lambda item: item.uid)],
        "services": [service_tree(item) for item in sorted(everything.services, key=lambda item: item.key)],
        "policies": [policy_tree(item) for item in sorted(everything.policies, key=lambda item: item.key)],
    }


def mesh_yaml(tree: Tree) -> str:
    """The text of a mesh file."""
    # libyaml's, which is ten times faster; width: a line a value.
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1 << 20))


def workload_tree(workload: Workload) -> Tree:
    """An entry of `workloads`."""
    return _given(
        ("uid", workload.uid, None),
        ("name", workload.name, None),
        ("namespace", workload.namespace, None),
        ("serviceAccount", workload.service_account, "default"),
        ("workloadIps", list(workload.addresses), None if not workload.hostname else []),
        ("hostname", workload.hostname, ""),
        ("protocol", workload.protocol.value, "TCP"),
        ("nativeTunnel", workload.native_tunnel, False),
        ("networkMode", "HostNetwork" if workload.host_network else "Standard", "Standard"),
        ("node", workload.node, ""),
        ("network", workload.network, ""),
        ("trustDomain", workload.trust_domain, DEFAULT_TRUST_DOMAIN),
        ("clusterId", workload.cluster, "Kubernetes"),
        ("canonicalName", workload.canonical_name, ""),
        ("canonicalRevision", workload.canonical_revision, ""),
        ("workloadType", workload.workload_type, "pod"),
        ("workloadName", workload.workload_name, ""),
        ("locality", _locality(workload.locality), {}),
        ("status", "Healthy" if workload.healthy else "Unhealthy", "Healthy"),
        ("capacity", workload.capacity, 1),
        ("waypoint", _optional(workload.waypoint), {}),
        ("networkGateway", _optional(workload.network_gateway), {}),
        ("applicationTunnel", _tunnel(workload), {}),
        ("services", {key: dict(ports) for key, ports in workload.services.items()}, {}),
        ("authorizationPolicies", list(workload.policies), []),
    )


def service_tree(service: Service) -> Tree:
    """An entry of `services`."""
    return _given(
        ("name", service.name, None),
        ("namespace", service.namespace, None),
        ("hostname", service.hostname, None),
        ("vips", list(service.vips), None),
        ("ports", dict(service.ports), None),
        ("subjectAltNames", list(service.subject_alt_names), []),
        ("waypoint", _optional(service.waypoint), {}),
        ("weightedWaypoints", [{**_gateway(item.gateway), "weight": item.weight} for item in service.weighted_waypoints], []),
        ("loadBalancer", _balancer(service.load_balancer), {}),
        ("canonical", service.canonical, False),
        ("visibility", "Namespace" if service.namespace_only else "Public", "Public"),
    )


def policy_tree(policy: Policy) -> Tree:
    """An entry of `policies`."""
    return _given(
        ("name", policy.name, None),
        ("namespace", policy.namespace, None),
        ("scope", _SCOPES[policy.scope], None),
        ("action", _ACTIONS[policy.action], None),
        ("rules", [[[_match(match) for match in clause] for clause in rule] for rule in policy.rules], None),
        ("dryRun", policy.dry_run, False),
    )


def _given(*fields: tuple[str, Any, Any]) -> Tree:
    """Of (name, value, default) those that do not have their default; a default of None: always."""
    return {name: value for name, value, default in fields if default is None or value != default}


def _gateway(gateway: Gateway) -> Tree:
    return _given(("destination", gateway.destination, None), ("hboneMtlsPort", gateway.hbone_port, HBONE_PORT))


def _optional(gateway: Gateway | None) -> Tree:
    return {} if gateway is None else _gateway(gateway)


def _tunnel(workload: Workload) -> Tree:
    tunnel = workload.application_tunnel
    if tunnel is None:
        return {}
    return _given(("protocol", "PROXY" if tunnel.proxy else "NONE", None), ("port", tunnel.port, 0))


def _locality(locality: Locality) -> Tree:
    return _given(("region", locality.region, ""), ("zone", locality.zone, ""), ("subzone", locality.subzone, ""))


def _balancer(balancer: LoadBalancer) -> Tree:
    return _given(
        ("routingPreferences", [scope.value.title() for scope in balancer.routing_preferences], []),
        ("mode", _MODES.get(balancer.mode, "Standard"), "Standard"),
        ("healthPolicy", "AllowAll" if balancer.allow_unhealthy else "OnlyHealthy", "OnlyHealthy"),
    )


def _match(match: Match) -> Tree:
    found: Tree = {}
    for name, attribute in _MATCH_FIELDS:
        for key, values in ((name, getattr(match, attribute)), (_negated(name), getattr(match, f"not_{attribute}"))):
            if values:
                found[key] = list(_values(values))
    return found


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def _values(values: Iterable[StringMatch | ServiceAccountMatch | str | int]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, StringMatch):
            yield _text(value)
        elif isinstance(value, ServiceAccountMatch):
            yield {"namespace": value.namespace, "serviceAccount": value.service_account}
        else:
            yield value


def _text(match: StringMatch) -> Tree:
    for kind in ("exact", "prefix", "suffix"):
        text = getattr(match, kind)
        if text is not None:
            return {kind: text}
    return {"presence": True}


class _Dumper(yaml.CSafeDumper):
    """Without aliases: what several entries share is written out in each."""

    def ignore_aliases(self, data: Any) -> bool:
        """No value is worth an anchor."""
        return True
