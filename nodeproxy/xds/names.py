"""How kinds of resources and single resources are called in delta xDS: what client and server must agree on to the letter.

    Address          a workload by its uid, a service by its key "namespace/hostname"; asked for on demand also by "network/ip",
                     which is never a resource's name, but an alias
    Authorization    "namespace/name"
    NodePod          "namespace/name"
    MeshNamespace    "name"

Knows neither messages nor streams.
"""

from __future__ import annotations

ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"
# Of nodeproxy's own controller alone, and of the caller's node alone.
NODE_POD = "type.googleapis.com/nodeproxy.v1.NodePod"
MESH_NAMESPACE = "type.googleapis.com/nodeproxy.v1.MeshNamespace"
# xDS protocol, "How the client specifies what resources to return": "*" stands for all.
WILDCARD = "*"
# A name is a key of the store, whose limit is 511 bytes, and stands there behind a prefix.  Kubernetes' longest (a hostname of
# 253 characters behind a namespace of 63) has room.
MAX_NAME_BYTES = 480
# A policy's namespace stands in a key beside what its rules name (`nodeproxy.state.layout`).  Kubernetes' longest has 63.
MAX_NAMESPACE_BYTES = 253
