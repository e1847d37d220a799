"""A node that agents were killed on, and what `uninstall --node` leaves of them; run in mount and process namespaces of its own.

`unshare --mount --pid --fork --mount-proc python -m tests.mesh.uninstalled_node` prints what was seen, as JSON.  The command
looks for what is nodeproxy's on the whole machine, so it must not see, and mend, what others run there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from nodeproxy.cni.chain import PluginSettings
from nodeproxy.cni.install import Installation
from nodeproxy.kernel.pins import ROOT as PINS
from nodeproxy.lab.topology import LabPod
from nodeproxy.linux.routes import enable_last_leg
from tests.mesh.cluster import Cluster

RUN = Path("/run/nodeproxy")
NODE = Path("/var/lib/nodeproxy")
CHAIN = Path("/run/cni/net.d/10-net.conflist")
PLUGINS = Path("/run/cni/bin")
PLUGIN = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp"}]}


def mount(kind: str, at: str) -> None:
    subprocess.run(["mount", "-t", kind, kind, at], check=True)


def sysctl(pod: LabPod) -> str:
    return pod.run(["cat", "/proc/sys/net/ipv4/tcp_fwmark_accept"]).stdout.strip()


def nodeproxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nodeproxy", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def seen(mesh: Cluster) -> dict[str, Any]:
    pods = mesh.pods.values()
    return {
        "pins": sorted(path.name for path in PINS.iterdir()) if PINS.exists() else None,
        "cgroups": sorted(path.name for path in mesh.cgroup.glob("nodeproxy-*")),
        "run": RUN.exists(),
        "node": NODE.exists(),
        "chain": [plugin["type"] for plugin in json.loads(CHAIN.read_text())["plugins"]],
        "plug-ins": sorted(path.name for path in PLUGINS.iterdir()),
        "rules": [pod.host.name for pod in pods if "0x53a" in pod.host.run(["ip", "rule"]).stdout],
        "sysctls": [pod.host.name for pod in pods if sysctl(pod.host) == "1"],
    }


def main() -> None:
    for kind, at in (("tmpfs", "/run"), ("tmpfs", "/var/lib"), ("bpf", "/sys/fs/bpf")):
        mount(kind, at)
    mesh = Cluster()
    try:
        for number, name in ((0, "client"), (1, "server")):
            mesh.pod(number, name)
        for agent in mesh.agents:
            agent.run_dir = RUN / agent.instance
        mesh.start()
        mesh.pod(0, "forgotten", protocol="TCP")
        enable_last_leg(mesh.pods["forgotten"].host.netns_fd)  # by an agent whose store is gone
        NODE.mkdir()
        (NODE / "kept").write_text("")
        CHAIN.parent.mkdir(parents=True)
        CHAIN.write_text(json.dumps(PLUGIN))
        Installation(CHAIN.parent, PLUGINS).install(Path("/bin/true"), PluginSettings(RUN / "cni.sock", NODE, ()))
        uninstall = ["uninstall", "--node", "--cgroup-root", str(mesh.cgroup), "-o", "json"]
        uninstall += ["--cni-conf-dir", str(CHAIN.parent), "--cni-bin-dir", str(PLUGINS)]
        refused = nodeproxy(*uninstall)
        for agent in mesh.agents:
            agent.kill()
        before, done = seen(mesh), nodeproxy(*uninstall)
        again = nodeproxy(*uninstall)
        print(json.dumps({
            "refused": [refused.returncode, refused.stderr],
            "before": before,
            "done": [done.returncode, done.stdout, done.stderr],
            "after": seen(mesh),
            "again": [again.returncode, again.stdout],
            "instances": [agent.instance for agent in mesh.agents],
        }))  # fmt: skip
    finally:
        mesh.close()


if __name__ == "__main__":
    main()
