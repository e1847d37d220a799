"""What translation must know of the mesh beside its resources; the same for every resource, for as long as a translator lives."""

from __future__ import annotations

import msgspec

from nodeproxy.model.workload import DEFAULT_TRUST_DOMAIN


class MeshSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh's names.

    trust_domain: the authority of every SPIFFE ID.
    cluster_id: the first part of every workload's uid.
    cluster_domain: what the names of Kubernetes' services end in, without a leading dot.
    network: of the addresses of pods and services, "" for the default one.
    root_namespace: whose policies hold for the whole mesh.
    """

    trust_domain: str = DEFAULT_TRUST_DOMAIN
    cluster_id: str = "Kubernetes"
    cluster_domain: str = "cluster.local"
    network: str = ""
    root_namespace: str = "istio-system"

    def hostname(self, namespace: str, service: str) -> str:
        """The DNS name of a Kubernetes service."""
        return f"{service}.{namespace}.svc.{self.cluster_domain}"
