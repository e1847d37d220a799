"""Pods and replies in a line each."""

from __future__ import annotations

from typing import Any

from nodeproxy.fleet.agents import Reply
from nodeproxy.fleet.pods import FoundPod


def found(key: str, node: str = "a", **more: Any) -> FoundPod:
    namespace, _, name = key.rpartition("/")
    fields: dict[str, Any] = {"phase": "Running", "ready": True, "addresses": ("10.0.0.1",)}
    return FoundPod(namespace=namespace or "shop", name=name, node=node, **(fields | more))


def reply(node: str, **answer: Any) -> Reply:
    return Reply(node=node, agent=f"system/{node}-agent", answer=answer)


def silent(node: str, error: str = "no answer") -> Reply:
    return Reply(node=node, agent=f"system/{node}-agent", error=error)
