"""Short ways to say workloads and services in tests."""

from __future__ import annotations

from typing import Any

from nodeproxy.model.workload import Protocol, Service, Workload


def pod(name: str, *addresses: str, **more: Any) -> Workload:
    more.setdefault("protocol", Protocol.HBONE)
    more.setdefault("namespace", "ns")
    more.setdefault("uid", name)
    return Workload(name=name, addresses=addresses, **more)


def service(name: str, *vips: str, **more: Any) -> Service:
    more.setdefault("ports", {80: 8080})
    more.setdefault("namespace", "ns")
    more.setdefault("hostname", f"{name}.svc")
    return Service(name=name, vips=tuple(f"/{vip}" for vip in vips), **more)
