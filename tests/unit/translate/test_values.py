from __future__ import annotations

import pytest

from nodeproxy.model.policy import ServiceAccountMatch, StringMatch
from nodeproxy.translate.values import parse_block, parse_port, parse_service_account, parse_text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a", StringMatch(exact="a")),
        ("*", StringMatch(presence=True)),
        ("a*", StringMatch(prefix="a")),
        ("*a", StringMatch(suffix="a")),
        ("*a*", StringMatch(suffix="a*")),
        ("a*b", StringMatch(exact="a*b")),
        ("**", StringMatch(suffix="*")),
        ("", None),
        ("ü", None),
        ("\ud800*", None),
    ],
)
def test_text(text: str, match: StringMatch | None) -> None:
    assert parse_text(text) == match


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("10.0.0.0/08", None),
        ("10.0.0.0/33", None),
        ("10.0.0.0/255.0.0.0", None),
        ("10.0.0.0/", None),
        ("10.0.0.0/8/8", None),
        ("10.0.0.0/" + "9" * 5000, None),
        ("010.0.0.1", None),
        ("10.0.0", None),
        ("fe80::1%eth0", None),
        ("fe80::%eth0/64", None),
        ("host", None),
        ("", None),
        ("\x00", None),
    ],
)
def test_block(text: str, block: str | None) -> None:
    assert parse_block(text) == block


@pytest.mark.parametrize(
    ("text", "port"),
    [
        *(("80", 80), ("0", 0), ("0080", 80), ("65535", 65535)),
        *((text, None) for text in ("65536", "http", "", "-1", "+80", "8 0", "8_0", "٨٠", "9" * 5000)),
    ],
)
def test_port(text: str, port: int | None) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("web", ServiceAccountMatch("ns", "web")),
        ("prod/web", ServiceAccountMatch("prod", "web")),
        *((text, None) for text in ("", "/web", "prod/", "prod/web/x", "prod/*", "*", "ü")),
    ],
)
def test_service_account(text: str, match: ServiceAccountMatch | None) -> None:
    assert parse_service_account(text, "ns") == match
