"""The demo's mesh file: its workloads, one service, one policy, and on each node the pods that are in the mesh."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nodeproxy.lab.demo_programs import PORT
from nodeproxy.lab.topology import LabPod

NAMESPACE = "shop"
SERVICE = "orders.shop.svc.cluster.local"
SERVICE_KEY = f"{NAMESPACE}/{SERVICE}"
VIP = "10.96.0.10"
VIP6 = "fd00:96::10"
SERVICE_PORT = 80
POLICY = "orders-callers"
POLICY_KEY = f"{NAMESPACE}/{POLICY}"
_TRUST_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class DemoPod:
    """A pod, its node's name, where its programs run, and where its files are."""

    name: str
    node: str
    host: LabPod
    cgroup: Path
    directory: Path

    @property
    def uid(self) -> str:
        """The workload's uid."""
        return f"Kubernetes//Pod/{NAMESPACE}/{self.name}"

    @property
    def account(self) -> str:
        """Its service account: endpoints of one service share theirs, as pods of one deployment do."""
        return "orders" if self.serves else self.name

    @property
    def identity(self) -> str:
        """Its SPIFFE ID."""
        return f"spiffe://{principal(self.account)}"

    @property
    def serves(self) -> bool:
        """Whether it is an endpoint of the service."""
        return self.name.startswith("orders")


def principal(account: str) -> str:
    """How a policy names an identity of the demo."""
    return f"{_TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{account}"


def write_mesh(path: Path, node: str, pods: Mapping[str, DemoPod], enrolled: Iterable[DemoPod], caller: str) -> None:
    """Write a node's mesh file in one step.  caller: the service account that may talk to the service."""
    mesh = {
        "workloads": [_workload(pod) for pod in pods.values()],
        "services": [
            {
                "name": "orders",
                "namespace": NAMESPACE,
                "hostname": SERVICE,
                "vips": [f"/{VIP}", f"/{VIP6}"],
                "ports": {SERVICE_PORT: PORT},
            }
        ],
        "policies": [
            {
                "name": POLICY,
                "namespace": NAMESPACE,
                "scope": "WorkloadSelector",
                "action": "Allow",
                "rules": [[[{"principals": [{"exact": principal(caller)}]}]]],
            }
        ],
        "pods": [{"uid": pod.uid, "netns": pod.host.netns_path} for pod in enrolled if pod.node == node],
    }
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(mesh, sort_keys=False), encoding="utf-8")
    os.replace(new, path)


def _workload(pod: DemoPod) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "uid": pod.uid,
        "name": pod.name,
        "namespace": NAMESPACE,
        "serviceAccount": pod.account,
        "workloadIps": list(pod.host.addresses),
        "protocol": "HBONE",
        "node": pod.node,
    }
    if pod.serves:
        entry |= {"services": {SERVICE_KEY: {SERVICE_PORT: PORT}}, "authorizationPolicies": [POLICY_KEY]}
    return entry
