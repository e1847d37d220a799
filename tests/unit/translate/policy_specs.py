"""Resources of policies as tests write them, and what nodes would decide by them."""

from __future__ import annotations

from typing import Any

from nodeproxy.model.policy import Policy, PolicyScope
from nodeproxy.policy.authorize import authorize
from nodeproxy.policy.match import Subject
from nodeproxy.translate.objects import Metadata, PolicyResource
from nodeproxy.translate.policies import PolicyChange, PolicyTable
from nodeproxy.translate.settings import MeshSettings

ROOT = "istio-system"
STRICT_KEY = f"{ROOT}/istio_converted_static_strict"
WEB = "spiffe://cluster.local/ns/prod/sa/web"


def resource(spec: Any, *, created: str | None = None, **annotations: str) -> PolicyResource:
    """A resource; `dry_run="true"` stands for the annotation."""
    named = {f"istio.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return PolicyResource(metadata=Metadata(annotations=named, creation_timestamp=created), spec=spec)


class Enforced:
    """A table, and a client that keeps what the table's changes say."""

    def __init__(self) -> None:
        self.table = PolicyTable(MeshSettings(root_namespace=ROOT))
        self.policies: dict[str, Policy] = {}

    def set(self, kind: str, key: str, spec: Any, **more: Any) -> PolicyChange:
        """Puts a resource; `spec=...` takes it away."""
        change = self.table.apply(kind, key, None if spec is ... else resource(spec, **more))
        for removed in change.removed:
            del self.policies[removed]
        self.policies |= {policy.key: policy for policy in change.policies}
        return change

    def holding(self, namespace: str, labels: dict[str, str]) -> tuple[Policy, ...]:
        """The policies that hold for a workload."""
        listed = self.table.holding(namespace, labels)
        return tuple(
            policy
            for policy in self.policies.values()
            if policy.scope is PolicyScope.GLOBAL
            or (policy.scope is PolicyScope.NAMESPACE and policy.namespace == namespace)
            or policy.key in listed
        )

    def allows(self, namespace: str, labels: dict[str, str], subject: Subject) -> bool:
        """Whether a workload is to take a connection."""
        return authorize(self.holding(namespace, labels), subject).allowed


def connection(identity: str = WEB, port: int = 8080, source: str = "10.0.0.1", destination: str = "10.0.1.1") -> Subject:
    return Subject(identity, source, destination, port)
