"""Requests to the Kubernetes API server: bytes there, bytes back, and lines of a stream.

kubernetes_asyncio finds the server, its roots and our credentials, and makes the HTTP session; its models and its decoding are
not used, since they cost more than all the rest.  Invariants: nothing is read into memory without a limit, every failure is a
`ClusterError`, and a file that changed is used without a restart.  It must not know kinds of resources, nor retry what failed:
callers know what may be repeated, and when.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
from kubernetes_asyncio.client.rest import RESTClientObject

from nodeproxy import __version__
from nodeproxy.errors import ClusterError, ConfigError, OversizedAnswerError
from nodeproxy.kube.credentials import PERIOD_S, Credentials
from nodeproxy.kube.lines import Lines, LineTooLongError

log = logging.getLogger(__name__)

# A page of 500 pods has some 5 MB; a reflector asks for smaller pages when this is not enough.
MAX_ANSWER_BYTES = 64 << 20
# etcd takes objects of 1.5 MiB (--max-request-bytes), in protobuf; JSON with managedFields is some times larger.
MAX_LINE_BYTES = 16 << 20
MAX_ERROR_BYTES = 64 << 10  # a Status object; what is beyond is of no use in a log
MAX_CONNECTIONS = 64  # of one client: a watch for each kind, and what else is asked for at once
READ_BUFFER_BYTES = 1 << 18  # of each connection, twice; a page or a line may be larger
# What gives the controller its rights.
CONTROLLER_GRANT = "apply daemonset/base, or bind the ClusterRole nodeproxy-controller of it to this user"
CLOSE_S = 1.0  # a WebSocket's goodbye; nothing depends on it
CONNECT_TIMEOUT_S = 10.0  # across zones a handshake takes some 0.2 s
# A stream can be silent for minutes.  TCP finds out after 15 + 3 x 5 s that its peer is gone without a word.
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class _Status(msgspec.Struct):
    """meta/v1 Status, as the API server tells of errors."""

    message: str = ""
    reason: str = ""


class _Session:
    """A pool of connections that were made with one set of roots and certificates."""

    def __init__(self, credentials: Credentials) -> None:
        configuration = credentials.configuration
        configuration.connection_pool_maxsize = MAX_CONNECTIONS
        try:
            self._rest = RESTClientObject(configuration)
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
            raise ConfigError(f"the API server's roots or our client certificate can't be used: {exc}; mend the files") from exc
        self.http = self.traced()
        self.host = str(configuration.host).rstrip("/")
        self.tls = credentials.tls
        self.options: dict[str, Any] = {
            name: value
            for name, value in (
                ("proxy", configuration.proxy or _proxy_of_environment(self.host)),
                ("server_hostname", configuration.tls_server_name),
            )
            if value
        }
        self.users = 0
        self.retired = False

    def traced(self, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """A session on these connections, which it does not own: closing it closes nothing."""
        # Not the library's own: that reads ~/.netrc for each request, and fails if it finds something.
        return aiohttp.ClientSession(
            connector=self._rest.pool_manager.connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER_BYTES,
            trace_configs=list(traces),
        )

    async def close(self) -> None:
        await self.http.close()
        await self._rest.close()


def _proxy_of_environment(url: str) -> str:
    """HTTPS_PROXY and NO_PROXY, as kubectl understands them; "" for none."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return ""
    return urllib.request.getproxies().get(parts.scheme, "")


