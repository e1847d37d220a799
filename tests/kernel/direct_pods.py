"""Two enrolled pods of a node with programs in them, and the direct path between them, for the tests of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from nodeproxy.kernel import batch
from nodeproxy.kernel.direct import DirectFlow, DirectService, DirectTable, Verdict
from nodeproxy.lab.topology import Lab, LabPod
from tests.kernel.conftest import Node, Program
from tests.pace import PACE


class Pods(NamedTuple):
    """Ports of the server: 80 and 83 say who they are, 81 exchanges what it is asked for, nobody is at 82."""

    node: Node
    client: Program
    client_pod: LabPod
    client_cookie: int
    server: Program
    server_pod: LabPod
    server_cookie: int

    @property
    def table(self) -> DirectTable:
        return self.node.steering.direct

    def allow(self, *exceptions: int, default: bool = True, services: Iterable[DirectService] = ()) -> None:
        """The client may talk to the server, on all ports but those."""
        closing = self.table.close()
        verdict = Verdict(self.client_cookie, self.server_cookie, default, exceptions)
        assert self.table.publish(closing, [verdict], services)

    def forms(self) -> list[str]:
        """The server's address as an application may write it: IPv4, IPv6, mapped."""
        return [*self.server_pod.addresses, f"::ffff:{self.server_pod.address4}"]

    def ended(self) -> list[DirectFlow]:
        """What was told of, after a look that nothing is left of it in the maps."""
        found = self.table.take_ended()
        assert self.left() == {}
        return found

    def soon(self, count: int = 1) -> list[DirectFlow]:
        """`count` flows that end: what the kernel does in its own time, an orphan's last segments, is waited for."""
        found: list[DirectFlow] = []
        deadline = time.monotonic() + 5 * PACE
        while len(found) < count and time.monotonic() < deadline:
            found += self.table.take_ended()
        assert self.left() == {}
        return found

    def left(self) -> dict[str, int]:
        """Entries of the maps of connections, where there are any."""
        maps = self.node.steering._maps
        counts = {name: sum(len(keys) for keys, _ in batch.walk(maps[name])) for name in ("direct", "flows", "handover")}
        counts["in_use"] = sum(self.node.in_progress())
        return {name: count for name, count in counts.items() if count}


def make_pods(lab: Lab, node: Node) -> Pods:
    group = node.group / "pods"
    client_pod, server_pod = lab.pod(0, "direct-client"), lab.pod(0, "direct-server")
    client, server = Program(client_pod, group), Program(server_pod, group)
    for port in (80, 83):
        server.serve("::", port)
    server("serve_exchanges", address="::", port=81)
    return Pods(node, client, client_pod, node.enrol(client_pod), server, server_pod, node.enrol(server_pod))
