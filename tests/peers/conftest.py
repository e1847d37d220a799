"""The mesh of this folder, and what its processes wrote, shown where a test fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.peers.peers import Peers

_TAIL_BYTES = 3000
_running: list[Peers] = []


@pytest.fixture(scope="session")
def peers() -> Iterator[Peers]:
    made = Peers()
    _running.append(made)
    try:
        yield made
    finally:
        _running.remove(made)
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for made in _running:
            for envoy in made.envoys:
                if envoy.process is not None:
                    report.sections.append((f"Envoy {envoy.name}", envoy.log()[-_TAIL_BYTES:]))
            for agent in made.cluster.agents:
                report.sections.append((f"agent {agent.name}", agent.log()[-_TAIL_BYTES:]))
    return report
