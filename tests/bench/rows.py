"""The rows of the bench that send traffic through every contestant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import pods, processes, tools
from tests.bench.contestant import HTTP_PORT, PING_PORT, Contestant
from tests.bench.tools import ToolError

Values = dict[str, float]
# wrk counts a connection that it ends itself, at its end, as a failed one: as many as it has, at most.
_ENDED_BY_WRK = 64
_CONCURRENT = 32
_MANY = 1000


@dataclass(frozen=True)
class Row:
    """A measurement.  measure(contestant, seconds) → kind → value.

    quick: part of --quick.  max_rounds: for what takes long and varies little.  fits: which contestants have it.
    """

    name: str
    title: str
    measure: Callable[[Contestant, int], Values]
    quick: bool = True
    max_rounds: int | None = None
    fits: Callable[[Contestant], bool] = lambda contestant: True


class _Cpu:
    """CPU seconds of a contestant's processes within a `with` block."""

    def __init__(self, contestant: Contestant) -> None:
        self._pids = contestant.pids()
        self.seconds = 0.0

    def __enter__(self) -> _Cpu:
        self.seconds = -processes.cpu_s(self._pids)
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += processes.cpu_s(self._pids)


def _bulk(streams: int, direction: str) -> Callable[[Contestant, int], Values]:
    def measure(contestant: Contestant, seconds: int) -> Values:
        with _Cpu(contestant) as cpu:
            bulk = pods.bulk(contestant, streams, direction, seconds)
        values = {"gbps": bulk.gbps}
        if contestant.pids():
            values["cpu_s_per_gb"] = cpu.seconds / (bulk.received_bytes / 1e9)
        return values

    return measure


def _round_trip(size_bytes: int, beside: bool) -> Callable[[Contestant, int], Values]:
    def measure(contestant: Contestant, seconds: int) -> Values:
        argv = tools.sockperf_client(contestant.address(PING_PORT), size_bytes, seconds)
        if not beside:
            return tools.parse_sockperf(pods.run(contestant, argv, seconds))
        with pods.stream_beside(contestant):
            return tools.parse_sockperf(pods.run(contestant, argv, seconds))

    return measure


def _requests(connections: int, close: bool) -> Callable[[Contestant, int], Values]:
    def measure(contestant: Contestant, seconds: int) -> Values:
        argv = tools.wrk(contestant.address(HTTP_PORT), connections, seconds, close=close)
        with _Cpu(contestant) as cpu:
            requests = tools.parse_wrk(pods.run(contestant, argv, seconds))
        if requests.failed > max(_ENDED_BY_WRK, connections) + requests.count // 100:
            raise ToolError(f"{requests.failed} of {requests.count} requests failed")
        values = {"per_s": requests.per_s, "p99_us": requests.p99_us}
        if contestant.pids():
            values["cpu_s_per_1000"] = cpu.seconds / requests.count * 1000
        return values

    return measure


def _cold(contestant: Contestant, seconds: int) -> Values:
    return {"ms": pods.cold_connection_ms(contestant)}


def _memory_at_rest(contestant: Contestant, seconds: int) -> Values:
    contestant.restart()
    return {"mb": processes.pss_bytes(contestant.pids()) / 1e6}


def _memory_held(count: int) -> Callable[[Contestant, int], Values]:
    def measure(contestant: Contestant, seconds: int) -> Values:
        contestant.restart()
        with pods.held_connections(contestant, _CONCURRENT):  # tunnels, caches: what the first ones cost is not theirs
            pass
        before = processes.pss_bytes(contestant.pids())
        with pods.held_connections(contestant, count):
            now = processes.pss_bytes(contestant.pids())
        return {"mb": now / 1e6, "bytes_each": (now - before) / count}

    return measure


def _has_processes(contestant: Contestant) -> bool:
    return contestant.baseline != contestant.name


def _traffic_rows() -> list[Row]:
    rows = []
    words = {"up": "to the server", "down": "to the client", "both": "both ways at once"}
    for streams in (1, 4):
        for direction, where in words.items():
            title = f"{streams} bulk stream{'s' * (streams > 1)} {where}"
            rows.append(Row(f"bulk_{streams}_{direction}", title, _bulk(streams, direction), quick=direction != "both"))
    for name, size in (("64", 64), ("4k", 4096)):
        size_title = {"64": "64 bytes", "4k": "4 KiB"}[name]
        rows.append(Row(f"rtt_{name}", f"round trip of {size_title}", _round_trip(size, False), quick=name == "64"))
        beside = f"round trip of {size_title} beside a bulk stream"
        rows.append(Row(f"rtt_{name}_loaded", beside, _round_trip(size, True), quick=name == "64"))
    rows += [
        Row("connections", "new connections, 32 at once, warm pool", _requests(_CONCURRENT, True)),
        Row("keepalive", "requests over 32 kept connections", _requests(_CONCURRENT, False)),
        Row("streams_1000", "requests over 1,000 kept connections", _requests(_MANY, False)),
        Row("cold", "first connection, without a tunnel", _cold),
    ]
    return rows


TRAFFIC = _traffic_rows()
# At the end: each of these exchanges the processes of its contestant.
MEMORY = [
    Row("memory_rest", "memory at rest, both sides", _memory_at_rest, max_rounds=3, fits=_has_processes),
    Row("memory_1000", "1,000 idle connections", _memory_held(1000), max_rounds=3, fits=_has_processes),
    Row("memory_10000", "10,000 idle connections", _memory_held(10_000), quick=False, max_rounds=1, fits=_has_processes),
]
