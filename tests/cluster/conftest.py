"""An API server for the tests of this folder: one for all that share it, each test in namespaces of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.linux.bpffs import ensure_bpffs
from tests.cluster.apiserver import ApiServer
from tests.cluster.istiod import Istiod

_numbers = itertools.count()
CRDS = Path(__file__).resolve().parents[3] / "shared" / "crds"


@pytest.fixture(scope="session", autouse=True)
def _bpffs() -> None:
    ensure_bpffs()


@pytest.fixture(scope="session")
def definitions() -> list[Path]:
    """Istio's and Gateway API's definitions, as clusters have them."""
    files = [CRDS / "istio.yaml", CRDS / "gateway-api.yaml"]
    if not all(file.exists() for file in files):
        pytest.skip("the definitions of Istio and Gateway API are not beside this checkout")
    return files


@pytest.fixture(scope="module")
def bare_api() -> Iterator[ApiServer]:
    """An API server without Istio's definitions."""
    yield from _served()


@pytest.fixture(scope="module")
def api(definitions: list[Path]) -> Iterator[ApiServer]:
    """An API server with Istio's and Gateway API's definitions."""
    for server in _served():
        server.install_definitions(*definitions)
        yield server


@pytest.fixture(scope="module")
def istiod(api: ApiServer) -> Iterator[Istiod]:
    """A real istiod of that API server."""
    started = Istiod(api)
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Names that no other test has."""
    return lambda kind: f"{kind}-{next(_numbers)}"


def _served() -> Iterator[ApiServer]:
    server = ApiServer()
    try:
        server.start()
        yield server
    finally:
        server.close()
