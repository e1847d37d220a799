"""Test networks: nodes with pods, as namespaces of this machine, for the demo, the tests and the benchmarks.

                     underlay (a bridge)  10.10.255.0/24  fd00:10:255::/64
        ┌───────────────────┼───────────────────┬───────────────────┐
      node 0              node 1               …                external
      bridge 10.10.0.0/24 bridge 10.10.1.0/24                   10.10.255.200
      fd00:10:0::/64      fd00:10:1::/64
      pods .2 …           pods .2 …

Everything is in namespaces of its own, so networks of different prefixes never meet, whatever their addresses.  Closing
leaves nothing behind: namespaces, and the processes that were started in them by `popen`.  Knows nothing of nodeproxy.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nodeproxy.errors import ConfigError, KernelError
from nodeproxy.lab.capture import Capture
from nodeproxy.lab.iproute import IPRoute
from nodeproxy.linux.netns import inside, open_netns

_RUN_NETNS: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2
_IFA_F_NODAD: Final = 0x02  # no waiting for duplicate address detection: nobody else is here
_BRIDGE_MAC: Final = "02:00:00:00:00:01"  # locally administered; the only bridge of its link
_UNDERLAY: Final = 255
_EXTERNAL: Final = 200
MAX_NODES: Final = 150
# How long a program that was asked to end may take before it is killed.
_GRACE_S: Final = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise KernelError(f"{what}: {os.strerror(number)}", number)


class Host:
    """A network namespace with programs in it: a pod, a node, or the outside host."""

    def __init__(self, netns_name: str) -> None:
        self.netns_name = netns_name
        self.netns_path = str(_RUN_NETNS / netns_name)
        self.name = netns_name
        self.address4 = ""
        self.address6 = ""
        self._processes: list[subprocess.Popen[bytes]] = []
        make_netns(netns_name)
        self.netns_fd = open_netns(self.netns_path)
        with inside(self.netns_fd):
            self._route = IPRoute()
            self._route.link("set", index=1, state="up")
        # Else link-local addresses are not used for a second or two, and routers cannot ask for neighbours without one.
        for scope in ("all", "default"):
            self.sysctl(f"net/ipv6/conf/{scope}/accept_dad", "0")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, IPv4 first."""
        return tuple(address for address in (self.address4, self.address6) if address)

    def popen(self, argv: Sequence[str], *, cgroup: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program here (and in a cgroup of version 2); it is ended with the network if it still runs then."""
        # preexec_fn: between fork and exec only system calls are made, so threads of the parent do no harm.
        started = subprocess.Popen(argv, preexec_fn=self._entering(cgroup), **options)  # noqa: PLW1509
        self._processes.append(started)
        return started

    def run(
        self, argv: Sequence[str], *, cgroup: Path | None = None, timeout_s: float = 30.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end; its output as text."""
        return subprocess.run(
            argv, preexec_fn=self._entering(cgroup), timeout=timeout_s, capture_output=True, text=True, check=False, **options
        )

    def _entering(self, cgroup: Path | None) -> Callable[[], None]:
        def enter() -> None:
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
            _checked(_libc.setns(self.netns_fd, _CLONE_NEWNET), "entering a network namespace")

        return enter

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of this namespace: "net/ipv4/ip_forward"."""
        with inside(self.netns_fd):
            (Path("/proc/sys") / name).write_text(value, encoding="ascii")

    def link_to(self, other: Host, name: str, other_name: str) -> None:
        """A pair of virtual interfaces from here to there, both up."""
        self._route.link("add", ifname=name, kind="veth", peer={"ifname": other_name, "net_ns_fd": other.netns_fd})
        self.up(name)
        other.up(other_name)

    def index(self, interface: str) -> int:
        """The number of an interface here."""
        return int(self._route.link_lookup(ifname=interface)[0])

    def up(self, interface: str) -> None:
        """Bring an interface up."""
        self._route.link("set", index=self.index(interface), state="up")

    def bridge(self, name: str) -> None:
        """Make a bridge, up."""
        # An address of its own: by default a bridge takes the lowest of its ports', so each new pod might change the gateway's.
        self._route.link("add", ifname=name, kind="bridge", address=_BRIDGE_MAC)
        self.up(name)

    def enslave(self, interface: str, bridge: str) -> None:
        """Make an interface a port of a bridge."""
        self._route.link("set", index=self.index(interface), master=self.index(bridge))

    def add_address(self, interface: str, address: str, prefix_length: int) -> None:
        """Give an interface an address that may be used at once."""
        options = {"flags": _IFA_F_NODAD} if ":" in address else {}
        self._route.addr("add", index=self.index(interface), address=address, prefixlen=prefix_length, **options)

    def add_route(self, destination: str, gateway: str) -> None:
        """Route "default4", "default6" or a network in CIDR form."""
        where = {"default4": "0.0.0.0/0", "default6": "::/0"}.get(destination, destination)
        self._route.route("add", dst=where, gateway=gateway)

    def close(self) -> None:
        """End its programs and remove it."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):  # unwritten input of a program that has gone
                        stream.close()
        self._processes.clear()
        self._route.close()
        os.close(self.netns_fd)
        remove_netns(self.netns_name)


class LabPod(Host):
    """A pod; `node` is the number of its node."""

    def __init__(self, netns_name: str, node: int) -> None:
        super().__init__(netns_name)
        self.node = node


class Lab:
    """Nodes, pods and what joins them.  A context manager; `prefix` makes its names unique on the machine."""

    def __init__(self, prefix: str, nodes: int = 2) -> None:
        if nodes > MAX_NODES:
            raise ConfigError(f"a lab has at most {MAX_NODES} nodes")
        self.prefix = prefix
        self.nodes: list[Host] = []
        self.pods: dict[str, LabPod] = {}
        self._closing = contextlib.ExitStack()
        self._external: Host | None = None
        self._next_pod = [2] * nodes
        try:
            self._underlay = self._host(f"{prefix}-underlay")
            self._underlay.bridge("br0")
            for number in range(nodes):
                self._add_node(number)
            for node, host in enumerate(self.nodes):
                for other in range(nodes):
                    if other != node:
                        _route_to_node(host, other)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything, in the reverse order of its making."""
        self._closing.close()

    def _host(self, name: str) -> Host:
        made = Host(name)
        self._closing.callback(made.close)
        return made

    def _add_node(self, number: int) -> None:
        node = self._host(f"{self.prefix}-node{number}")
        node.name = f"node{number}"
        node.sysctl("net/ipv4/ip_forward", "1")
        node.sysctl("net/ipv6/conf/all/forwarding", "1")
        self._join_underlay(node, number + 1)
        node.bridge("br0")
        node.add_address("br0", f"10.10.{number}.1", 24)
        node.add_address("br0", f"fd00:10:{number}::1", 64)
        self.nodes.append(node)

    def _join_underlay(self, host: Host, number: int) -> None:
        port = f"port{number}"
        self._underlay.link_to(host, port, "uplink")
        self._underlay.enslave(port, "br0")
        host.address4, host.address6 = f"10.10.{_UNDERLAY}.{number}", f"fd00:10:{_UNDERLAY}::{number:x}"
        host.add_address("uplink", host.address4, 24)
        host.add_address("uplink", host.address6, 64)

    def pod(self, node: int, name: str, *, families: tuple[int, ...] = (4, 6)) -> LabPod:
        """Add a pod to a node, with an address of each family; everybody can reach it at once."""
        host, number = self.nodes[node], self._next_pod[node]
        self._next_pod[node] += 1
        made = LabPod(f"{self.prefix}-{name}", node)
        self._closing.callback(made.close)
        made.name = name
        veth = f"pod{number}"
        host.link_to(made, veth, "eth0")
        host.enslave(veth, "br0")
        if 4 in families:
            made.address4 = f"10.10.{node}.{number}"
            made.add_address("eth0", made.address4, 24)
            made.add_route("default4", f"10.10.{node}.1")
        if 6 in families:
            made.address6 = str(ipaddress.ip_address(f"fd00:10:{node}::{number:x}"))
            made.add_address("eth0", made.address6, 64)
            made.add_route("default6", f"fd00:10:{node}::1")
        self.pods[name] = made
        return made

    def external(self) -> Host:
        """The host outside of all nodes; made when first asked for."""
        if self._external is None:
            made = self._host(f"{self.prefix}-external")
            made.name = "external"
            self._join_underlay(made, _EXTERNAL)
            for node in range(len(self.nodes)):
                _route_to_node(made, node)
            self._external = made
        return self._external

    def capture(self) -> Capture:
        """A capture of what goes between nodes (and outside), not yet started."""
        return Capture(self._underlay.netns_fd)


def _route_to_node(host: Host, node: int) -> None:
    host.add_route(f"10.10.{node}.0/24", f"10.10.{_UNDERLAY}.{node + 1}")
    host.add_route(f"fd00:10:{node}::/64", f"fd00:10:{_UNDERLAY}::{node + 1:x}")


def make_netns(name: str) -> str:
    """Make a named network namespace, in place of one that a killed run left; its path."""
    _RUN_NETNS.mkdir(parents=True, exist_ok=True)
    path = _RUN_NETNS / name
    remove_netns(name)
    path.touch(mode=0o444)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(home):  # comes back even from a namespace that unshare() made
            _checked(_libc.unshare(_CLONE_NEWNET), "making a network namespace")
            _checked(_libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), None, _MS_BIND, None), f"mounting {path}")
    finally:
        os.close(home)
    return str(path)


def remove_netns(name: str) -> None:
    """Unmount and remove a named network namespace, if it is there."""
    path = _RUN_NETNS / name
    if path.exists():
        _libc.umount2(os.fsencode(path), _MNT_DETACH)  # EINVAL: a file that was never mounted on
        path.unlink()
