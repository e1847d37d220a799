from __future__ import annotations

import pytest

from nodeproxy.wire.trace import child_traceparent

pytestmark = pytest.mark.unit

RANDOM = bytes(range(1, 25))
NEW = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-00"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("flags", "kept"), [("00", "00"), ("01", "01"), ("03", "01"), ("fe", "00")])
def test_child(flags: str, kept: str) -> None:
    assert child_traceparent(f"00-{TRACE}-{PARENT}-{flags}", RANDOM) == f"00-{TRACE}-1112131415161718-{kept}"


def test_later_version_is_read_as_ours() -> None:
    assert child_traceparent(f"cc-{TRACE}-{PARENT}-01-what-else", RANDOM) == f"00-{TRACE}-1112131415161718-01"


@pytest.mark.parametrize(
    "incoming",
    [
        None,
        "",
        "garbage",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_new_trace(incoming: str | None) -> None:
    assert child_traceparent(incoming, RANDOM) == NEW


def test_zero_is_no_identifier() -> None:
    assert child_traceparent(None, bytes(24)) == f"00-{'0' * 31}1-{'0' * 15}1-00"
    with pytest.raises(ValueError, match="24 random bytes"):
        child_traceparent(None, bytes(8))
