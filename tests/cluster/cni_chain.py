"""Calls CNI plug-ins as libcni does for a runtime: in order for ADD and CHECK, in reverse for DEL, each with the result so far.

The configuration is read for each call, the first file of the directory, as runtimes take it up when it changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeproxy.lab.topology import Host
from tests.cluster.pod_program import pod_program

DEBIAN_PLUGINS = Path("/usr/lib/cni")
LOOPBACK = {"cniVersion": "1.0.0", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}
_CALL_S = 60.0

Config = dict[str, Any]


class CniError(Exception):
    """A plug-in said no: its error object, or what it printed instead of one."""

    def __init__(self, plugin: str, command: str, code: int, message: str) -> None:
        super().__init__(f"{plugin} {command}: {code}: {message}")
        self.plugin, self.command, self.code, self.message = plugin, command, code, message


@dataclass(frozen=True)
class Attachment:
    """What a runtime says of the container that a network is for."""

    container_id: str
    netns: str
    namespace: str
    name: str
    uid: str
    ifname: str = "eth0"

    def environment(self, command: str, path: str) -> dict[str, str]:
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.namespace};K8S_POD_NAME={self.name}"
        args += f";K8S_POD_INFRA_CONTAINER_ID={self.container_id};K8S_POD_UID={self.uid}"
        given = {"CNI_COMMAND": command, "CNI_CONTAINERID": self.container_id, "CNI_NETNS": self.netns}
        return {**given, "CNI_IFNAME": self.ifname, "CNI_ARGS": args, "CNI_PATH": path, "PATH": os.environ["PATH"]}


class Chain:
    """The networks of a node: loopback, and what `net_d` says.  took: (plug-in, command) → seconds of each call."""

    def __init__(self, node: Host, net_d: Path, bin_dir: Path) -> None:
        self.net_d, self.bin_dir = net_d, bin_dir
        self._node = node
        self._path = [bin_dir, DEBIAN_PLUGINS]
        self._lock = threading.Lock()
        self.took: dict[tuple[str, str], list[float]] = defaultdict(list)

    def config(self) -> Config:
        """The configuration that holds now.  Raises CniError where there is none."""
        files = sorted(path for path in self.net_d.iterdir() if path.suffix in (".conflist", ".conf", ".json"))
        if not files:
            raise CniError("libcni", "ADD", 7, f"no networks found in {self.net_d}")
        config: Config = json.loads(files[0].read_text())
        return config if "plugins" in config else {**config, "plugins": [config]}

    def add(self, attachment: Attachment) -> Config:
        """ADD of each plug-in; the last one's result.  Raises CniError."""
        self._chain("ADD", LOOPBACK, Attachment(**{**vars(attachment), "ifname": "lo"}), None)
        return self._chain("ADD", self.config(), attachment, None)

    def check(self, attachment: Attachment, result: Config) -> None:
        """CHECK of each plug-in.  Raises CniError."""
        self._chain("CHECK", self.config(), attachment, result)

    def delete(self, attachment: Attachment, result: Config | None) -> None:
        """DEL of each plug-in in reverse order; `result`: ADD's, None if there was none.  Raises CniError."""
        self._chain("DEL", self.config(), attachment, result)

    def collect(self, valid: list[Attachment]) -> None:
        """GC: each plug-in is told which attachments there are.  Raises CniError."""
        config = self.config()
        listed = [{"containerID": each.container_id, "ifname": each.ifname} for each in valid]
        for plugin in config["plugins"]:
            self._call("GC", config, {**plugin, "cni.dev/valid-attachments": listed}, None, {"CNI_COMMAND": "GC"})

    def status(self) -> None:
        """STATUS of each plug-in.  Raises CniError."""
        config = self.config()
        for plugin in config["plugins"]:
            self._call("STATUS", config, plugin, None, {"CNI_COMMAND": "STATUS"})

    def _chain(self, command: str, config: Config, attachment: Attachment, result: Config | None) -> Config:
        environment = attachment.environment(command, self._search_path)
        plugins = config["plugins"]
        for plugin in reversed(plugins) if command == "DEL" else plugins:
            answer = self._call(command, config, plugin, result, environment)
            if command == "ADD":
                result = answer
        return result or {}

    @property
    def _search_path(self) -> str:
        return ":".join(map(str, self._path))

    def _call(
        self, command: str, config: Config, plugin: Config, result: Config | None, environment: dict[str, str]
    ) -> Config | None:
        kind = plugin["type"]
        given = {**plugin, "name": config["name"], "cniVersion": config["cniVersion"]}
        if result is not None:
            given["prevResult"] = result
        found = next((folder / kind for folder in self._path if (folder / kind).exists()), None)
        if found is None:
            raise CniError(kind, command, 5, f"failed to find plugin {kind!r} in path {self._search_path}")
        # Runtimes run on the node; here the node is a namespace.
        argv = [str(pod_program()), "run", "-", self._node.netns_path, str(found)]
        environment = {"CNI_PATH": self._search_path, "PATH": os.environ["PATH"], **environment}
        began = time.monotonic()
        done = subprocess.run(
            argv, input=json.dumps(given).encode(), env=environment, capture_output=True, timeout=_CALL_S, check=False
        )
        with self._lock:
            self.took[kind, command].append(time.monotonic() - began)
        if done.returncode != 0:
            raise _error(kind, command, done)
        return json.loads(done.stdout) if done.stdout.strip() else None


def _error(kind: str, command: str, done: subprocess.CompletedProcess[bytes]) -> CniError:
    try:
        said = json.loads(done.stdout)
        return CniError(kind, command, said["code"], f"{said['msg']}; {said.get('details', '')}")
    except (ValueError, KeyError):
        said = (done.stdout + done.stderr).decode(errors="replace")
        return CniError(kind, command, -1, f"status {done.returncode}, no error object: {said}")
