"""`nodeproxy controller run` as a program of its own, with the account and the rights that the manifests give it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

import grpc

from nodeproxy.controller.ca.service import METHOD, SERVICE
from nodeproxy.proto.certificate_pb2 import IstioCertificateRequest, IstioCertificateResponse
from tests.cluster.apiserver import ApiServer
from tests.cluster.ca import csr
from tests.manifests import controllers_rights
from tests.mesh.cluster import wait_until
from tests.xds_client import XdsClient, channel

HOME = "nodeproxy-system"
ACCOUNT = "nodeproxy-controller"
SERVER_NAME = f"nodeproxy-controller.{HOME}.svc"
DEADLINE_S = 60.0


def install(api: ApiServer) -> None:
    """The controller's part of the manifest, as `kubectl apply` does it."""
    api.apply(*controllers_rights())


class ControllerProcess:
    """Use it as a context.  kubeconfig: of its account, unless one is given."""

    def __init__(self, api: ApiServer, folder: Path, *arguments: str, kubeconfig: Path | None = None, name: str = "a") -> None:
        self.api = api
        self.folder = folder
        self.log_file = folder / f"controller-{name}.log"
        self.port, self.metrics_port, self.ready_port = api.free_ports(3)
        self._kubeconfig = kubeconfig or api.kubeconfig(api.token(HOME, ACCOUNT), f"controller-{name}")
        self._arguments = ["--pod-name", name, *arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self._roots_file = folder / "roots.pem"
        self._channels: list[grpc.Channel] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self._channels:
            each.close()
        self.kill()

    def start(self) -> None:
        argv = [sys.executable, "-m", "nodeproxy", "controller", "run", "--kubeconfig", str(self._kubeconfig)]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--metrics", f"127.0.0.1:{self.metrics_port}"]
        argv += ["--ready", f"127.0.0.1:{self.ready_port}", *self._arguments]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("NODEPROXY_")}
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def terminate(self) -> int:
        """By SIGTERM; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self.process = None
        return status

    def pending(self) -> str:
        """What it waits for, "" when it is ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ready_port}/healthz/ready", timeout=10):
                return ""
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()
        except OSError as error:
            return str(error)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return not self.pending()

        try:
            wait_until(ready, "the controller is ready", DEADLINE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.pending()}\n{self.log()}") from None

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")[-8000:]

    def metric(self, name: str, **labels: str) -> float:
        """nodeproxy_controller_NAME: the sum of the samples that have these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            page = response.read().decode()
        found = 0.0
        for line in page.splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == f"nodeproxy_controller_{name}":
                given = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if all(given.get(key) == value for key, value in labels.items()):
                    found += float(match[3])
        return found

    def resident_bytes(self) -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise AssertionError("no VmRSS")

    def roots(self) -> bytes:
        """As they are published for nodes."""

        def published() -> bytes:
            maps = [item for item in self.api.list("ConfigMap", HOME) if item["metadata"]["name"] == "nodeproxy-ca-root-cert"]
            return maps[0]["data"]["root-cert.pem"].encode() if maps else b""

        found: bytes = wait_until(published, "the roots are published", DEADLINE_S)
        return found

    def certified(self, token: str, identity: str) -> str:
        """The status that a request for an identity's certificate ends with."""
        request = IstioCertificateRequest(csr=csr())
        request.metadata.update({"ImpersonatedIdentity": identity})
        call = self._channel().unary_unary(f"/{SERVICE}/{METHOD}", response_deserializer=IstioCertificateResponse.FromString)
        try:
            answer = call(request.SerializeToString(), metadata=(("authorization", f"Bearer {token}"),), timeout=20)
        except grpc.RpcError as error:
            return str(error.code().name)
        assert len(answer.cert_chain) >= 2
        return "OK"

    def client(self, token: str, node: str) -> XdsClient:
        """A raw xDS client, that checks the controller by the published roots."""
        self._roots_file.write_bytes(self.roots())
        return self.client_as_before(token, node)

    def client_as_before(self, token: str, node: str) -> XdsClient:
        """Another client with the same roots, as a node has them in a file while the API server is away."""
        return XdsClient(self._channel(), token=token, node=node)

    def _channel(self) -> grpc.Channel:
        made = channel(f"127.0.0.1:{self.port}", self._roots_file, ssl_target_name_override=SERVER_NAME)
        self._channels.append(made)
        return made
