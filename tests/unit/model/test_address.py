"""How an address and a port are written together."""

from __future__ import annotations

from nodeproxy.model.address import join_address


def test_join_address() -> None:
    assert (join_address("10.0.0.1", 1), join_address("::1", 2)) == ("10.0.0.1:1", "[::1]:2")
