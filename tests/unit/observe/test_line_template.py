"""A filled template is the line that the access log would write."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from nodeproxy.model.connection import Connection, Direction, Party
from nodeproxy.observe.access_log import format_json, format_text
from nodeproxy.observe.line_template import LineTemplate
from tests.unit.state.builders import pod, service

FORMATS = (format_text, format_json)


def record(source_ip: str = "10.0.0.1", port: int = 4711, name: str = "client") -> Connection:
    client, server = pod(name, source_ip), pod("server", "10.0.0.2")
    address = f"[{source_ip}]:{port}" if ":" in source_ip else f"{source_ip}:{port}"
    return Connection(
        id=1,
        direction=Direction.OUTBOUND,
        source=Party(address, client, client.identity),
        destination=Party("10.0.0.2:8080", server, server.identity),
        service=service("web", "10.96.0.1"),
        received_bytes=70,
        sent_bytes=3_000_000_000,
        started=1_795_552_504.25,
        ended=1_795_552_604.5,
        direct=True,
    )


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("source_ip", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize("name", ["client", "100%s", 'a"b\\c\n'])
def test_as_the_access_log_writes_it(write: Callable[[Connection], bytes], source_ip: str, name: str) -> None:
    wanted = record(source_ip, name=name)
    template = LineTemplate(write, record(source_ip, 1, name), source_ip)
    line = template.fill(wanted.ended, wanted.ended - wanted.started, 4711, wanted.received_bytes, wanted.sent_bytes)
    assert line == write(wanted)


@pytest.mark.parametrize("write", FORMATS)
def test_a_name_that_looks_like_a_value(write: Callable[[Connection], bytes]) -> None:
    with pytest.raises(ValueError, match="999999999"):
        LineTemplate(write, record(name="x999999999"), "10.0.0.1")


def test_json_stays_json() -> None:
    row = json.loads(LineTemplate(format_json, record(), "10.0.0.1").fill(1.5, 0.25, 7, 1, 2))
    assert (row["src.addr"], row["bytes_sent"], row["bytes_recv"], row["duration"]) == ("10.0.0.1:7", 1, 2, "250ms")
