from __future__ import annotations

import contextlib

import pytest

from nodeproxy.errors import ResourceError
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds import message
from nodeproxy.xds.message import Response


def encoded() -> bytes:
    made = discovery_pb2.DeltaDiscoveryResponse(type_url="t", nonce="n", removed_resources=["a", "b"], system_version_info="v")
    for number in range(3):
        resource = made.resources.add(name=f"r{number}", version=str(number))
        resource.resource.value = bytes(number * 100)
    return made.SerializeToString()


def test_says_what_protobuf_says() -> None:
    response = Response(encoded())
    assert (response.type_url, response.nonce, response.removed, response.bytes) == ("t", "n", ("a", "b"), len(encoded()))
    whole = discovery_pb2.DeltaDiscoveryResponse.FromString(encoded())
    assert list(response.resources()) == list(whole.resources)


def test_order_of_fields_does_not_matter() -> None:
    late = discovery_pb2.DeltaDiscoveryResponse(nonce="n").SerializeToString()
    early = discovery_pb2.DeltaDiscoveryResponse()
    early.resources.add(name="r")
    assert Response(early.SerializeToString() + late).nonce == "n"


def test_fields_of_later_versions_are_passed_over() -> None:
    unknown = bytes([0x78, 0x96, 0x01]) + bytes([0x71, *range(8)]) + bytes([0x6D, *range(4)]) + bytes([0x82, 0x01, 2, 1, 2])
    assert len(list(Response(unknown + encoded()).resources())) == 3


def test_every_truncation_is_refused_or_is_a_shorter_message() -> None:
    raw = encoded()
    for end in range(len(raw)):
        with contextlib.suppress(ResourceError):
            assert len(list(Response(raw[:end]).resources())) <= 3


@pytest.mark.parametrize(
    "raw", [b"\xff" * 12, b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b", b"\x12\x80", b"\x2a\x01\xff"]
)
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(ResourceError):
        Response(raw)


def test_a_bad_resource_is_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "MAX_RESOURCE_BYTES", 150)
    raw = b"\x12\x02\x1a\x7f" + encoded()  # a resource whose name does not fit into it
    found = list(Response(raw).resources())
    assert [type(each) for each in found] == [ResourceError, *[discovery_pb2.Resource] * 2, ResourceError]
    assert [(each.reason, each.name) for each in found if isinstance(each, ResourceError)] == [
        ("malformed", ""),
        ("too_large", "r2"),
    ]


def test_a_bad_resource_is_named_where_its_name_can_be_read() -> None:
    for content, name in ((b"\x1a\x01a\x12\xff", "a"), (b"\x1a\x01\xff\x12\xff", ""), (b"\x12\x00" * 20 + b"\x1a\x01a\xff", "")):
        (found,) = Response(b"\x12" + bytes([len(content)]) + content).resources()
        assert isinstance(found, ResourceError)
        assert found.name == name


def test_parts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "MAX_PARTS", 10)
    Response(b"\x12\x00" * 10)
    with pytest.raises(ResourceError, match="more than 10"):
        Response(b"\x12\x00" * 11)
