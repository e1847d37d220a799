from __future__ import annotations

import struct

import pytest
from hpack import Decoder, Encoder

from nodeproxy.proto import discovery_pb2 as discovery
from tests.bench.control_plane.delta_stream import ADDRESS, AUTHORIZATION, DeltaStream, StreamError

PREFACE = 24


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        found.append((*struct.unpack_from(">BBI", data, 3), data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def _requests(stream: DeltaStream, skip: int = 0) -> list[discovery.DeltaDiscoveryRequest]:
    """What it has to send, taken from it; skip: what comes before the frames."""
    sent = b"".join(payload for kind, _, _, payload in _frames(bytes(stream.outgoing[skip:])) if kind == 0)
    stream.outgoing.clear()
    found = []
    while sent:
        end = 5 + int.from_bytes(sent[1:5], "big")
        found.append(discovery.DeltaDiscoveryRequest.FromString(sent[5:end]))
        sent = sent[end:]
    return found


def _response(url: str, nonce: str, count: int) -> bytes:
    response = discovery.DeltaDiscoveryResponse(type_url=url, nonce=nonce, removed_resources=["gone"])
    for number in range(count):
        resource = response.resources.add(name=f"uid{number}")
        resource.resource.type_url = url
        resource.resource.value = b"x" * 100
    return response.SerializeToString()


@pytest.fixture
def begun() -> DeltaStream:
    """One whose first requests are sent."""
    made = DeltaStream("control", "secret", "node1", "system")
    made.outgoing.clear()
    return made


def test_it_asks_for_everything_of_both_types() -> None:
    stream = DeltaStream("control", "secret", "node1", "system")
    headers = next(payload for kind, _, _, payload in _frames(bytes(stream.outgoing[PREFACE:])) if kind == 1)
    assert dict(Decoder().decode(headers))["authorization"] == "Bearer secret"
    requests = _requests(stream, PREFACE)
    assert [request.type_url for request in requests] == [ADDRESS, AUTHORIZATION]
    assert all(request.node.id.startswith("ztunnel~") and not request.resource_names_subscribe for request in requests)


def test_messages_come_whole_however_they_are_cut_and_are_acknowledged(begun: DeltaStream) -> None:
    first, second = _response(ADDRESS, "nonce-1", 50), _response(AUTHORIZATION, "nonce-2", 0)
    data = b"".join(b"\0" + struct.pack(">I", len(message)) + message for message in (first, second))
    frames = b"".join(_frame(0, 0, 1, data[at : at + 1000]) for at in range(0, len(data), 1000))
    found = [message for at in range(0, len(frames), 777) for message in begun.received(frames[at : at + 777])]
    assert found == [(ADDRESS, first), (AUTHORIZATION, second)]
    assert [(each.type_url, each.response_nonce) for each in _requests(begun)] == [
        (ADDRESS, "nonce-1"),
        (AUTHORIZATION, "nonce-2"),
    ]


def test_it_waits_for_room_before_it_sends_more_than_it_may() -> None:
    stream = DeltaStream("control", "secret", "node1", "system")
    already = sum(len(payload) for kind, _, _, payload in _frames(bytes(stream.outgoing[PREFACE:])) if kind == 0)
    stream.outgoing.clear()
    message = _response(ADDRESS, "n", 0)
    for _ in range(2000):
        list(stream.received(_frame(0, 0, 1, b"\0" + struct.pack(">I", len(message)) + message)))
    assert sum(len(payload) for kind, _, _, payload in _frames(bytes(stream.outgoing)) if kind == 0) == 65535 - already
    stream.outgoing.clear()
    list(stream.received(_frame(8, 0, 0, struct.pack(">I", 100))))
    assert not stream.outgoing, "the stream itself has no room yet"
    list(stream.received(_frame(8, 0, 1, struct.pack(">I", 1000))))
    assert [len(payload) for _, _, _, payload in _frames(bytes(stream.outgoing))] == [100]


def test_pings_and_settings_are_answered(begun: DeltaStream) -> None:
    list(begun.received(_frame(4, 0, 0, struct.pack(">HI", 4, 1 << 20)) + _frame(6, 0, 0, b"8 bytes!")))
    assert _frames(bytes(begun.outgoing)) == [(4, 1, 0, b""), (6, 1, 0, b"8 bytes!")]


@pytest.mark.parametrize(
    "frame",
    [
        _frame(1, 5, 1, Encoder().encode([(":status", "200"), ("grpc-status", "16")])),
        _frame(1, 4, 1, Encoder().encode([(":status", "503")])),
        _frame(3, 0, 1, b"\0\0\0\1"),
        _frame(7, 0, 0, b"\0" * 8),
    ],
    ids=["trailers", "status", "reset", "goaway"],
)
def test_an_end_is_an_error(begun: DeltaStream, frame: bytes) -> None:
    with pytest.raises(StreamError):
        list(begun.received(frame))
