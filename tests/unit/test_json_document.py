"""docs/json.md names what there is: calls, fields and words.  That agents answer so is shown by tests/mesh/test_demo.py."""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec
import pytest

from nodeproxy.agent.admin import Admin
from nodeproxy.agent.node import Node
from nodeproxy.agent.sources.connection import SourceConnection
from nodeproxy.model.connection import Connection
from nodeproxy.model.node_pod import PodState
from nodeproxy.observe.explain import Explanation
from tests.unit.cli.documented import DOCUMENT, examples

TEXT = DOCUMENT.read_text()
STATUS = TEXT.partition("\n## status\n")[2].partition("```json")[0]


def test_calls_of_the_admin_api() -> None:
    app = Admin(cast(Node, None), identification={}, name="n", stop=lambda: None).application(None)
    served = {
        f"{route.method} {route.resource.canonical.replace('{uid}', 'UID')}" for route in app.router.routes() if route.resource
    }
    documented = set(re.findall(r"^\| `((?:GET|POST|DELETE) [^`?]+)", TEXT, re.MULTILINE))
    assert documented == {call for call in served if not call.startswith("HEAD")}


def test_states_of_a_pod() -> None:
    words = set(re.findall(r"`([a-z_]+)`", STATUS.partition("A pod's `state` is")[2].partition("; `why` says")[0]))
    assert words == set(PodState)


def test_what_status_says_of_a_control_plane() -> None:
    assert all(f"`{name}`" in STATUS for name in SourceConnection.__struct_fields__)


@pytest.mark.parametrize(
    ("example", "form"), [(examples()["connections"]["connections"][0], Connection), (examples()["why"], Explanation)]
)
def test_fields_are_those_of_the_code(example: dict[str, Any], form: type[msgspec.Struct]) -> None:
    assert set(example) == set(form.__struct_fields__)
