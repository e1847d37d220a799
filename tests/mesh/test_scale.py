"""What a large state costs: memory, and the time until workers go by a change of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

from tests.mesh import cluster as cluster_module
from tests.mesh import delta_source, large_state
from tests.mesh.cluster import Cluster
from tests.mesh.large_state import RULES, Node

WORKLOADS = 100_000
POLICIES = 10_000
# What a large state may add to all processes together, the whole of the store counted as memory; what a change may take.
ADDED_MB = 80.0
CHANGE_MS = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(nodes=1)
    try:
        large_state.populate(made)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster_module, "ENTRY", ["-m", delta_source.__name__])
            made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Node]:
    made = Node(cluster)
    yield made
    made.close()


def test_100_000_workloads(node: Node, record_property: pytest.RecordProperty) -> None:
    few_ms = statistics.median(node.change_ms() for _ in range(20))
    at_rest_mb, at_rest_stored_mb = node.pss_mb(), node.stored_mb()
    node.load(large_state.workloads(WORKLOADS))
    assert node.agent.get("/status")["state"]["workloads"] >= WORKLOADS
    node.connect_ms()
    added_mb, stored_mb = node.pss_mb() - at_rest_mb, node.stored_mb() - at_rest_stored_mb
    many_ms = statistics.median(node.change_ms() for _ in range(20))
    record_property(
        f"memory that {WORKLOADS:,} workloads and {WORKLOADS // 10:,} services add",
        f"{added_mb:.1f} MB in all processes (PSS), and {stored_mb:.1f} MB of store",
    )
    record_property("change of one of them until a worker has acted on it", f"{many_ms:.1f} ms; with few {few_ms:.1f} ms")
    assert added_mb + stored_mb < ADDED_MB
    assert many_ms < CHANGE_MS


def test_10_000_policies_of_10_rules(node: Node, record_property: pytest.RecordProperty) -> None:
    few_ms = statistics.median(node.connect_ms() for _ in range(50))
    before_mb = node.pss_mb()
    node.load(large_state.policies(POLICIES))
    assert node.agent.get("/status")["state"]["policies"] >= POLICIES
    first_ms = node.connect_ms()
    many_ms = statistics.median(node.connect_ms() for _ in range(50))
    added_mb = node.pss_mb() - before_mb
    change_ms = statistics.median(node.change_ms() for _ in range(10))
    record_property(
        f"a plain connection where {POLICIES:,} policies of {RULES} rules hold",
        f"{many_ms:.2f} ms, the first one {first_ms:.1f} ms; without them {few_ms:.2f} ms; {added_mb:.1f} MB more (PSS)",
    )
    # A walk over all of them took 3 s the first time, and 16 ms then.
    assert first_ms < 300
    assert many_ms < few_ms + 5
    assert change_ms < CHANGE_MS
    assert added_mb < 40
