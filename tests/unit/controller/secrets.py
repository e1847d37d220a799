"""The part of an API server that keeps Secrets: versions, conflicts, merge patches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from nodeproxy.errors import ClusterError

COLLECTION = "/api/v1/namespaces/nodeproxy-system/secrets"


class Secrets:
    """One namespace's.  failing: the status that every request gets, 0 for "not reached"."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.failing: int | None = None
        self.before_post: Callable[[], None] = lambda: None
        self.log: list[str] = []
        self._version = 0

    def edit(self, name: str, **changes: Any) -> None:
        self._write(name, self.objects[name] | changes)

    async def request(self, method: str, path: str, *, body: bytes | None = None, content_type: str = "", **_: Any) -> bytes:
        self.log.append(method)
        if self.failing is not None:
            raise ClusterError(f"{method} {path}: fails", self.failing)
        sent = json.loads(body) if body else {}
        if method == "POST":
            self.before_post()
            name = sent["metadata"]["name"]
            assert path == COLLECTION
            assert sent["metadata"]["namespace"] == "nodeproxy-system"
            if name in self.objects:
                raise ClusterError("already exists", 409)
            return self._write(name, sent)
        name = path.removeprefix(COLLECTION + "/")
        if name not in self.objects:
            raise ClusterError("not found", 404)
        if method == "PATCH":
            assert content_type == "application/merge-patch+json"
            if sent["metadata"].pop("resourceVersion") != self.objects[name]["metadata"]["resourceVersion"]:
                raise ClusterError("conflict", 409)
            return self._write(name, _merged(self.objects[name], sent))
        assert method == "GET"
        return json.dumps(self.objects[name]).encode()

    def _write(self, name: str, item: dict[str, Any]) -> bytes:
        self._version += 1
        self.objects[name] = item | {"metadata": item["metadata"] | {"resourceVersion": str(self._version)}}
        return json.dumps(self.objects[name]).encode()


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
