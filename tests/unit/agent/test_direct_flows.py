"""Direct flows in metrics, log and list: exact, each once, bounded."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.agent import direct_flows
from nodeproxy.agent.direct_flows import DirectFlows
from nodeproxy.agent.direct_pods import DirectPods
from nodeproxy.agent.enrolment import EnrolledPod
from nodeproxy.kernel.abi import pack_ip
from nodeproxy.kernel.direct import DirectFlow
from nodeproxy.linux.sock_diag import TcpBytes
from nodeproxy.model.delta import Everything, PodSpec
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.observe.counters import Totals
from nodeproxy.observe.labels import FLAGS_INDEX, REPORTER_INDEX
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import pod, service

CLIENT, SERVER = pod("client", "10.0.0.1"), pod("server", "10.0.0.2", services={"ns/web.svc": {}})
WEB = service("web", "10.96.0.1")


class Bench:
    """The flows of two pods, what they log, and what is counted of them."""

    def __init__(self, directory: Path) -> None:
        self.writer = StateWriter(directory / "state")
        self.writer.replace(Everything((CLIENT, SERVER), (WEB,), ()))
        self.reader = self.writer.reader()
        self.totals = Totals()
        self.pods = DirectPods()
        self._null = os.open("/dev/null", os.O_RDONLY)
        for number, workload in enumerate((CLIENT, SERVER)):
            spec = PodSpec(workload.uid, "/netns")
            self.pods.enter(EnrolledPod(spec, self._null, 0, 100 + number, workload.addresses, 0.0), self.reader.view())
        self._log = directory / "log"
        self._log_fd = os.open(self._log, os.O_WRONLY | os.O_CREAT)
        self.flows = DirectFlows(self.pods, self.reader.view, self.totals, log_json=True, log_fd=self._log_fd)

    def close(self) -> None:
        for cookie in (100, 101):
            self.pods.leave(cookie, gone=True)
        self.pods.forget_left(())
        os.close(self._null)
        os.close(self._log_fd)
        self.reader.close()
        self.writer.close()

    def tell(self, *flows: DirectFlow) -> None:
        asyncio.run(self.flows.tell(list(flows)))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def counted(self) -> dict[tuple[str, str], list[int]]:
        """(reporter, flags) → opened, closed, failed, received, sent; all the while nothing is live."""
        self.refresh()
        return {
            (labels[REPORTER_INDEX], labels[FLAGS_INDEX]): counts for labels, counts in self.totals.series.items() if any(counts)
        }

    def refresh(self, *live: DirectFlow, transferred: dict[int, TcpBytes] | None = None) -> None:
        self.flows.refresh(live, transferred or {})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def flow(cookie: int = 1, **more: Any) -> DirectFlow:
    fields = {
        "source_ip": pack_ip("10.0.0.1"),
        "destination_ip": pack_ip("10.0.0.2"),
        "source_port": 4000 + cookie,
        "destination_port": 8080,
        "socket_cookie": cookie,
        "source_cookie": 100,
        "destination_cookie": 101,
        "started_ns": 1_000_000_000,
        "ended_ns": 3_500_000_000,
        "sent_bytes": 70,
        "received_bytes": 30,
        "original_ip": pack_ip("10.0.0.2"),
        "original_port": 8080,
        "established": 1,
        "ended": 0,
        "refused": 0,
    }
    return DirectFlow(**(fields | more))


def test_an_ended_one_is_told_to_everybody(bench: Bench) -> None:
    bench.tell(flow())
    (line,) = bench.lines()
    assert (line["src.addr"], line["dst.addr"], line["direction"]) == ("10.0.0.1:4001", "10.0.0.2:8080", "outbound")
    assert (line["src.identity"], line["dst.identity"]) == (CLIENT.identity, SERVER.identity)
    assert (line["bytes_sent"], line["bytes_recv"], line["duration"]) == (70, 30, "2500ms")
    assert "dst.service" not in line
    assert bench.counted() == {("source", "-"): [1, 1, 0, 70, 30], ("destination", "-"): [1, 1, 0, 70, 30]}


def test_a_virtual_address_names_its_service(bench: Bench) -> None:
    bench.tell(flow(original_ip=pack_ip("10.96.0.1"), original_port=80))
    (line,) = bench.lines()
    assert (line["dst.service"], line["dst.addr"]) == ("web.svc", "10.0.0.2:8080")


def test_a_live_one_is_counted_as_it_goes_and_once(bench: Bench) -> None:
    live = flow(ended_ns=0, sent_bytes=0, received_bytes=0)
    bench.refresh(live, transferred={1: TcpBytes(50, 10)})
    assert bench.totals.sockets_open() == {"source": 1, "destination": 1}
    bench.refresh(live, transferred={1: TcpBytes(60, 10)})
    (record,) = bench.flows.connections([live], {1: TcpBytes(60, 10)})
    assert (record.received_bytes, record.sent_bytes, record.direct, record.ended) == (60, 10, True, 0.0)
    assert {tuple(counts) for counts in bench.totals.series.values()} == {(1, 0, 0, 60, 10)}
    bench.flows.forget_labels()  # the state changes meanwhile
    bench.tell(flow())
    assert bench.counted() == {("source", "-"): [1, 1, 0, 70, 30], ("destination", "-"): [1, 1, 0, 70, 30]}
    assert bench.totals.sockets_open() == {"source": 0, "destination": 0}


def test_one_that_ends_while_live_ones_are_looked_at_is_not_live(bench: Bench) -> None:
    async def look() -> None:
        async with bench.flows.looking():
            await bench.flows.tell([flow()])
            bench.refresh(flow(ended_ns=0))

    asyncio.run(look())
    assert bench.totals.sockets_open() == {"source": 0, "destination": 0}
    assert bench.counted()["source", "-"] == [1, 1, 0, 70, 30]


def test_a_destroyed_one_says_why(bench: Bench) -> None:
    bench.refresh(flow(ended_ns=0), transferred={1: TcpBytes(50, 10)})
    bench.flows.destroyed(1, Refusal(Reason.POLICY_DENY, "denied by DENY policy ns/p, rule 0"))
    bench.tell(flow())
    (line,) = bench.lines()
    assert line["error"] == "policy_deny: denied by DENY policy ns/p, rule 0"
    assert bench.counted() == {
        (reporter, flags): counts
        for reporter in ("source", "destination")
        for flags, counts in (("-", [1, 0, 0, 70, 30]), ("DENY", [0, 1, 1, 0, 0]))
    }
    assert bench.totals.refused == {("policy_deny", "outbound"): 1}


@pytest.mark.parametrize(("refused", "reason"), [(1, "connect_refused"), (0, "connect_timeout")])
def test_one_that_never_stood(bench: Bench, refused: int, reason: str) -> None:
    bench.tell(flow(established=0, refused=refused, sent_bytes=0, received_bytes=0))
    (line,) = bench.lines()
    assert line["error"].startswith(f"{reason}: 10.0.0.2:8080 ")
    assert bench.counted() == {("source", "CONNECT"): [0, 0, 1, 0, 0]}
    assert bench.totals.refused == {(reason, "outbound"): 1}


def test_pods_that_nobody_knows(bench: Bench) -> None:
    """Of an agent before this one: addresses are all that can be said."""
    bench.tell(flow(source_cookie=7, destination_cookie=8))
    (line,) = bench.lines()
    assert not {"src.identity", "dst.identity", "src.workload", "dst.workload"} & line.keys()


def test_too_many_at_once_are_counted_and_not_all_logged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct_flows, "MAX_LINES", 10)
    bench.tell(*(flow(cookie) for cookie in range(25)))
    assert len(bench.lines()) == 10
    assert bench.flows.unlogged == 15
    assert "15 direct connections that ended have no line" in caplog.text
    assert bench.counted()["source", "-"] == [25, 25, 0, 25 * 70, 25 * 30]


def test_many_kinds_are_forgotten_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_flows, "_MAX_KINDS", 4)
    bench.tell(*(flow(cookie, destination_port=cookie + 1) for cookie in range(50)))
    assert bench.counted()["source", "-"] == [50, 50, 0, 50 * 70, 50 * 30]
