"""A stand-in for the API server's store: objects by path, with versions and merge patches; tests/cluster uses the real one."""

from __future__ import annotations

import json
from typing import Any

from nodeproxy.errors import ClusterError


class Stored:
    """It can be away; `asked` keeps what was asked, `before` is called before each request."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        self.failing: dict[str, int] = {}  # method → status
        self.before: Any = lambda method, path: None
        self._version = 0

    def put(self, path: str, item: dict[str, Any]) -> None:
        self._version += 1
        self.objects[path] = {**item, "metadata": {**item.get("metadata", {}), "resourceVersion": str(self._version)}}

    async def request(self, method: str, path: str, *, body: bytes | None = None, content_type: str = "", **_: Any) -> bytes:
        self.asked.append((method, path))
        self.before(method, path)
        if method in self.failing:
            raise ClusterError(f"{method} {path}: a test says so", self.failing[method])
        sent = json.loads(body) if body is not None else {}
        if method == "POST":
            path = f"{path}/{sent['metadata']['name']}"
            if path in self.objects:
                raise ClusterError("exists", 409)
            self.put(path, sent)
        target = path.removesuffix("/status")
        if target not in self.objects:
            raise ClusterError("not found", 404)
        if method == "PATCH":
            assert content_type == "application/merge-patch+json"
            wanted = sent.get("metadata", {}).get("resourceVersion")
            if wanted is not None and wanted != self.objects[target]["metadata"]["resourceVersion"]:
                raise ClusterError("conflict", 409)
            self.put(target, _merged(self.objects[target], sent))
        return json.dumps(self.objects[target]).encode()


def _merged(into: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    result = dict(into)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _merged(result.get(key, {}), value)
        else:
            result[key] = value
    return result
