"""Stand-ins for the API server and the pods that the controller has seen; tests/cluster shows that the real ones answer so."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

from nodeproxy.errors import ClusterError

AUDIENCE = "istio-ca"


def token(exp: float | None = None, aud: Any = (AUDIENCE,), signature: str = "c2ln", **claims: Any) -> str:
    """A JWT of these claims; its signature is what a test calls it."""
    body = {"aud": list(aud) if isinstance(aud, tuple) else aud, **({} if exp is None else {"exp": exp}), **claims}
    parts = ({"alg": "RS256"}, body)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, signature])


def review(account: str = "nodeproxy-system/nodeproxy", pod: str = "agent", uid: str = "u1", node: str = "n1") -> dict[str, Any]:
    """The status of a TokenReview that accepts."""
    extra = {"pod-name": pod, "pod-uid": uid, "node-name": node}
    return {
        "authenticated": True,
        "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:" + account.replace("/", ":"),
            "extra": {f"authentication.kubernetes.io/{key}": [value] for key, value in extra.items() if value},
        },
    }


class Reviewer:
    """An API server that knows these tokens, token → status; it can be away, and it can be made to wait."""

    def __init__(self, tokens: Mapping[str, dict[str, Any]] | None = None) -> None:
        self.tokens = dict(tokens or {})
        self.asked: list[str] = []
        self.away = False
        self.raw: bytes | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.most = self.under_way = 0

    async def request(self, method: str, path: str, *, body: bytes | None = None, **_: Any) -> bytes:
        assert (method, path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
        spec = json.loads(body or b"")["spec"]
        self.asked.append(spec["token"])
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.open.wait()
        finally:
            self.under_way -= 1
        if self.away:
            raise ClusterError("POST tokenreviews: not reached")
        status = self.tokens.get(spec["token"], {"authenticated": False, "error": "[invalid bearer token]"})
        return self.raw if self.raw is not None else json.dumps({"kind": "TokenReview", "status": status}).encode()


class Pods:
    """A placement.  pods: (namespace, name, uid) → (node, service account)."""

    def __init__(self, pods: Mapping[tuple[str, str, str], tuple[str, str]] | None = None) -> None:
        self.pods = dict(pods or {})
        self.is_synced = True
        self.asked = 0

    def synced(self) -> bool:
        return self.is_synced

    def node_of(self, namespace: str, pod: str, uid: str) -> str:
        return self.pods.get((namespace, pod, uid), ("", ""))[0]

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        self.asked += 1
        return any(
            space == namespace and where == node and account == service_account
            for (space, _, _), (where, account) in self.pods.items()
        )