class KubeClient:
    """A connection to one API server.  Make it with `connect`, end it with `close`."""

    def __init__(self, credentials: Credentials, grant: str = CONTROLLER_GRANT) -> None:
        self._credentials = credentials
        self._grant = grant
        self._session = _Session(credentials)
        self._read_at = time.monotonic()
        self._reading = asyncio.Lock()

    @classmethod
    async def connect(cls, kubeconfig: Path | Sequence[Path] | None, context: str = "", *, grant: str = CONTROLLER_GRANT) -> Self:
        """Read the kubeconfig, or, if it is None, what Kubernetes gives to a pod.  Nothing is sent yet.  Raises ConfigError.

        kubeconfig, context: as of `Credentials`.  grant: what to do about a 403, for its error.
        """
        credentials = Credentials(kubeconfig, context)
        await credentials.read()
        return cls(credentials, grant)

    @property
    def namespace(self) -> str:
        """The kubeconfig's, for names that say none; "" if it has none."""
        return self._credentials.namespace

    async def close(self) -> None:
        """End all connections; requests that are under way fail with ClusterError."""
        self._session.retired = True
        await self._session.close()

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
        """The answer's body.  path: from the server's root, "/api/v1/pods".  Raises ClusterError, also for any status but 2xx."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        headers = {} if body is None else {"Content-Type": content_type}
        async with self._answer(method, path, query, body, headers, timeout) as answer:
            return await _whole_body(answer, f"{method} {path}", MAX_ANSWER_BYTES)

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """GET whose answer comes in lines (a watch), until the server ends it.  timeout_s: for all of it, None for no limit.

        Raises ClusterError on entering and while it is read.
        """
        # Uncompressed: an event is worth its bytes now, and not when a compressor has filled its block.
        headers = {"Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._answer("GET", path, query, None, headers, timeout) as answer:
            _keep_alive(answer)
            try:
                async with aclosing(_lines(answer, f"GET {path}")) as lines:
                    yield lines
            finally:
                answer.close()  # what the reader left unread is not waited for

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{method} {path}"
        session = await self._current_session()
        session.users += 1
        try:
            with _failures(what):
                answer = await self._send(session, method, path, query, body, headers, timeout)
                if answer.status == 401 and await self._read_credentials(what):
                    answer.release()
                    answer = await self._send(session, method, path, query, body, headers, timeout)
            async with answer:
                if not 200 <= answer.status <= 299:
                    raise await self._error(answer, what)
                yield answer
        finally:
            session.users -= 1
            if session.retired and not session.users:
                await session.close()

    async def _error(self, answer: aiohttp.ClientResponse, what: str) -> ClusterError:
        reason = await _reason(answer, what)
        text = f"{what}: the API server says {answer.status} {reason or answer.reason or ''}".rstrip()
        if answer.status == 401:
            text += "; its token may have run out: renew the kubeconfig's user, or look at the pod's token mount"
        if answer.status == 403:
            text += f"; {self._grant}"
        return ClusterError(text, answer.status, _retry_after(answer.headers.get("Retry-After", "")))

    @asynccontextmanager
    async def websocket(
        self, path: str, query: Mapping[str, str], protocol: str
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """An upgraded connection, closed on leaving.  protocol: Sec-WebSocket-Protocol.  The caller sets the limit of time.

        Raises ClusterError on entering, and while the caller uses it within.
        """
        what = f"GET {path}"
        session = await self._current_session()
        session.users += 1
        try:
            with _failures(what):
                try:
                    upgraded, closed = await self._upgrade(session, path, query, protocol)
                except ClusterError as exc:
                    if exc.status != 401 or not await self._read_credentials(what):
                        raise
                    upgraded, closed = await self._upgrade(session, path, query, protocol)
                try:
                    async with upgraded:
                        yield upgraded
                finally:
                    # Else a loop that ends now leaves the socket behind.  Not wait_for: Python 3.11's may lose a cancellation.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(CLOSE_S):
                            await asyncio.gather(*closed, return_exceptions=True)
        finally:
            session.users -= 1
            if session.retired and not session.users:
                await session.close()

    async def _upgrade(
        self, session: _Session, path: str, query: Mapping[str, str], protocol: str
    ) -> tuple[aiohttp.ClientWebSocketResponse, list[asyncio.Future[None]]]:
        """The connection, and what is done when its socket is closed."""
        what = f"GET {path}"
        refused: list[ClusterError] = []
        closed: list[asyncio.Future[None]] = []

        async def look(_http: object, _context: object, params: aiohttp.TraceRequestEndParams) -> None:
            if params.response.status != 101:  # the library is about to throw the body away, where the API server says why
                refused.append(await self._error(params.response, what))
            elif (used := params.response.connection) is not None and used.protocol is not None and used.protocol.closed:
                closed.append(used.protocol.closed)

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(look)
        try:
            async with session.traced(trace) as http:
                upgraded: aiohttp.ClientWebSocketResponse = await http.ws_connect(
                    session.host + path,
                    params=query,
                    protocols=(protocol,),
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                    headers=self._headers(),
                    **session.options,
                )
                return upgraded, closed
        except aiohttp.WSServerHandshakeError as exc:
            raise refused[0] if refused else ClusterError(f"{what}: the API server does not upgrade: {exc.message}") from exc

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"nodeproxy/{__version__}"}
        if self._credentials.token:
            headers["Authorization"] = self._credentials.token
        return headers

    async def _send(
        self,
        session: _Session,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", **self._headers(), **headers}
        return await session.http.request(
            method,
            session.host + path,
            params=query,
            data=body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,  # the API server has no reason to send our token elsewhere
            **session.options,
        )

    async def _current_session(self) -> _Session:
        if time.monotonic() - self._read_at >= PERIOD_S:
            async with self._reading:
                if time.monotonic() - self._read_at >= PERIOD_S:
                    await self._read_credentials("credentials")
        if self._session.tls != self._credentials.tls and not self._session.retired:
            try:
                made = _Session(self._credentials)
            except ConfigError as exc:
                log.warning("connections are made as before: %s", exc)
                return self._session
            old, self._session = self._session, made
            old.retired = True
            if not old.users:
                await old.close()
        return self._session

    async def _read_credentials(self, what: str) -> bool:
        """Look at the files again; tells whether the token is another one now.  What can't be read leaves the old ones in use."""
        before = self._credentials.token
        self._read_at = time.monotonic()
        try:
            await self._credentials.read()
        except ConfigError as exc:
            log.warning("%s: the credentials from before stay in use: %s", what, exc)
        return self._credentials.token != before


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """What the library raises, as ours.  It stands around the library's calls alone: the caller's errors are none of these."""
    try:
        yield
    except TimeoutError as exc:
        raise ClusterError(f"{what}: the API server did not answer in time") from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise ClusterError(f"{what}: the API server is not reached, or broke off: {exc or type(exc).__name__}") from exc


