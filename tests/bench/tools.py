"""The traffic tools: how they are called, and what their output says.  Pure: text in, numbers out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_TIME_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


class ToolError(Exception):
    """A tool did not say what it should."""


# ── iperf3 ──


def iperf_client(address: tuple[str, int], streams: int, direction: str, seconds: int) -> list[str]:
    """direction: up (client to server), down, or both at once."""
    flags = {"up": [], "down": ["-R"], "both": ["--bidir"]}[direction]
    return ["iperf3", "-c", address[0], "-p", str(address[1]), "-P", str(streams), "-t", str(seconds), "-J", *flags]


def iperf_server(port: int) -> list[str]:
    return ["iperf3", "-s", "-p", str(port)]


@dataclass(frozen=True)
class Bulk:
    """What was received, of both directions together."""

    received_bytes: int
    seconds: float

    @property
    def gbps(self) -> float:
        return self.received_bytes * 8 / self.seconds / 1e9


def parse_iperf(text: str) -> Bulk:
    try:
        report = json.loads(text)
    except ValueError:
        raise ToolError(f"iperf3 wrote no JSON: {text[:200]!r}") from None
    if "error" in report:
        raise ToolError(f"iperf3: {report['error']}")
    sums = [value for name, value in report["end"].items() if name.startswith("sum_received")]
    if not sums or not all(each["bytes"] for each in sums):
        raise ToolError("iperf3 received nothing in a direction")
    return Bulk(sum(each["bytes"] for each in sums), max(each["seconds"] for each in sums))


# ── sockperf ──


def sockperf_server(port: int) -> list[str]:
    return ["sockperf", "server", "--tcp", "-i", "0.0.0.0", "-p", str(port)]


def sockperf_client(address: tuple[str, int], size_bytes: int, seconds: int) -> list[str]:
    where = ["-i", address[0], "-p", str(address[1])]
    return ["sockperf", "ping-pong", "--tcp", "--full-rtt", *where, "-m", str(size_bytes), "-t", str(seconds)]


def parse_sockperf(text: str) -> dict[str, float]:
    """p50_us, p99_us and p999_us of whole round trips."""
    found = {name: float(value) for name, value in re.findall(r"percentile (\d+\.\d+) =\s+([\d.]+)", text)}
    if "Round trip" not in text or "99.900" not in found:
        raise ToolError(f"sockperf measured nothing: {text[-300:]!r}")
    return {"p50_us": found["50.000"], "p99_us": found["99.000"], "p999_us": found["99.900"]}


# ── wrk ──


def wrk(address: tuple[str, int], connections: int, seconds: int, *, close: bool) -> list[str]:
    """close: a new connection for each request."""
    header = ["-H", "Connection: close"] if close else []
    url = f"http://{address[0]}:{address[1]}/"
    return ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s", "--latency", *header, url]


@dataclass(frozen=True)
class Requests:
    """count: those that were answered; failed: what went wrong with a socket, and answers other than 2xx."""

    count: int
    per_s: float
    p99_us: float
    failed: int


def parse_wrk(text: str) -> Requests:
    count, rate = re.search(r"(\d+) requests in", text), re.search(r"Requests/sec:\s+([\d.]+)", text)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", text)
    if count is None or rate is None or p99 is None:
        raise ToolError(f"wrk measured nothing: {text[-300:]!r}")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed = sum(map(int, errors.groups())) if errors else 0
    failed += int(others.group(1)) if others else 0
    return Requests(int(count.group(1)), float(rate.group(1)), float(p99.group(1)) * _TIME_US[p99.group(2)], failed)
