"""What a contestant is: a way from a client pod to a server pod, and the processes that this way costs.

A peer to compare with is one Python file: in tests/bench/contestants/, or anywhere and named by --plugin.  It has a function
`contestants(world) -> list[Contestant]`.  What a contestant must do stands below; `direct.py` is the shortest example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nodeproxy.lab.topology import Host

# The ports that applications in a server pod listen on, and that a contestant must carry.
BULK_PORT = 5201
BESIDE_PORT = 5202  # a second iperf3: one serves one test at a time
PING_PORT = 11111
HTTP_PORT = 8080
ECHO_PORT = 7007
PORTS = (BULK_PORT, BESIDE_PORT, PING_PORT, HTTP_PORT, ECHO_PORT)


class Contestant(Protocol):
    """A way for TCP between two pods.  Both pods exist from the start; the way does after `start`."""

    name: str
    """One word: `--contestants` and the record know it by this."""
    title: str
    baseline: str
    """The name of the contestant that has the same way without a mesh; its own name if it is that."""
    client: Host
    server: Host
    tools_cgroup: Path
    """The cgroup (version 2) that programs in its pods run in."""

    twin: Contestant | None
    """The same way between two more pods, for rows with more connections than one pod may have; None where one pod may."""

    def start(self) -> None:
        """Build the way; returns when connections go through."""

    def restart(self) -> None:
        """Exchange its processes for new ones (memory is measured on those); returns when connections go through."""

    def chill(self) -> None:
        """Make the client's next connection its first: no tunnel, no session of the client's is left."""

    def address(self, port: int) -> tuple[str, int]:
        """Where the client connects to, to reach `port` of the server."""

    def pids(self) -> list[int]:
        """Its own processes on both sides, all of them."""

    def stop(self) -> None:
        """End its processes."""