async def _whole_body(answer: aiohttp.ClientResponse, what: str, max_bytes: int) -> bytes:
    body = bytearray()
    with _failures(what):
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > max_bytes:
                answer.close()
                raise OversizedAnswerError(f"{what}: the API server's answer has more than {max_bytes >> 10} KiB", answer.status)
    return bytes(body)


async def _lines(answer: aiohttp.ClientResponse, what: str) -> AsyncGenerator[bytes, None]:
    lines = Lines(MAX_LINE_BYTES)
    with _failures(what):
        async for chunk in answer.content.iter_any():
            try:
                for line in lines.feed(chunk):
                    yield line
            except LineTooLongError as exc:
                answer.close()
                raise OversizedAnswerError(f"{what}: {exc}", answer.status) from exc
    if lines.unfinished_bytes:
        raise ClusterError(f"{what}: the API server broke off within a line")


async def _reason(answer: aiohttp.ClientResponse, what: str) -> str:
    try:
        return msgspec.json.decode(await _whole_body(answer, what, MAX_ERROR_BYTES), type=_Status).message
    except (msgspec.MsgspecError, OversizedAnswerError):
        return ""  # not the API server's words: a proxy in between speaks HTML


def _retry_after(text: str) -> float | None:
    """RFC 9110, section 10.2.3, in seconds; the API server sends no dates."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _keep_alive(answer: aiohttp.ClientResponse) -> None:
    transport = answer.connection.transport if answer.connection is not None else None
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return  # the answer has ended already
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
