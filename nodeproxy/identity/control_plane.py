"""How a control plane's servers are reached: TLS by the roots in a file, a bearer token from a file, several addresses in turn.

Invariant: root and token are read for each connection and each call, for both are replaced while the agent runs; nothing is sent
to a server that the roots do not vouch for, except on this machine.  Knows neither xDS nor certificates.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from nodeproxy.config import Upstream
from nodeproxy.errors import IdentityError

# protocols of Istio ambient, "xDS": messages up to 200 MiB.
MAX_MESSAGE_BYTES = 200 << 20
# A bundle of a hundred roots is 200 KiB; a token is 2 KiB.
MAX_ROOT_BYTES = 4 << 20
MAX_TOKEN_BYTES = 64 << 10

# istiod takes a client for hostile that pings more often than each 15 s (half of its own 30 s).
_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.enable_http_proxy", 0),  # whoever wants one for other programs does not want the mesh to hang on it
    ("grpc.service_config_disable_resolution", 1),  # no TXT look-ups: how to call is our own business
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a channel is one connection: a new one is made with the roots as they are now
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class ControlPlane:
    """The servers of one kind, all equal."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        root: Path,
        token: Path | None,
        cluster_id: str,
        start: int | None = None,
    ) -> None:
        """token: None, none is sent.  start: which of the upstreams is first; by chance, so that nodes spread over them."""
        self._upstreams = tuple(upstreams)
        self._root = root
        self._token = token
        self._cluster_id = cluster_id
        self._next = random.randrange(len(self._upstreams)) if start is None else start

    def __len__(self) -> int:
        """How many addresses there are."""
        return len(self._upstreams)

    def __str__(self) -> str:
        """The addresses, as they are written."""
        return ",".join(str(each) for each in self._upstreams)

    def current(self) -> Upstream:
        """The server whose turn it is."""
        return self._upstreams[self._next]

    def turn(self) -> None:
        """That server is no good: the next one's turn."""
        self._next = (self._next + 1) % len(self._upstreams)

    def roots(self) -> bytes:
        """The roots as they are now, b"" if the server whose turn it is needs none.  Raises IdentityError."""
        if not self.current().tls:
            return b""
        roots = _read(self._root, MAX_ROOT_BYTES, "the root certificates of the control plane")
        if b"-----BEGIN CERTIFICATE-----" not in roots:
            # gRPC would take an empty file for "whatever this machine trusts".
            raise IdentityError(f"{self._root} holds no certificate in PEM: the roots of the control plane are expected")
        return roots

    def channel(self, roots: bytes) -> grpc.aio.Channel:
        """A new channel to the server whose turn it is.  roots: as `roots` gave them."""
        upstream = self.current()
        target = f"dns:///{upstream.address}"
        if not upstream.tls:
            return grpc.aio.insecure_channel(target, options=_OPTIONS)
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(root_certificates=roots), options=_OPTIONS)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call.  Raises IdentityError."""
        said = (("clusterid", self._cluster_id),)
        if self._token is None:
            return said
        token = _read(self._token, MAX_TOKEN_BYTES, "the token for the control plane").strip()
        # RFC 6750, section 2.1: a token is of visible ASCII.
        if not token or not all(0x21 <= byte <= 0x7E for byte in token):
            raise IdentityError(f"{self._token} holds no token: one line of visible ASCII is expected")
        return (*said, ("authorization", f"Bearer {token.decode('ascii')}"))


def describe(error: grpc.aio.AioRpcError) -> str:
    """What a failed call says, for people."""
    return f"{error.code().name.lower()}: {(error.details() or 'no details')[:500]}"


def _read(path: Path, limit: int, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as exc:
        raise IdentityError(f"{what} can't be read: {path}: {exc.strerror}; is it mounted?") from exc
    if len(content) > limit:
        raise IdentityError(f"{what}: {path} has more than {limit} bytes; is it the right file?")
    return content
