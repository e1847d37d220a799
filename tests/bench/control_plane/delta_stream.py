"""One delta xDS stream of gRPC, as little of HTTP/2 as it takes: bytes in, messages out, each of them acknowledged.

A wildcard subscriber as a node's proxy is one, and so cheap that fifty of them leave the CPUs to the control plane that they
measure.  Messages are never decoded; the nonce is looked for at both ends.  No I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hpack import Decoder, Encoder

from nodeproxy.proto import discovery_pb2

ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"
TYPES = (ADDRESS, AUTHORIZATION)
_PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_STREAM = 1
_WINDOW = (1 << 31) - 1
_DEFAULT_WINDOW = 65535
# What is read before the connection's window is opened again: well within it.
_REOPEN_BYTES = 1 << 29
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE, _ENABLE_PUSH = 4, 5, 2
# type_url (field 4) and the tag of nonce (5): before the resources (2), as nodeproxy writes a message, or after them, as others.
_BEFORE_NONCE = {url: b"\x22" + bytes([len(url)]) + url.encode() + b"\x2a" for url in TYPES}


class StreamError(Exception):
    """The control plane ended the stream, or said something that gRPC does not."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class DeltaStream:
    """What is to be sent stands in `outgoing`; `received` takes what came and gives messages."""

    def __init__(self, authority: str, token: str, node: str, namespace: str) -> None:
        settings = ((_INITIAL_WINDOW_SIZE, _WINDOW), (_MAX_FRAME_SIZE, 1 << 20), (_ENABLE_PUSH, 0))
        self.outgoing = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.outgoing += _frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in settings))
        self.outgoing += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW - _DEFAULT_WINDOW))
        headers = [(":method", "POST"), (":scheme", "https"), (":path", _PATH), (":authority", authority), ("te", "trailers")]
        headers += [("content-type", "application/grpc"), ("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes")]
        self.outgoing += _frame(_HEADERS, _END_HEADERS, _STREAM, Encoder().encode(headers))
        self._headers = Decoder()
        self._incoming = bytearray()
        self._data = bytearray()
        self._unsent = bytearray()
        self._stream_window = self._connection_window = self._initial_window = _DEFAULT_WINDOW
        self._unopened_bytes = 0
        for url in TYPES:
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=url)
            request.node.id = f"ztunnel~10.0.0.1~agent-{node}.{namespace}~{namespace}.svc.cluster.local"
            request.node.metadata.update({"NODE_NAME": node, "NAMESPACE": namespace, "NAME": f"agent-{node}"})
            self._send(request.SerializeToString())

    def received(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Type and bytes of each message that is complete; acknowledged when the next is asked for.  Raises StreamError."""
        self._incoming += data
        while len(self._incoming) >= 9:
            length = int.from_bytes(self._incoming[:3], "big")
            if len(self._incoming) < 9 + length:
                return
            kind, flags, stream = struct.unpack_from(">BBI", self._incoming, 3)
            payload = bytes(self._incoming[9 : 9 + length])
            del self._incoming[: 9 + length]
            if kind == _DATA:
                self._opened(length)
                self._data += payload
                yield from self._messages()
            elif kind == _WINDOW_UPDATE:
                self._widened(stream, int.from_bytes(payload, "big"))
            else:
                self._control(kind, flags, payload)

    def _messages(self) -> Iterator[tuple[str, bytes]]:
        while len(self._data) >= 5:
            end = 5 + int.from_bytes(self._data[1:5], "big")
            if len(self._data) < end:
                return
            message = bytes(self._data[5:end])
            del self._data[:end]
            url, nonce = _nonce(message)
            yield url, message
            self._send(discovery_pb2.DeltaDiscoveryRequest(type_url=url, response_nonce=nonce).SerializeToString())

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _HEADERS:
            headers = dict(self._headers.decode(payload))
            if flags & _END_STREAM or headers.get(":status") != "200":
                raise StreamError(f"the stream ended: {headers}")
        elif kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == _INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._initial_window
                    self._initial_window = value
            self.outgoing += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self.outgoing += _frame(_PING, _ACK, 0, payload)
        elif kind in (_RST, _GOAWAY):
            raise StreamError(f"the stream was {'reset' if kind == _RST else 'told to go away'}: {payload!r}")

    def _widened(self, stream: int, increment: int) -> None:
        if stream:
            self._stream_window += increment
        else:
            self._connection_window += increment
        self._flush()

    def _opened(self, length: int) -> None:
        self._unopened_bytes += length
        if self._unopened_bytes >= _REOPEN_BYTES:
            for stream in (0, _STREAM):
                self.outgoing += _frame(_WINDOW_UPDATE, 0, stream, struct.pack(">I", self._unopened_bytes))
            self._unopened_bytes = 0

    def _send(self, message: bytes) -> None:
        self._unsent += b"\0" + struct.pack(">I", len(message)) + message
        self._flush()

    def _flush(self) -> None:
        size = min(len(self._unsent), self._stream_window, self._connection_window, 16384)
        if size > 0:
            self.outgoing += _frame(_DATA, 0, _STREAM, bytes(self._unsent[:size]))
            del self._unsent[:size]
            self._stream_window -= size
            self._connection_window -= size


def _nonce(message: bytes) -> tuple[str, str]:
    """Type and nonce of a response."""
    for url, before in _BEFORE_NONCE.items():
        at = 0 if message.startswith(before) else message.rfind(before)
        if at >= 0:
            at += len(before)
            return url, message[at + 1 : at + 1 + message[at]].decode()
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(message)  # in another order than everybody writes it
    return response.type_url, response.nonce
