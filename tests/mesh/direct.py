"""What tests of the direct path ask of a running agent, and agents whose lease is short."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from tests.mesh.attempts import fast_edits
from tests.mesh.cluster import Agent, MeshPod, wait_until
from tests.mesh.evidence import Row

# The product's is 30 s: a test of its end would take that long.
LEASE_S = 3


def short_lease() -> AbstractContextManager[None]:
    """Agents that are started within have a direct path that outlives them for `LEASE_S`, and see edits at once."""
    return fast_edits("from nodeproxy.kernel import direct", f"direct.LEASE_NS = {LEASE_S}_000_000_000")


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
