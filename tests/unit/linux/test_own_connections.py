"""A connection is found by its peer and shut down, and no other."""

from __future__ import annotations

import socket

import pytest

from nodeproxy.linux.own_connections import shut_down


@pytest.mark.parametrize(("family", "ip"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_connection_with_a_peer_is_shut_down(family: socket.AddressFamily, ip: str) -> None:
    with socket.create_server((ip, 0), family=family) as listener:
        with (
            socket.create_connection(listener.getsockname()[:2]) as one,
            socket.create_connection(listener.getsockname()[:2]) as other,
        ):
            accepted = [listener.accept()[0] for _ in range(2)]
            with accepted[0], accepted[1]:
                assert shut_down(ip, one.getsockname()[1])
                assert one.recv(1) == b""
                assert accepted[0].fileno() >= 0  # still its owner's
                accepted[1].sendall(b"x")
                assert other.recv(1) == b"x"
                assert not shut_down(ip, 1)


def test_a_mapped_address_is_the_same_peer() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as client:
            accepted, _ = listener.accept()
            with accepted:
                assert shut_down("127.0.0.1", client.getsockname()[1])
                assert client.recv(1) == b""
