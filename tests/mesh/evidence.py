"""What shows that a connection went the way it should: access-log lines, metrics, and programs' own output."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodeproxy.lab.topology import Host
from tests.mesh.cluster import Agent, Cluster, MeshPod, wait_until

_LISTEN = "0A"  # <net/tcp_states.h>, as /proc/net/tcp shows it
HBONE_PORT = 15008

Row = dict[str, Any]


def wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Until something listens on `port` in the network namespace of `process`.  It makes no connection."""

    def listening() -> bool:
        assert process.poll() is None, f"{process.args!r} has ended with {process.returncode}"
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]:
                local, _, state = line.split()[1:4]
                if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                    return True
        return False

    wait_until(listening, f"{process.args!r} listens on port {port}", 30)


def output(host: Host, argv: Sequence[str], stdin: bytes = b"", cgroup: Path | None = None) -> bytes:
    """What a program writes that is run in `host` to its end, which must be good."""
    process = host.popen(argv, cgroup=cgroup, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(stdin, timeout=60)
    assert process.returncode == 0, f"{argv}: {process.returncode}\n{err[-2000:].decode(errors='replace')}"
    return out


def rows_of(agent: Agent, **fields: Any) -> list[Row]:
    """The access-log lines with these values; `dst_addr` stands for `dst.addr`."""
    wanted = {name.replace("_", ".", 1): value for name, value in fields.items()}
    return [row for row in agent.access_log() if all(row.get(name) == value for name, value in wanted.items())]


def live(agent: Agent, target: str) -> int:
    """How many connections to `target` the agent's workers have open."""
    return sum(each["destination"]["address"] == target for each in agent.get("/connections")["connections"])


def tunnelled(cluster: Cluster, client: MeshPod, server: MeshPod, port: int, count: int = 0) -> tuple[list[Row], list[Row]]:
    """Both nodes' lines of the connections from `client` to `server`:`port`, which all must have gone through mutual TLS.

    Waits until they have ended; `count` says how many there must be, if that is known.  Bytes that one node counted the other
    counted too.
    """
    target = f"{server.ip}:{port}"
    ends = (cluster.agents[client.host.node], cluster.agents[server.host.node])

    def settled() -> tuple[list[Row], list[Row]] | None:
        if any(live(agent, target) for agent in ends):
            return None
        sent, arrived = (rows_of(agent, dst_addr=target) for agent in ends)
        return (sent, arrived) if sent and len(sent) == len(arrived) and count in (0, len(sent)) else None

    sent, arrived = wait_until(settled, f"both nodes have the lines of {count or 'all'} connections to {target}")
    for row in (*sent, *arrived):
        assert row["dst.hbone_addr"] == f"{server.ip}:{HBONE_PORT}", row
        assert row["src.identity"] == client.identity, row
        assert row["dst.identity"] == server.identity, row
    if not any("error" in row for row in (*sent, *arrived)):
        theirs = sorted((row["bytes_recv"], row["bytes_sent"]) for row in arrived)
        assert sorted((row["bytes_sent"], row["bytes_recv"]) for row in sent) == theirs
    return sent, arrived


def refused_total(agent: Agent, reason: str) -> int:
    """`nodeproxy_refused_total` of a reason, in both directions."""
    lines = re.findall(rf'^nodeproxy_refused_total{{.*reason="{reason}".*}} ([0-9.]+)$', agent.metrics(), re.MULTILINE)
    return int(sum(map(float, lines)))
