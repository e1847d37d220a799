"""The agent's part that hears istio-cni, made from its settings.

Apart from `serving`, for it imports protobuf, which an agent with a mesh file and a CA directory does without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from nodeproxy.agent.enrolment import Enrolment
from nodeproxy.agent.node import ByIstioCni, Node
from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.pods.zds import Place, ZdsEnrolment
from nodeproxy.agent.pods.zds_kept import ZdsKept
from nodeproxy.config import RunConfig
from nodeproxy.state.store import StateWriter


def by_istio_cni(config: RunConfig, *, active: bool) -> ByIstioCni:
    """What makes it.  active: no other agent serves the node."""
    place = Place(
        socket=config.zds_socket,
        node=config.node,
        cluster=config.cluster_id,
        network=config.network,
        trust_domain=config.trust_domain,
    )

    def make(
        node: Node,
        enrolment: Enrolment,
        provisional: Provisional,
        store: StateWriter,
        on_looked: Callable[[Collection[int]], Awaitable[None]],
    ) -> ZdsEnrolment:
        return ZdsEnrolment(node, enrolment, provisional, ZdsKept(store), on_looked, place, active=active)

    return make
