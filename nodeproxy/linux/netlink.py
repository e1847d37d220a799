"""A netlink socket in a pod's network namespace, with pyroute2's errors turned into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nodeproxy.errors import KernelError
from nodeproxy.linux.iproute import IPRoute, NetlinkError
from nodeproxy.linux.netns import inside


@contextmanager
def netlink(netns_fd: int, what: str) -> Iterator[IPRoute]:
    """Run the block in the namespace with a netlink socket there; `what` opens an error's text."""
    with inside(netns_fd):
        try:
            with IPRoute() as route:
                yield route
        except NetlinkError as error:
            raise KernelError(f"{what}: {error}", int(error.code)) from error
