"""Short ways to say workloads and services in tests, and to see what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nodeproxy.model.workload import Protocol, Service, Workload
from nodeproxy.state import layout


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


def dump(path: Path) -> dict[str, list[tuple[bytes, bytes]]]:
    """Everything that is stored, indexes too, but not how it came to be so: the epoch and the log of changes."""
    environment = layout.acquire(path, writable=False)
    with environment.env.begin() as txn:
        tables = {name: list(txn.cursor(db)) for name, db in environment.tables.items() if name not in ("about", "changes")}
    environment.release()
    return tables
