"""A request with raw entries reads as the generated class wrote it."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.names import ADDRESS
from nodeproxy.xds.request import entry, parse, read

VERSIONS = {"a": "1", "b": "", "": "x", "n" * 127: "v" * 127, "n" * 128: "v", "o": "v" * 200, "é" * 70: "ü", "é" * 60: "ü"}


def test_all_fields_are_read() -> None:
    written = discovery_pb2.DeltaDiscoveryRequest(
        type_url=ADDRESS,
        resource_names_subscribe=["s"],
        resource_names_unsubscribe=["u"],
        initial_resource_versions=VERSIONS,
        response_nonce="7",
    )
    assert not parse(written.SerializeToString()).HasField("error_detail")
    written.node.id = "me"
    written.error_detail.message = "no"
    request = parse(written.SerializeToString())
    assert (request.type_url, request.response_nonce, request.node.id) == (ADDRESS, "7", "me")
    assert (list(request.resource_names_subscribe), list(request.resource_names_unsubscribe)) == (["s"], ["u"])
    assert (request.HasField("error_detail"), request.error_detail.message) == (True, "no")
    assert read(request.initial_resource_versions) == VERSIONS


def test_an_entry_is_written_as_clients_write_it() -> None:
    for name, version in VERSIONS.items():
        message = discovery_pb2.DeltaDiscoveryRequest(initial_resource_versions={name: version})
        (raw,) = parse(message.SerializeToString()).initial_resource_versions
        assert entry(name, version) == raw or not name or not version  # what is empty may be written or left out
        assert read([entry(name, version)]) == {name: version}


@pytest.mark.parametrize("raw", [b"\x0a\x05a", b"\x0a\x01\xff", b"\xff"])
def test_what_is_no_entry_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        read([raw])
