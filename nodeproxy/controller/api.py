"""What the controller's parts ask of the API server: single requests.  `nodeproxy.kube.client.KubeClient` does them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Api(Protocol):
    """Requests to the API server."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        timeout_s: float = 30.0,
    ) -> bytes:
        """The answer's body; ClusterError for any status but 2xx, and where there is no answer."""
        ...
