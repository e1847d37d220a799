"""An agent of the demo: `nodeproxy run` as a process on its node, and what a person would ask it.

Knows the command line and the admin API; nothing of how the agent does its work.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nodeproxy.config import RUN_ROOT
from nodeproxy.lab.demo_programs import wait_until
from nodeproxy.lab.demo_report import Failed
from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside

# Compiling takes 2 s on one core of our machine, two agents share it with everything else.
READY_TIMEOUT_S = 60.0
# SIGTERM lets connections live for this less 5 s: the demo's own are over.
_GRACE_S = 6
_LOG_TAIL_LINES = 12
_ADMIN = ("127.0.0.1", 15000)


class Agent:
    """The agent of one node.  It is not running until `start`."""

    def __init__(self, node: Host, name: str, instance: str, cgroup: Path, directory: Path) -> None:
        self.name, self.instance = name, instance
        self.run_dir = RUN_ROOT / instance
        self.mesh = directory / f"{name}.yaml"
        self.log = directory / f"{name}.log"
        self._node, self._cgroup, self._directory = node, cgroup, directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it is ready some time later."""
        argv = [*nodeproxy_command(), "run", "--node", self.name, "--mesh", str(self.mesh), "--ca", str(self._directory / "ca")]
        argv += ["--instance", self.instance, "--cgroup-root", str(self._cgroup), "--run-dir", str(self.run_dir)]
        argv += ["--admin", "127.0.0.1:15000", "--metrics", "127.0.0.1:15020", "--ready", "127.0.0.1:15021"]
        argv += ["--log-format", "json", "--grace-s", str(_GRACE_S)]
        with self.log.open("ab") as log:
            self._process = self._node.popen(
                argv,
                cgroup=self._cgroup,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )

    def ask(self, path: str) -> Any:
        """GET from its admin API, on its node."""
        connection = http.client.HTTPConnection(*_ADMIN, timeout=5)
        try:
            with inside(self._node.netns_fd):
                connection.connect()
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def wait_ready(self, pods: int = 0) -> dict[str, Any]:
        """Its status when it is ready and has so many pods in the mesh."""
        status: dict[str, Any] = {}

        def ready() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise Failed(f"the agent of {self.name} has ended:\n{self.log_tail()}")
            try:
                status.update(self.ask("/status"))
            except (OSError, http.client.HTTPException):
                return False
            return (
                bool(status["ready"]) and sum(not pod["error"] and pod["certificate_until"] > 0 for pod in status["pods"]) == pods
            )

        try:
            wait_until(ready, f"{self.name} is ready with {pods} pods", READY_TIMEOUT_S)
        except Failed as exc:
            raise Failed(f"{exc}; status: {json.dumps(status)}\n{self.log_tail()}") from exc
        return status

    def kill(self) -> float:
        """SIGKILL; when."""
        return self._end(signal.SIGKILL)

    def terminate(self) -> float:
        """SIGTERM, and wait for it; when.  Harmless if it does not run."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> float:
        when = time.monotonic()
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        return when

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a nodeproxy command against this instance."""
        argv = [*nodeproxy_command(), *arguments, "--instance", self.instance]
        return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=30, check=False)

    def access_log(self) -> list[dict[str, Any]]:
        """A line for each ended connection."""
        found = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"scope":"access"' in line:
                found.append(json.loads(line))
        return found

    def wait_logged(self, **wanted: str) -> dict[str, Any]:
        """The newest access log line with these fields (src_addr for src.addr; an address may lack its port)."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [line for line in self.access_log() if _matches(line, wanted)]
            return bool(found)

        wait_until(look, f"the access log of {self.name} has a line with {wanted}", 3.0)
        return found[-1]

    def log_tail(self) -> str:
        """The end of its log."""
        if not self.log.exists():
            return "(no log)"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {self.name}: {line}" for line in lines[-_LOG_TAIL_LINES:])


def _matches(line: dict[str, Any], wanted: dict[str, str]) -> bool:
    for name, value in wanted.items():
        found = str(line.get(name.replace("_", "."), ""))
        if found != value and found.rpartition(":")[0] != value:
            return False
    return True


def nodeproxy_command() -> list[str]:
    """The command that this is a part of."""
    return [sys.executable, "-m", "nodeproxy"]


def environment() -> dict[str, str]:
    """An environment in which that command is found and nothing configures it but its arguments."""
    names = ("NODEPROXY_", "NODE_NAME", "LOCAL_XDS_PATH", "LOG_FORMAT", "TERMINATION_GRACE_PERIOD_SECONDS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    root = str(Path(__file__).resolve().parents[2])
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH"))))}
