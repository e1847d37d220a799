"""Events to the API server, with what Kubernetes gives a pod for that: an address, a token and the server's roots.

Kubernetes API, "Event" of events.k8s.io/v1.  Invariant: a request has an end; token and roots are those that the files hold now.
What may be tried again is a value, and so is what is in vain: nothing is raised.  It must not know what is told.
"""

from __future__ import annotations

import asyncio
import ssl
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from nodeproxy.settings import Address

TOKEN, ROOTS = "token", "ca.crt"
# An API server that has work to do answers in tens of milliseconds; with one that does not, an Event has time.
_REQUEST_S = 10.0
# What is said of a refusal, for the log.
_MAX_ANSWER_BYTES = 2048
_NEEDS = "the agent's account needs create and patch on events of events.k8s.io"
_MERGE = "application/merge-patch+json"


class Outcome(StrEnum):
    """What became of a request."""

    DONE = "done"
    GONE = "gone"  # the Event that was to be changed is not there any more
    REFUSED = "refused"  # not this one: the same request gets the same answer
    LATER = "later"  # the API server is away or busy, or does not know us: the same request may be taken later


class Answer(msgspec.Struct, frozen=True):
    """An outcome.  why: for people, "" if it is done.  retry_after_s: as the server wants it, 0 if it does not say."""

    outcome: Outcome
    why: str = ""
    retry_after_s: float = 0.0


class EventApi:
    """One API server.  account: the directory that has `token` and `ca.crt`."""

    def __init__(self, address: Address, account: Path) -> None:
        self._base = f"https://{address}/apis/events.k8s.io/v1/namespaces"
        self._account = account
        self._session: aiohttp.ClientSession | None = None

    async def create(self, namespace: str, event: dict[str, Any]) -> Answer:
        """A new Event."""
        return await self._request("POST", self._url(namespace), event, "application/json")

    async def change(self, namespace: str, name: str, fields: dict[str, Any]) -> Answer:
        """Other values for some of an Event's fields."""
        return await self._request("PATCH", f"{self._url(namespace)}/{quote(name, safe='')}", fields, _MERGE)

    async def close(self) -> None:
        """Let go of the connection; the next request makes another one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _url(self, namespace: str) -> str:
        return f"{self._base}/{quote(namespace, safe='')}/events"

    async def _request(self, method: str, url: str, body: dict[str, Any], content_type: str) -> Answer:
        try:
            headers = {"Content-Type": content_type, "Authorization": f"Bearer {self._token()}"}
            data = msgspec.json.encode(body)
            async with self._connected().request(method, url, data=data, headers=headers, allow_redirects=False) as response:
                text = await response.content.read(_MAX_ANSWER_BYTES)
                return _judge(response.status, response.headers.get("Retry-After", ""), text)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            # Connections are not kept over a failure: the next one is checked by the roots that the file holds then.
            await asyncio.shield(self.close())
            return Answer(Outcome.LATER, f"{type(exc).__name__}: {exc}")

    def _token(self) -> str:
        """As the kubelet renews it.  OSError, ValueError if it can't be read."""
        return (self._account / TOKEN).read_text(encoding="ascii").strip()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context(cafile=str(self._account / ROOTS))
            connector = aiohttp.TCPConnector(ssl=context, limit=1)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_REQUEST_S))
        return self._session


def _judge(status: int, retry_after: str, text: bytes) -> Answer:
    if status < 300:
        return Answer(Outcome.DONE)
    why = f"{status}: {_message(text)}"
    if status == 404:
        return Answer(Outcome.GONE, why)
    # 401: the kubelet renews the token.  403: a server that has just begun does not know rights yet, and in a namespace that ends
    # nothing may be made, until it has ended.  429 and 5xx: the server says itself that it is not the request's fault.
    if status in (401, 403):
        why += f"; {_NEEDS}"
    if status in (401, 403, 408, 429) or status >= 500:
        seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
        return Answer(Outcome.LATER, why, seconds)
    return Answer(Outcome.REFUSED, why)


class _Status(msgspec.Struct, frozen=True):
    message: str = ""


def _message(text: bytes) -> str:
    """What the API server says in a Status; anything else as it is."""
    try:
        return msgspec.json.decode(text, type=_Status).message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return repr(text[:200])
