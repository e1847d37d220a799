"""The parts of an agent that talk to a control plane, made from its settings.

Apart from `run`, for they import gRPC (some 20 MB), which an agent with a mesh file and a CA directory does without.
"""

from __future__ import annotations

import time

from nodeproxy.agent.node import Node
from nodeproxy.agent.sources.xds import XdsSource
from nodeproxy.config import RunConfig
from nodeproxy.identity.ca_client import CaClient
from nodeproxy.identity.control_plane import ControlPlane
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.xds.node_id import node_of

CERTIFICATES = "certificates"  # in the run directory


def remote_authority(config: RunConfig) -> tuple[CaClient, KeptCertificates]:
    """The client of `ca_address`, and where its certificates outlive the agent.  Raises StateError."""
    kept = KeptCertificates(config.run_dir / CERTIFICATES, time.time())
    control = ControlPlane(config.ca_address, root=config.ca_root_ca, token=config.auth_token, cluster_id=config.cluster_id)
    return CaClient(control, ttl_s=config.secret_ttl_s, roots=kept.roots()), kept


def xds_source(config: RunConfig, node: Node) -> XdsSource:
    """The source at `xds_address`."""
    control = ControlPlane(config.xds_address, root=config.xds_root_ca, token=config.auth_token, cluster_id=config.cluster_id)
    source = XdsSource(
        node, control, node_of(config), on_demand=config.xds_on_demand, roster=node.roster, provisional=node.state.provisional
    )
    source.listener = node.on_demand
    node.connection = source.connection
    node.metrics.xds = source.statistics
    return source
