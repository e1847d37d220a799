"""The agent's part that hears istio-cni.

Imported only where there is one: with it comes protobuf, which an agent with a mesh file and a CA directory does without.
"""

from __future__ import annotations

from nodeproxy.agent.node import Node
from nodeproxy.agent.pods.zds import Place, ZdsEnrolment
from nodeproxy.agent.pods.zds_kept import ZdsKept
from nodeproxy.config import RunConfig


def hear_istio_cni(config: RunConfig, node: Node, *, active: bool) -> None:
    """Joined to the node.  active: no other agent serves the node."""
    place = Place(
        socket=config.zds_socket,
        node=config.node,
        cluster=config.cluster_id,
        network=config.network,
        trust_domain=config.trust_domain,
    )
    state = node.state
    node.zds = ZdsEnrolment(node, node.enrolment, state.provisional, ZdsKept(state.store), node.looked, place, active=active)
    node.metrics.zds = node.zds.statistics
