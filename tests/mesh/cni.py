"""A node whose agent keeps the CNI plug-in in a chain, and pods whose network is made and in which nothing runs yet."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from nodeproxy.cni.chain import PROGRAM
from nodeproxy.model.node_pod import Membership
from tests.cni_plugin import Done, call, plugin
from tests.mesh.cluster import exactly, wait_until
from tests.mesh.labelled import LabelledCluster, RunningPod

_ports = itertools.count(9000)
CHAIN = b'{"cniVersion": "1.0.0", "name": "pods",  "plugins": [{"type": "bridge"}]}'


class CniCluster(LabelledCluster):
    """Node 0's agent keeps the plug-in in a chain; the test is the runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.conf, self.bin = self.directory / "net.d", self.directory / "bin"
        self.conf.mkdir()
        self.file = self.conf / "10-pods.conflist"
        self.file.write_bytes(CHAIN)
        self.agents[0].arguments += ["--node-dir", str(self.directory / "node"), "--cni-plugin", str(plugin())]
        self.agents[0].arguments += ["--cni-conf-dir", str(self.conf), "--cni-bin-dir", str(self.bin)]

    def new(self, name: str, membership: Membership = Membership.NAMESPACE_LABEL, **more: Any) -> RunningPod:
        """Its network is made and its node is told of it; nothing runs in it, and nobody knows its addresses."""
        made = self.run(name, **more)
        made.stop()
        made.remove_cgroups()
        self.server.put_node(made.node_pod(membership, addresses=()))
        return made

    def wait_told(self, *pods: RunningPod) -> None:
        wait_until(lambda: {pod.key for pod in pods} <= self.rows().keys(), "the node is told of the pods")

    def call(self, command: str, pod: RunningPod | None, **more: Any) -> Done:
        """As the chain has it."""
        return call(*self.asked(command, pod, **more), self.bin / PROGRAM)

    def asked(self, command: str, pod: RunningPod | None, **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """What the plug-in is given: standard input and environment."""
        plugins = json.loads(self.file.read_bytes())["plugins"]
        ours = next(each for each in plugins if each["type"] == PROGRAM)
        given = {**ours, "cniVersion": "1.1.0", "name": "pods", **more}
        env = {"CNI_COMMAND": command, "CNI_IFNAME": "eth0"}
        if pod is not None:
            ips = [{"address": f"{address}/{64 if ':' in address else 24}"} for address in pod.pod.host.addresses]
            given["prevResult"] = {"cniVersion": "1.1.0", "ips": ips}
            args = f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.pod_uid}"
            env |= {"CNI_CONTAINERID": f"c-{pod.name}", "CNI_NETNS": pod.pod.host.netns_path, "CNI_ARGS": args}
        return given, env

    def begin(self, command: str, pod: RunningPod) -> subprocess.Popen[bytes]:
        """A call that waits for the agent's answer."""
        given, env = self.asked(command, pod)
        process = subprocess.Popen([self.bin / PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert process.stdin is not None
        process.stdin.write(json.dumps(given).encode())
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: _waits(process.pid), "the plug-in waits for the agent")
        return process

    def path_of(self, client: RunningPod) -> str:
        """How its first connection goes, which begins at once."""
        server, port = self.pods["server"], next(_ports)
        with server.listen(port) as listener, client.pod.connect(server.ip, port) as ours:
            theirs, _ = listener.accept()
            with theirs:
                ours.sendall(b"x")
                assert exactly(theirs, 1) == b"x"
        target = f"{server.ip}:{port}"
        rows = wait_until(lambda: [r for r in self.agents[1].access_log() if r["dst.addr"] == target], "it was logged", 5)
        return "mesh" if rows[0].get("src.identity") == client.pod.identity else "plain"

    def wait_installed(self) -> None:
        wait_until(lambda: PROGRAM.encode() in self.file.read_bytes(), "the plug-in is in the chain")


def _waits(pid: int) -> bool:
    """It has a socket, and sleeps."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    asleep = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "S"
    return asleep and any(link.startswith("socket:") for link in links)
