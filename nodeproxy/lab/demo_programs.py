"""The programs in the demo's pods: a web server and a client as every Debian has them, and two that keep watch.

None of them knows of nodeproxy.  The watchers print times of CLOCK_MONOTONIC, which is one for the whole machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, cast

from nodeproxy.lab import demo_signals
from nodeproxy.lab.demo_report import Failed
from nodeproxy.lab.topology import Host

PORT = 8080
# A refused connection ends at once; one that hangs must not make the demo hang.
TIMEOUT_S = 5
# Debian's own, which starts faster than one of a virtual environment.
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable

_FETCH = """
import sys, urllib.request
for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer: print(answer.read().decode(), end="", flush=True)
    except OSError as error: sys.exit(f"{url}: {error}")
"""
_HOLD = """
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=30)
connection.request("GET", "/")
print(time.monotonic(), connection.getresponse().read().decode().split()[0], flush=True)
try: connection.sock.recv(1)
except ConnectionError: pass
print(time.monotonic(), "closed", flush=True)
"""
_WATCH = """
import socket, sys, time
before = None
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as client:
            client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            now = "open" if client.recv(1) else "closed"
    except OSError: now = "closed"
    if now != before: print(time.monotonic(), now, flush=True)
    before = now
    time.sleep(0.005)
"""


def serve(pod: Host, cgroup: Path, directory: Path) -> None:
    """A web server in a pod: `python3 -m http.server`; the pages and its log are below `directory`."""
    with (directory / "log").open("wb") as log:
        argv = [
            PYTHON,
            "-u",
            "-m",
            "http.server",
            "--protocol",
            "HTTP/1.1",
            "--bind",
            "::",
            "--directory",
            str(directory),
            str(PORT),
        ]
        pod.popen(argv, cgroup=cgroup, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, start_new_session=True)


def clients_of(directory: Path) -> list[str]:
    """The addresses that a web server saw, from its log; an IPv4 client of a dual-stack server is ::ffff:a.b.c.d."""
    lines = (directory / "log").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split(" ", 1)[0].removeprefix("::ffff:") for line in lines if '"GET ' in line]


def fetch_command(urls: Sequence[str]) -> list[str]:
    """What gets pages and prints them: curl where it is installed."""
    curl = shutil.which("curl")
    if curl is None:
        return [PYTHON, "-c", _FETCH, *urls]
    return [curl, "--silent", "--show-error", "--http1.0", "--globoff", "--fail", "--max-time", str(TIMEOUT_S), *urls]


def shown_command(url: str) -> str:
    """The client as it is shown to people."""
    return f"curl {url}" if shutil.which("curl") else f'python3 -c "urlopen({url!r})"'


class Watcher:
    """A program that prints "TIME WORD" for what it sees."""

    def __init__(self, pod: Host, cgroup: Path, program: str, address: str, port: int = PORT) -> None:
        argv = [PYTHON, "-S", "-c", program, address, str(port)]
        self._process = pod.popen(
            argv,
            cgroup=cgroup,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._output = cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._output.fileno(), False)
        self._seen = ""

    def wait(self, word: str, timeout_s: float = TIMEOUT_S) -> float:
        """When it saw `word`; what it saw before is forgotten.  Raises Failed if it does not in time."""
        found: list[float] = []

        def look() -> bool:
            self._seen += (self._output.read() or b"").decode()
            *lines, self._seen = self._seen.split("\n")
            found.extend(float(line.split()[0]) for line in lines if line.split()[1] == word)
            return bool(found)

        wait_until(look, f"a program in a pod sees {word!r}", timeout_s)
        return found[-1]

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def hold(pod: Host, cgroup: Path, address: str) -> Watcher:
    """A client that gets a page and keeps its connection open; it sees the server's name, and `closed`."""
    return Watcher(pod, cgroup, _HOLD, address)


def watch(pod: Host, cgroup: Path, address: str) -> Watcher:
    """A client that connects all the time; it sees `open` and `closed` when that changes."""
    return Watcher(pod, cgroup, _WATCH, address)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Look every 5 ms until it holds.  Raises Failed with `what` if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        demo_signals.check()
        if time.monotonic() > deadline:
            raise Failed(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(0.005)
