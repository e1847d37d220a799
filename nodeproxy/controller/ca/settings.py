"""What the CA is told: whom it signs for, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from nodeproxy.identity.local_ca import LIFETIME_S


@dataclass(frozen=True)
class CaSettings:
    """The CA's settings."""

    trust_domain: str = "cluster.local"
    # The trust domain of all identities that it signs.

    trusted_node_accounts: frozenset[str] = frozenset({"nodeproxy-system/nodeproxy", "istio-system/ztunnel"})
    # `namespace/service account` of node proxies, ours and ztunnel: they may ask for the identities of their node's pods.

    default_lifetime_s: float = LIFETIME_S
    # Of a certificate for whose lifetime the request says nothing.

    max_lifetime_s: float = LIFETIME_S
    # Who asks for more gets this.  A root is given up when what it signed has ended, so nothing may live longer.

    min_lifetime_s: float = 60.0
    # Who asks for less gets this: a certificate is renewed at half of its life, which costs the CA and the node something.

    root_age: float = 2 / 3
    # The part of a root's life after which the next one is made: of ten years, three are left to do it in.

    root_overlap_s: float = LIFETIME_S
    # How long the next root is published before it signs: each node has renewed its certificates, and got the root with them.

    placement_wait_s: float = 2.0
    # How long a request waits for its pod to be seen: the kubelet may be faster than our watch.
