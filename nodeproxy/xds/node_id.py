"""Who asks: the node of an xDS request, as istiod reads it.

protocols of Istio ambient, "xDS": the id is `ztunnel~<ip>~<pod>.<ns>~<ns>.svc.cluster.local`, the metadata `NAME, NAMESPACE,
INSTANCE_IPS, NODE_NAME` and every `ISTIO_META_*`.
"""

from __future__ import annotations

from nodeproxy.config import RunConfig
from nodeproxy.proto import discovery_pb2


def node_of(config: RunConfig) -> discovery_pb2.Node:
    """The node that this agent is to a control plane."""
    pod, namespace = config.pod_name or config.node, config.pod_namespace
    node = discovery_pb2.Node(id=f"ztunnel~{config.pod_ip}~{pod}.{namespace}~{namespace}.svc.{config.cluster_domain}")
    said = {
        "NAME": pod,
        "NAMESPACE": namespace,
        "INSTANCE_IPS": config.pod_ip,
        "NODE_NAME": config.node,
        "CLUSTER_ID": config.cluster_id,
        "NETWORK": config.network,
        "TRUST_DOMAIN": config.trust_domain,
        **dict(config.metadata),
    }
    node.metadata.update({name: value for name, value in said.items() if value})
    return node
