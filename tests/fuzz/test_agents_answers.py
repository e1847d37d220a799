"""Answers of agents of other versions, and of what is no agent: whatever they hold, the commands show it or say what is wrong."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import msgspec
import pytest

from nodeproxy.__main__ import main
from nodeproxy.cli import cluster_check, cluster_connections, cluster_status, cluster_why
from nodeproxy.fleet import agents, shapes
from nodeproxy.fleet.agents import Fleet
from nodeproxy.fleet.shapes import _BY_PATH, fault
from nodeproxy.kube.client import KubeClient
from nodeproxy.kube.portforward import Answer
from tests.unit.cli.documented import examples
from tests.unit.fleet.builders import found

COMMANDS = {
    "status": ("-n", "shop"),
    "check": ("-n", "shop", "--all"),
    "connections": ("-n", "shop"),
    "why": ("-n", "shop", "web", "db"),
}
READ = set(re.findall(r"^    (\w+): ", Path(shapes.__file__).read_text(), re.MULTILINE))
HOSTILE = "\x1b[2J\u202e\ud800"


class FakeClient:
    """An API server with a node and the pod of a user."""

    async def request(self, method: str, path: str, *, query: Any) -> bytes:
        items = [{"metadata": {"name": "a"}}]
        if path.endswith("/pods"):
            items = [
                {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"nodeName": "a"}, "status": {"podIP": "10.0.0.9"}}
            ]
        return json.dumps({"metadata": {"resourceVersion": "1"}, "items": items}).encode()


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Sets what the agent of each node answers to everything."""
    answer: list[Any] = [{}]

    async def get(*_: object, **__: object) -> Answer:
        return Answer(200, json.dumps(answer[0]).encode())

    def reach(_ctx: click.Context, work: Callable[[Fleet, str], Awaitable[Any]]) -> Any:
        fleet = Fleet(cast(KubeClient, FakeClient()), {node: found(f"system/{node}-agent", node) for node in "ab"})
        return asyncio.run(cast(Any, work(fleet, "default")))

    monkeypatch.setattr(agents.portforward, "get", get)
    for module in (cluster_check, cluster_connections, cluster_status, cluster_why):
        monkeypatch.setattr(module, "reach", reach)
    return lambda value: answer.__setitem__(0, value)


def places(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path to every value within that is read."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(key, int) or key in READ:
            yield (*above, key)
            yield from places(each, (*above, key))


def changed(value: Any) -> Iterator[Any]:
    """The same, once without each value, and once with each of several in its place."""
    for *above, last in places(value):
        for other in (None, HOSTILE, 7, [HOSTILE], ...):
            made = copy.deepcopy(value)
            holder = made
            for key in above:
                holder = holder[key]
            if other is ...:
                del holder[last]
            else:
                holder[last] = other
            yield made


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_whatever_an_agent_answers_is_shown_or_named(
    says: Callable[[Any], None], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """A surprise would be an exception, and what would steer the terminal is not handed on."""
    for answer in ({}, examples()[command], *changed(examples()[command])):
        says(answer)
        assert main([command, *COMMANDS[command]]) in (0, 1), answer
        written = "".join(capsys.readouterr())
        assert all(each.isprintable() or each == "\n" for each in written), answer


@pytest.mark.parametrize("path", sorted(_BY_PATH))
def test_what_is_documented_has_the_form_that_is_read(path: str) -> None:
    """And every field that is read stands in the document."""
    example = examples()[path.split("/")[1]]
    assert fault(path, example) == ""

    def unknown(shape: Any, value: Any, where: str) -> list[str]:
        shape = getattr(shape, "__args__", (shape,))[0]  # of tuples and of what may be None
        value = (value or [None])[0] if isinstance(value, list) else value
        if not isinstance(shape, type) or not issubclass(shape, msgspec.Struct) or value is None:
            return []
        fields = msgspec.structs.fields(shape)
        told = [f"{where}.{each.name}" for each in fields if each.name not in value]
        return told + [name for each in fields for name in unknown(each.type, value.get(each.name), f"{where}.{each.name}")]

    assert unknown(_BY_PATH[path], example, path) == []
