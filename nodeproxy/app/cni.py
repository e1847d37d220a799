"""The agent's CNI part, where labels say who is in the mesh.

It must not know how pods are put in, nor what a chain is.
"""

from __future__ import annotations

from nodeproxy.agent.node import Node
from nodeproxy.agent.pods.cni import CniPart
from nodeproxy.config import RunConfig


def cni_part(config: RunConfig, node: Node) -> CniPart | None:
    """Joined to the node; None where nobody goes by labels."""
    labels, roster = node.labels, node.roster
    if labels is None or roster is None:
        return None
    part = CniPart(labels, lambda: roster.namespaces() if roster.received else None, config.run_dir, config.node_dir)
    if config.cni_conf_dir is not None:
        part.keep_installed(config.cni_conf_dir, config.cni_bin_dir, config.cni_plugin, config.cni_exempt_namespaces)
    roster.listen(lambda changed: part.namespaces_changed())
    node.metrics.cni = part.statistics
    node.cni = part
    return part
