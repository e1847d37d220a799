"""What tests of the direct path ask of a running agent, and agents whose lease is short."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mesh import cluster as cluster_module
from tests.mesh.attempts import WATCH_INTERVAL_S
from tests.mesh.cluster import Agent, MeshPod, wait_until
from tests.mesh.evidence import Row

# The product's is 30 s: a test of its end would take that long.
LEASE_S = 3
_ENTRY = [
    "-c",
    "import sys\n"
    "from nodeproxy.__main__ import main\n"
    "from nodeproxy.agent.sources.mesh_watch import MeshFile\n"
    "from nodeproxy.kernel import direct\n"
    f"MeshFile.changes.__defaults__ = ({WATCH_INTERVAL_S},)\n"
    f"direct.LEASE_NS = {LEASE_S}_000_000_000\n"
    "sys.exit(main())",
]


@contextlib.contextmanager
def short_lease() -> Iterator[None]:
    """Agents that are started within have a direct path that outlives them for `LEASE_S`, and see edits at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_module, "ENTRY", _ENTRY)
        yield


def why(agent: Agent, client: MeshPod, address: str, port: int) -> dict[str, Any]:
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return dict(agent.get("/why", source=client.uid, destination=target))


def wait_direct(agent: Agent, client: MeshPod, address: str, port: int) -> None:
    """Until a connection would go without the proxy."""
    wait_until(lambda: why(agent, client, address, port)["direct"], f"{client.host.name} reaches {address}:{port} directly")


def settled(agent: Agent) -> None:
    """Until what was changed is in effect, as far as it can be direct."""
    wait_until(lambda: agent.get("/status")["direct"]["open"], "the direct path is open")


def hindrance(agent: Agent, client: MeshPod, address: str, port: int) -> str:
    """What `why` says of why it goes through the proxy, once changes are in effect; "": it does not."""
    settled(agent)
    step = next(step for step in why(agent, client, address, port)["steps"] if step["what"] == "through the proxy?")
    return str(step["outcome"].partition("yes: ")[2])


def live_to(agent: Agent, target: str, **more: Any) -> list[Row]:
    """The live connections to `target`, with these values."""
    found = [each for each in agent.get("/connections")["connections"] if each["destination"]["address"] == target]
    return [each for each in found if all(each[name] == value for name, value in more.items())]
