from __future__ import annotations

import hpack
import pytest

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.wire.fields import FieldBlock
from nodeproxy.wire.hbone import (
    ConnectRequest,
    connect_block,
    connect_prefix,
    connect_suffix,
    forwarded_for,
    ok_block,
    parse_authority,
    parse_connect,
    status_block,
)

pytestmark = pytest.mark.unit

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def decode(block: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(block, raw=True))


def test_connect_comes_back_whole() -> None:
    block = connect_block(
        "[fd00::1]:80",
        baggage="service.name=a",
        forwarded='for="10.0.0.1:5";host=Web.Default.svc',
        traceparent=TRACEPARENT,
        extra=((b"x-forwarded-network", b"west"),),
    )
    headers = decode(block)
    assert FieldBlock(headers).request_fault == ""
    request = parse_connect(headers)
    assert request == ConnectRequest(
        "[fd00::1]:80", "fd00::1", 80, True, "service.name=a", 'for="10.0.0.1:5";host=Web.Default.svc', TRACEPARENT, "west"
    )
    assert isinstance(request, ConnectRequest)
    assert request.forwarded_host == "web.default.svc"


def test_prefix_and_suffix_are_the_whole() -> None:
    forwarded = forwarded_for("10.0.0.1:5")
    joined = connect_prefix("10.0.0.2:80", "a=b") + connect_suffix(forwarded, TRACEPARENT)
    assert joined == connect_block("10.0.0.2:80", baggage="a=b", forwarded=forwarded, traceparent=TRACEPARENT)
    assert decode(connect_prefix("10.0.0.2:80", "")) == ((b":method", b"CONNECT"), (b":authority", b"10.0.0.2:80"))
    assert connect_suffix("", "") == b""


def test_answers() -> None:
    assert decode(ok_block()) == ((b":status", b"200"),)
    assert decode(ok_block("a=b")) == ((b":status", b"200"), (b"baggage", b"a=b"))
    assert decode(status_block(401)) == ((b":status", b"401"),)


def test_refusals() -> None:
    get = parse_connect(((b":method", b"GET"), (b":path", b"/"), (b":scheme", b"http")))
    assert isinstance(get, Refusal)
    assert get.reason is Reason.NOT_CONNECT
    bad = parse_connect(((b":method", b"CONNECT"), (b":authority", b"nowhere")))
    assert isinstance(bad, Refusal)
    assert bad.reason is Reason.BAD_AUTHORITY


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80, True)),
        ("[fd00:0:0::1]:65535", ("fd00::1", 65535, True)),
        ("[::ffff:10.0.0.1]:80", ("10.0.0.1", 80, True)),
        ("Web.default.svc.cluster.local:80", ("web.default.svc.cluster.local", 80, False)),
        ("web.default.svc.:80", ("web.default.svc", 80, False)),
        ("a_b-c:1", ("a_b-c", 1, False)),
    ],
)
def test_authorities(text: str, expected: tuple[str, int, bool]) -> None:
    assert parse_authority(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:080", "10.0.0.1:65536", "10.0.0.1:+80"),
        *("10.0.0.1: 80", "10.0.0.1:\uff18\uff10", "256.0.0.1:80", "010.0.0.1:80", "1.2.3:80", "0x7f.1:80", "web.123:80"),
        *("fd00::1:80", "[fd00::1]", "[fd00::1]80", "[fd00::1%eth0]:80", "[10.0.0.1]:80", "[]:80", "[web]:80"),
        *("-a:80", "a..b:80", "a b:80", "a/b:80", "a\n:80", "user@web:80", "web:80:80", "\u00e9.example:80"),
        *("a" * 64 + ":80", ".".join(["a" * 63] * 4) + ":80", "a" * 10_000 + ":80"),
    ],
)
def test_bad_authorities(text: str) -> None:
    assert parse_authority(text) is None


@pytest.mark.parametrize(
    ("address", "host", "value", "found"),
    [
        ("10.0.0.1:5", "", 'for="10.0.0.1:5"', ""),
        ("[fd00::1]:5", "", 'for="[fd00::1]:5"', ""),
        ("10.0.0.1:5", "web.default.svc", 'for="10.0.0.1:5";host=web.default.svc', "web.default.svc"),
    ],
)
def test_forwarded(address: str, host: str, value: str, found: str) -> None:
    assert forwarded_for(address, host) == value
    assert ConnectRequest("a:1", "a", 1, False, forwarded=value).forwarded_host == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ('host="a.b"', "a.b"),
        ("Host=a.b; for=x", "a.b"),
        ("for=x, host=late", ""),
        ("nothost=x", ""),
        ('for="x;host=y"', ""),
        ("host=a/b", ""),
    ],
)
def test_foreign_forwarded(value: str, found: str) -> None:
    assert ConnectRequest("a:1", "a", 1, False, forwarded=value).forwarded_host == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80, True)),
        ("[fd00::1]:80", ("fd00::1", 80, True)),
        ("[FD00:0::1]:80", ("fd00::1", 80, True)),
        ("[::ffff:10.0.0.1]:80", ("10.0.0.1", 80, True)),
        ("Web.ns.SVC.cluster.local.:80", ("web.ns.svc.cluster.local", 80, False)),
        ("web:65535", ("web", 65535, False)),
        ("", None),
        ("10.0.0.1", None),
        ("10.0.0.1:", None),
        (":80", None),
        ("10.0.0.1:0", None),
        ("10.0.0.1:65536", None),
        ("10.0.0.1:+80", None),
        ("10.0.0.1:٨٠", None),
        ("10.0.0.1:80:80", None),
        ("10.0.0.256:80", None),
        ("1.2.3:80", None),
        ("fd00::1:80", None),
        ("[10.0.0.1]:80", None),
        ("[web]:80", None),
        ("[fd00::1:80", None),
        ("user@web:80", None),
        ("we b:80", None),
        ("http://web:80", None),
        ("wéb:80", None),
        ("a" * 300 + ":80", None),
        (".:80", None),
    ],
)
def test_authorities_as_people_and_peers_write_them(text: str, expected: tuple[str, int, bool] | None) -> None:
    assert parse_authority(text) == expected
