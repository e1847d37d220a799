"""What runs inside the pods of a contestant: the applications that serve, and the tools that load them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nodeproxy.lab.topology import Host
from tests.bench import tools
from tests.bench.contestant import BESIDE_PORT, BULK_PORT, ECHO_PORT, HTTP_PORT, PING_PORT, Contestant
from tests.bench.tools import Bulk, ToolError

_PROGRAMS = Path(__file__).with_name("pod_programs.py")
_SETTLE_S = 60.0
_MARGIN_S = 30.0
# iperf3 serves one test at a time and needs a moment after each.
_BUSY_TRIES = 20
_BUSY_PAUSE_S = 0.1
# What the stream beside a ping-pong has before it counts as running.
_BESIDE_START_S = 0.3
_NGINX = """daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr crit;
worker_rlimit_nofile 40000;
events {{ worker_connections 20000; multi_accept on; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy; fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi; scgi_temp_path {directory}/nginx-scgi;
  server {{ listen {port} backlog=16384; location / {{ return 200 "It works.\\n"; }} }}
}}
"""


def program(name: str, *arguments: object) -> list[str]:
    """How a program of pod_programs.py is called: with an interpreter that is not ours, so that it starts fast."""
    return [sys.executable, "-S", "-E", str(_PROGRAMS), name, *map(str, arguments)]


def start_applications(contestant: Contestant, directory: Path) -> None:
    """Everything that rows talk to, in the server's pod; it ends with the pod.  A twin has held connections only."""
    if contestant.twin is not None:
        twin = contestant.twin
        twin.server.popen(program("echo", ECHO_PORT), cgroup=twin.tools_cgroup, stdin=subprocess.DEVNULL)
        _wait_listening(twin.server, {ECHO_PORT})
    configuration = directory / f"nginx-{contestant.name}.conf"
    configuration.write_text(_NGINX.format(directory=directory, port=HTTP_PORT))
    nginx = ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(configuration)]
    ping = tools.sockperf_server(PING_PORT)
    bulk = [tools.iperf_server(port) for port in (BULK_PORT, BESIDE_PORT)]
    log = (directory / f"applications-{contestant.name}.log").open("ab")
    for argv in (nginx, ping, *bulk, program("echo", ECHO_PORT)):
        contestant.server.popen(
            argv, cgroup=contestant.tools_cgroup, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    log.close()
    _wait_listening(contestant.server, {BULK_PORT, BESIDE_PORT, PING_PORT, HTTP_PORT, ECHO_PORT})


def _wait_listening(pod: Host, ports: set[int]) -> None:
    """Until something listens on each port."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        rows = pod.run(["cat", "/proc/self/net/tcp", "/proc/self/net/tcp6"]).stdout.splitlines()
        fields = [row.split() for row in rows]
        listening = {int(row[1].rpartition(":")[2], 16) for row in fields if len(row) > 3 and row[3] == "0A"}
        if ports <= listening:
            return
        if time.monotonic() > deadline:
            raise ToolError(f"nothing listens on {sorted(ports - listening)} in {pod.name}")
        time.sleep(0.05)


def run(contestant: Contestant, argv: list[str], seconds: float) -> str:
    """Run a tool in the client's pod to its end; its output."""
    done = contestant.client.run(argv, cgroup=contestant.tools_cgroup, timeout_s=seconds + _MARGIN_S)
    if done.returncode != 0 and not done.stdout.startswith("{"):
        raise ToolError(f"{argv[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]!r}")
    return done.stdout


def bulk(contestant: Contestant, streams: int, direction: str, seconds: int) -> Bulk:
    """iperf3 through a contestant; tried again while the server is not yet done with the test before."""
    argv = tools.iperf_client(contestant.address(BULK_PORT), streams, direction, seconds)
    for attempt in range(_BUSY_TRIES):
        try:
            return tools.parse_iperf(run(contestant, argv, seconds))
        except ToolError as error:
            if "busy" not in str(error) or attempt == _BUSY_TRIES - 1:
                raise
            time.sleep(_BUSY_PAUSE_S)
    raise AssertionError("unreachable")


def cold_connection_ms(contestant: Contestant) -> float:
    """From connect to the first answer, for a client that has no tunnel."""
    contestant.chill()
    return float(run(contestant, program("once", *contestant.address(ECHO_PORT)), 0))


def warm_up(contestant: Contestant) -> None:
    """Both workers have tunnels, caches are filled."""
    run(contestant, tools.wrk(contestant.address(HTTP_PORT), 32, 1, close=True), 1)


@contextlib.contextmanager
def stream_beside(contestant: Contestant) -> Iterator[None]:
    """A bulk stream, client to server, that runs as long as the block."""
    argv = tools.iperf_client(contestant.address(BESIDE_PORT), 1, "up", 3600)
    process = contestant.client.popen(
        argv, cgroup=contestant.tools_cgroup, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(_BESIDE_START_S)
        if process.poll() is not None:
            raise ToolError("the bulk stream beside did not start")
        yield
    finally:
        process.terminate()
        process.wait(_MARGIN_S)


@contextlib.contextmanager
def held_connections(contestant: Contestant, count: int) -> Iterator[None]:
    """Connections that have each echoed a byte and are then idle as long as the block; a twin has half of them."""
    shares = [(contestant, count)]
    if contestant.twin is not None:
        shares = [(contestant, count - count // 2), (contestant.twin, count // 2)]
    holders = [_holder(way, share) for way, share in shares]
    try:
        for holder in holders:
            assert holder.stdout is not None
            if holder.stdout.readline().strip() != b"held":
                assert holder.stderr is not None
                raise ToolError(f"holding {count} connections: {holder.stderr.read()[-300:]!r}")
        yield
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def _holder(contestant: Contestant, count: int) -> subprocess.Popen[bytes]:
    return contestant.client.popen(
        program("hold", *contestant.address(ECHO_PORT), count),
        cgroup=contestant.tools_cgroup,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
