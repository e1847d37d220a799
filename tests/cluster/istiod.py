"""A real istiod beside the API server of a test, in ambient mode."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
from pathlib import Path

import yaml

from nodeproxy.linux.netns import inside
from tests.cluster.apiserver import ApiError, ApiServer, peer_binary
from tests.cluster.kinds import make
from tests.mesh.cluster import wait_until

NAMESPACE = "istio-system"
AUDIENCE = "istio-ca"
# The service account whose tokens may ask for certificates of the pods on their node.
NODE_AGENT = "ztunnel"
_START_S = 60.0


class Istiod:
    """`pilot-discovery`, where the API server is: xDS and CA in TLS at `address`, verified by `roots`."""

    def __init__(self, api: ApiServer, **environment: str) -> None:
        """environment: istiod's further settings."""
        self.api = api
        self.environment = environment
        port, self._http_port, self._plaintext_port, self._monitoring_port = api.free_ports(4)
        self.address = f"{api.address}:{port}"
        self.start_timeout_s, self.start_poll_s = _START_S, 0.01
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = api.directory / "istiod"
        self.directory.mkdir(exist_ok=True)

    def start(self) -> None:
        if NAMESPACE not in {item["metadata"]["name"] for item in self.api.list("Namespace")}:
            self.api.create(make("Namespace", NAMESPACE), make("ServiceAccount", NODE_AGENT, NAMESPACE))
        mesh = self.directory / "mesh.yaml"
        mesh.write_text(yaml.safe_dump({"trustDomain": "cluster.local", "rootNamespace": NAMESPACE, "defaultConfig": {}}))
        at = self.api.address
        argv = [str(peer_binary("pilot-discovery")), "discovery", "--kubeconfig", str(self.api.kubeconfig())]
        argv += ["--meshConfig", str(mesh), "--secureGRPCAddr", self.address, "--grpcAddr", f"{at}:{self._plaintext_port}"]
        argv += ["--httpAddr", f"{at}:{self._http_port}", "--httpsAddr", "", "--monitoringAddr", f"{at}:{self._monitoring_port}"]
        argv += [
            "--ctrlz_port",
            "0",
            "--networksConfig",
            str(self.directory / "none"),
            "--keepaliveMaxServerConnectionAge",
            "30m",
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "PILOT_ENABLE_AMBIENT": "true",
            "AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY": "true",  # else it leaves such policies out
            "CA_TRUSTED_NODE_ACCOUNTS": f"{NAMESPACE}/{NODE_AGENT}",
            "POD_NAMESPACE": NAMESPACE,
            "POD_NAME": "istiod-0",
            "SERVICE_ACCOUNT": "istiod",
            "ISTIOD_CUSTOM_HOST": self.api.address,  # so that its certificate is good for the address that a test knows
            "INJECTION_WEBHOOK_CONFIG_NAME": "",
            "VALIDATION_WEBHOOK_CONFIG_NAME": "",
            "PILOT_ENABLE_STATUS": "true",
            "TOKEN_AUDIENCES": AUDIENCE,
            **self.environment,
        }
        with (self.directory / "log").open("ab") as log:
            start = self.api.host.popen if self.api.host else subprocess.Popen
            self.process = start(
                argv, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=str(self.directory)
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            connection = http.client.HTTPConnection(self.api.address, self._http_port, timeout=5)
            try:
                if self.api.host is None:
                    connection.connect()
                else:
                    with inside(self.api.host.netns_fd):
                        connection.connect()
                connection.request("GET", "/ready")
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()

        try:
            wait_until(ready, "istiod is ready", self.start_timeout_s, self.start_poll_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def roots(self) -> Path:
        """The roots that istiod publishes, in a file."""

        def published() -> str:
            try:
                return str(self.api.get("ConfigMap", "istio-ca-root-cert", NAMESPACE)["data"]["root-cert.pem"])
            except ApiError:
                return ""

        path = self.directory / "roots.pem"
        path.write_text(wait_until(published, "istiod has published its roots", _START_S))
        return path

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    close = kill

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""
