"""A replica of the controller in a mesh of tests: in the namespace of its API server, with a pod of its own."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
from pathlib import Path

from nodeproxy.linux.netns import inside
from tests.cluster.apiserver import ApiError, ApiServer
from tests.cluster.controller import ACCOUNT, install
from tests.cluster.controller import HOME as NAMESPACE
from tests.cluster.kinds import make, pod
from tests.mesh.cluster import wait_until

AUDIENCE = "istio-ca"
NODE_AGENT = "nodeproxy"
ROOTS = "nodeproxy-ca-root-cert"
_START_S = 60.0


class Controller:
    """One replica, where the API server is: xDS and CA in TLS at `address`, verified by `roots`."""

    def __init__(self, api: ApiServer, name: str = "controller-0", **settings: str) -> None:
        """settings: further options, `root_namespace="x"` for `--root-namespace x`."""
        self.api = api
        self.name = name
        self.settings = settings
        port, self._ready_port, self.metrics_port = api.free_ports(3)
        self.address = f"{api.address}:{port}"
        self.start_timeout_s, self.start_poll_s = _START_S, 0.01
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = api.directory / name
        self.directory.mkdir(exist_ok=True)

    def start(self, wait: bool = True) -> None:
        if not any(item["metadata"]["name"] == NODE_AGENT for item in self.api.list("ServiceAccount", NAMESPACE)):
            install(self.api)
            self.api.apply(make("ServiceAccount", NODE_AGENT, NAMESPACE))
        self.api.apply(pod(self.name, NAMESPACE, node="control", ips=["10.255.0.9"], account=ACCOUNT))
        token = self.api.token(NAMESPACE, ACCOUNT, pod=self.name)
        at = self.api.address
        argv = [
            sys.executable,
            "-m",
            "nodeproxy",
            "controller",
            "run",
            "--kubeconfig",
            str(self.api.kubeconfig(token, self.name)),
        ]
        argv += ["--namespace", NAMESPACE, "--listen", self.address, "--serving-names", at, "--log-format", "json"]
        argv += ["--ready", f"{at}:{self._ready_port}", "--metrics", f"{at}:{self.metrics_port}"]
        for key, value in self.settings.items():
            argv += [f"--{key.replace('_', '-')}", value]
        with (self.directory / "log").open("ab") as log:
            start = self.api.host.popen if self.api.host else subprocess.Popen
            self.process = start(argv, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                return self.http(self._ready_port, "/healthz/ready")[0] == 200
            except OSError:
                return False

        try:
            wait_until(ready, "the controller is ready", self.start_timeout_s, self.start_poll_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def http(self, port: int, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.api.address, port, timeout=5)
        try:
            if self.api.host is None:
                connection.connect()
            else:
                with inside(self.api.host.netns_fd):
                    connection.connect()
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> str:
        return self.http(self.metrics_port, "/metrics")[1]

    def roots(self) -> Path:
        """The roots that it publishes, in a file."""

        def published() -> str:
            try:
                return str(self.api.get("ConfigMap", ROOTS, NAMESPACE)["data"]["root-cert.pem"])
            except ApiError:
                return ""

        path = self.directory / "roots.pem"
        path.write_text(wait_until(published, "the controller has published its roots", _START_S))
        return path

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    close = kill

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""
