"""What `why` asks for before it explains, on demand; what it says is shown in tests/mesh/test_on_demand.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.agent.why import _names_of_destination, _names_of_source
from nodeproxy.model.delta import Delta
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.state.builders import pod


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    writer = StateWriter(tmp_path)
    writer.apply(Delta((pod("client", "10.0.0.1", namespace="shop"),)))
    reader = writer.reader()
    yield reader.view()
    reader.close()
    writer.close()


@pytest.mark.parametrize(
    ("destination", "names"),
    [
        ("orders:80", ("shop/orders.shop.svc.c.local", "shop/orders")),
        ("orders", ("shop/orders.shop.svc.c.local", "shop/orders")),
        ("orders.store:80", ("store/orders.store.svc.c.local", "shop/orders.store")),
        ("orders.store.svc.c.local:80", ("store/orders.store.svc.c.local", "shop/orders.store.svc.c.local")),
        ("api.example.com:443", ("shop/api.example.com",)),
        ("K//Pod/store/orders-0:80", ("K//Pod/store/orders-0",)),
        ("K//Pod/store/orders-0", ("K//Pod/store/orders-0",)),
        ("store/orders-0", ()),
        ("10.0.0.9:80", ()),
        ("[fd00::9]:80", ()),
    ],
)
def test_names_of_a_destination(view: View, destination: str, names: tuple[str, ...]) -> None:
    assert _names_of_destination(view, "client", destination, "c.local") == names


def test_a_source_that_nobody_knows_is_told_elsewhere(view: View) -> None:
    assert _names_of_destination(view, "stranger", "orders:80", "c.local") == ()


@pytest.mark.parametrize(("source", "names"), [("K//Pod/a/b", ("K//Pod/a/b",)), ("10.0.0.9", ("/10.0.0.9",)), ("client", ())])
def test_names_of_a_source(source: str, names: tuple[str, ...]) -> None:
    assert _names_of_source(source) == names
