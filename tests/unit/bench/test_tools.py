from __future__ import annotations

import json

import pytest

from tests.bench.tools import ToolError, iperf_client, parse_iperf, parse_sockperf, parse_wrk, wrk

# What sockperf 3.7 and wrk 4.1 write, shortened.
SOCKPERF = """sockperf: \x1b[2;35m====> avg-rtt=20.654 (std-dev=5.776)\x1b[0m
sockperf: Summary: Round trip is 20.654 usec
sockperf: ---> <MAX> observation =  307.393
sockperf: ---> percentile 99.999 =  307.393
sockperf: ---> percentile 99.990 =  211.805
sockperf: ---> percentile 99.900 =   62.055
sockperf: ---> percentile 99.000 =   45.013
sockperf: ---> percentile 50.000 =   18.684
"""
WRK = """Running 1s test @ http://10.10.0.3:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     5.67ms    1.20ms  21.42ms   80.00%
  Latency Distribution
     50%    5.50ms
     99%   12.35ms
  5420 requests in 1.00s, 1.02MB read
{errors}Requests/sec:   5411.27
Transfer/sec:      1.01MB
"""


def iperf(**sums: float) -> str:
    return json.dumps({"end": {name: {"bytes": count, "seconds": 2.0} for name, count in sums.items()}})


def test_what_was_received_counts_and_both_ways_are_added() -> None:
    one = parse_iperf(iperf(sum_sent=3e9, sum_received=2.5e9))
    assert (one.received_bytes, one.gbps) == (2.5e9, 10.0)
    assert parse_iperf(iperf(sum_received=2.5e9, sum_received_bidir_reverse=5e8)).gbps == 12.0


@pytest.mark.parametrize(
    "text", ["", "{}x", '{"error": "the server is busy"}', iperf(sum_received=1.0, sum_received_bidir_reverse=0)]
)
def test_iperf_that_measured_nothing(text: str) -> None:
    with pytest.raises(ToolError):
        parse_iperf(text)


def test_directions_of_iperf() -> None:
    assert "-R" in iperf_client(("10.0.0.1", 5201), 4, "down", 1)
    assert "--bidir" in iperf_client(("10.0.0.1", 5201), 4, "both", 1)
    assert not {"-R", "--bidir"} & set(iperf_client(("10.0.0.1", 5201), 4, "up", 1))


def test_percentiles_of_round_trips() -> None:
    assert parse_sockperf(SOCKPERF) == {"p50_us": 18.684, "p99_us": 45.013, "p999_us": 62.055}


def test_sockperf_without_full_round_trips_is_refused() -> None:
    with pytest.raises(ToolError, match="sockperf"):
        parse_sockperf(SOCKPERF.replace("Round trip is", "Latency is"))


def test_requests() -> None:
    found = parse_wrk(WRK.format(errors=""))
    assert (found.count, found.per_s, found.p99_us, found.failed) == (5420, 5411.27, 12350.0, 0)


def test_failed_requests_are_added_up() -> None:
    errors = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    assert parse_wrk(WRK.format(errors=errors)).failed == 15


@pytest.mark.parametrize(("written", "us"), [("950.00us", 950), ("1.50s", 1_500_000)])
def test_units_of_wrk(written: str, us: float) -> None:
    assert parse_wrk(WRK.format(errors="").replace("12.35ms", written)).p99_us == us


def test_only_a_close_makes_new_connections() -> None:
    assert "Connection: close" in wrk(("10.0.0.1", 80), 32, 1, close=True)
    assert "Connection: close" not in wrk(("10.0.0.1", 80), 32, 1, close=False)
    with pytest.raises(ToolError, match="wrk"):
        parse_wrk("unable to connect")
