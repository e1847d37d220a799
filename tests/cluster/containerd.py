"""A real containerd with its CRI, in a node's network: what the kubelet would call, called by tests.

Its root, state and sockets are the test's; what it mounts lies below them.  Its pods have the one image that is made here, of
busybox.  CRI's messages (k8s.io/cri-api, runtime/v1/api.proto) are written by field numbers: a dozen of its fields are needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import grpc

from nodeproxy.lab.topology import Host
from tests.cluster.cni_chain import DEBIAN_PLUGINS
from tests.mesh.cluster import wait_until

IMAGE = "docker.io/local/pod:1"
_CALL_S = 60.0

_CONFIG = """version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
  address = "{directory}/containerd.sock"
[ttrpc]
  address = "{directory}/ttrpc.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_tcp_service = true
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{directory}/bin"
    conf_dir = "{directory}/net.d"
"""


class Containerd:
    """Running when it is made.  `net_d`, `bin`: its CNI directories; Debian's plug-ins are there by link."""

    def __init__(self, node: Host, directory: Path, cgroup: str) -> None:
        """cgroup: name of the one that its pods lie in, below each hierarchy's root."""
        self.directory, self._cgroup = directory, cgroup
        self.net_d, self.bin = directory / "net.d", directory / "bin"
        self.net_d.mkdir(parents=True)
        self.bin.mkdir()
        for each in DEBIAN_PLUGINS.iterdir():
            (self.bin / each.name).symlink_to(each)
        self._socket = directory / "containerd.sock"
        (directory / "config.toml").write_text(_CONFIG.format(directory=directory, image=IMAGE))
        self.log_path = directory / "log"
        with self.log_path.open("wb") as log:
            self._process = node.popen(["containerd", "-c", str(directory / "config.toml")], stdout=log, stderr=log)
        wait_until(self._socket.exists, "containerd listens", 30)
        _write_image(directory / "image.tar")
        self._ctr("images", "import", "--snapshotter", "native", str(directory / "image.tar"))
        self._channel = grpc.insecure_channel(f"unix://{self._socket}")
        self._pods: dict[str, dict[int, Any]] = {}

    def wait_network(self) -> None:
        """Until it has read a chain."""
        wait_until(lambda: b"NetworkReady\x10\x01" in self._call("Status", {})[1][0], "the network is ready", 30)

    def run_pod(self, namespace: str, name: str, uid: str, *command: str) -> str:
        """A sandbox and its container, as the kubelet makes them; the sandbox's id.  Raises grpc.RpcError when CNI says no."""
        metadata = {1: name, 2: uid, 3: namespace}
        config = {
            1: metadata,
            2: name,
            3: str(self.directory / "logs" / uid),
            8: {1: f"/{self._cgroup}/kubepods/besteffort/pod{uid}"},
        }
        sandbox = self._call("RunPodSandbox", {1: config})[1][0].decode()
        self._pods[sandbox] = config
        container = {1: {1: "app"}, 2: {1: IMAGE}, 3: list(command), 11: "app.log"}
        created = self._call("CreateContainer", {1: sandbox, 2: container, 3: config})[1][0].decode()
        self._call("StartContainer", {1: created})
        return sandbox

    def address(self, sandbox: str) -> str:
        status = _read(self._call("PodSandboxStatus", {1: sandbox})[1][0])
        return _read(status[5][0])[1][0].decode()

    def output(self, uid: str) -> str:
        """What a pod's container has printed."""
        path = self.directory / "logs" / uid / "app.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return "".join(f"{line.split(' ', 3)[3]}\n" for line in lines)  # CRI's format: time, stream, tag, text

    def remove_pod(self, sandbox: str) -> None:
        self._pods.pop(sandbox, None)
        self._call("StopPodSandbox", {1: sandbox})
        self._call("RemovePodSandbox", {1: sandbox})

    def remove_left_overs(self) -> None:
        """Sandboxes that were not made whole: the kubelet removes them when it tries again."""
        for each in self._call("ListPodSandbox", {}).get(1, []):
            self.remove_pod(_read(each)[1][0].decode())

    def close(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            self.remove_left_overs()
        self._channel.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        for path in sorted(Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}")):
            for folder, _, _ in os.walk(path, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _call(self, method: str, request: dict[int, Any]) -> dict[int, list[Any]]:
        answer = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")(_write(request), timeout=_CALL_S)
        return _read(answer)

    def _ctr(self, *arguments: str) -> None:
        argv = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def _write_image(path: Path) -> None:
    """As `docker save` writes one: a layer, a configuration, and what they are."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        _add(tar, "bin/busybox", Path("/bin/busybox").read_bytes())
        for name in ("sh", "sleep", "nc", "ip"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    program = {"Entrypoint": ["/bin/sleep", "100000"], "Env": ["PATH=/bin"]}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": program,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    with tarfile.open(path, "w") as tar:
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "config.json", json.dumps(config).encode())
        manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o755
    tar.addfile(info, io.BytesIO(content))


# ── protobuf's encoding: a message is {field: value or values} ──


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _write(message: dict[int, Any]) -> bytes:
    out = bytearray()
    for field, values in message.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += _varint(field << 3) + _varint(value)
            else:
                content = _write(value) if isinstance(value, dict) else value.encode()
                out += _varint(field << 3 | 2) + _varint(len(content)) + content
    return bytes(out)


def _read(data: bytes) -> dict[int, list[Any]]:
    """Of each field its values: numbers, or bytes."""
    stream, fields = io.BytesIO(data), {}

    def varint() -> int:
        number = shift = 0
        while True:
            (byte,) = stream.read(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while stream.tell() < len(data):
        tag = varint()
        value: Any = varint() if tag & 7 == 0 else stream.read(varint())
        fields.setdefault(tag >> 3, []).append(value)
    return fields
