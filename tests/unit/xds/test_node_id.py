from __future__ import annotations

from nodeproxy.config import load
from nodeproxy.xds.node_id import node_of

FLAGS = {"node": "n1", "xds_address": "x:1"}


def test_as_a_ztunnel_in_a_pod() -> None:
    environ = {"POD_NAME": "ztunnel-x", "POD_NAMESPACE": "sys", "INSTANCE_IP": "10.0.0.7", "CLUSTER_ID": "c", "NETWORK": "net"}
    node = node_of(load(FLAGS, environ | {"ISTIO_META_A": "b", "CLUSTER_DOMAIN": "d.example"}))
    assert node.id == "ztunnel~10.0.0.7~ztunnel-x.sys~sys.svc.d.example"
    assert dict(node.metadata.items()) == {
        "NAME": "ztunnel-x",
        "NAMESPACE": "sys",
        "INSTANCE_IPS": "10.0.0.7",
        "NODE_NAME": "n1",
        "CLUSTER_ID": "c",
        "NETWORK": "net",
        "TRUST_DOMAIN": "cluster.local",
        "A": "b",
    }


def test_without_a_pod() -> None:
    node = node_of(load(FLAGS, {}))
    assert node.id == "ztunnel~127.0.0.1~n1.istio-system~istio-system.svc.cluster.local"
    assert "NETWORK" not in node.metadata
