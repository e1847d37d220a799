from __future__ import annotations

import pytest

from nodeproxy.wire.proxy_protocol import encode_proxy_v2

pytestmark = pytest.mark.unit

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


def test_ipv4_with_identity() -> None:
    header = encode_proxy_v2(("10.0.0.1", 4660), ("10.0.0.2", 80), "spiffe://a/ns/b/sa/c")
    assert (
        header
        == SIGNATURE + bytes.fromhex("21110023" + "0a000001" + "0a000002" + "1234" + "0050" + "d00014") + b"spiffe://a/ns/b/sa/c"
    )


def test_ipv6_without_identity() -> None:
    header = encode_proxy_v2(("fd00::1", 1), ("fd00::2", 2))
    assert header == SIGNATURE + bytes.fromhex("21210024" + "fd" + "00" * 14 + "01" + "fd" + "00" * 14 + "02" + "0001" + "0002")


def test_two_families_are_ipv6() -> None:
    header = encode_proxy_v2(("10.0.0.1", 1), ("fd00::2", 2))
    assert header[13] == 0x21
    assert header[16:32] == bytes.fromhex("00" * 10 + "ffff" + "0a000001")


def test_identity_too_long() -> None:
    with pytest.raises(ValueError, match="2048"):
        encode_proxy_v2(("10.0.0.1", 1), ("10.0.0.2", 2), "x" * 2049)
