"""A running cluster for each module, and what its agents said when a test fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack

import pytest

from nodeproxy.linux.bpffs import ensure_bpffs
from tests.mesh.cluster import Cluster

# What is shown of each agent's log: the newest lines, which a failure is about.
_SHOWN_CHARACTERS = 6000

Populate = Callable[[Cluster], None]


@pytest.fixture(scope="session", autouse=True)
def _bpffs() -> None:
    ensure_bpffs()


@pytest.fixture(scope="module")
def run_cluster() -> Iterator[Callable[[Populate], Cluster]]:
    """Makes a cluster with the pods that the argument adds to it, and starts its agents; it is closed with the module."""
    with ExitStack() as closing:

        def run(populate: Populate) -> Cluster:
            cluster = Cluster()
            closing.callback(cluster.close)
            populate(cluster)
            cluster.start()
            return cluster

        yield run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the agents' logs to the report of a failure: the fixtures of the test that are clusters are known by their type."""
    report = yield
    if report.failed:
        clusters = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Cluster)]
        for cluster in clusters:
            for agent in cluster.agents:
                report.sections.append((f"log of {agent.name}", agent.log()[-_SHOWN_CHARACTERS:]))
    return report
