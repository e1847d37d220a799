"""The other end of ZDS, as istio-cni has it (cni/pkg/nodeagent/ztunnelserver.go): its socket, snapshots, requests, answers.

As the real one: a connection is told the snapshot first, pods one by one, each answered before the next is sent; what is new goes
to the newest connection, what goes to all.  Names and numbers are Istio's, written here once more and not taken from nodeproxy's.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from pathlib import Path
from typing import Any

from nodeproxy.lab.topology import Host

ANSWER_S = 5.0


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes) -> tuple[int, bytes]:
    value = shift = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, data[index + 1 :]
    raise AssertionError(data)


def text(number: int, value: str | bytes) -> bytes:
    """A length-delimited field of protobuf."""
    data = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def add(uid: str, name: str, namespace: str, account: str) -> bytes:
    info = text(1, name) + text(2, namespace) + text(3, account)
    return text(1, text(1, uid) + text(2, info))


def delete(uid: str) -> bytes:
    return text(2, text(2, uid))


def keep(uid: str) -> bytes:
    return text(5, text(1, uid))


SNAPSHOT_SENT = text(3, b"")
HELLO = b"\x08\x01"
ACK = text(1, b"")


def error_of(answer: bytes) -> str:
    """What a WorkloadResponse says is wrong; "": nothing is."""
    assert answer[0] == 0x0A, answer  # ack
    length, rest = _read_varint(answer[1:])
    assert len(rest) == length, answer
    if not rest:
        return ""
    assert rest[0] == 0x0A, answer  # error
    length, rest = _read_varint(rest[1:])
    assert len(rest) == length, answer
    return rest.decode()


class Connection:
    """Of one proxy."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lock = threading.Lock()
        sock.settimeout(ANSWER_S)
        self.hello = sock.recv(1024)

    def ask(self, request: bytes, *fds: int) -> str:
        """Send it and wait for the answer: the error in it."""
        with self.lock:
            if fds:
                socket.send_fds(self.sock, [request], list(fds))
            else:
                self.sock.send(request)
            answer = self.sock.recv(1024)
        if not answer:
            raise ConnectionError("the proxy has closed the connection")
        return error_of(answer)

    def is_alive(self) -> bool:
        """Whether it stands, and nothing came unasked."""
        with self.lock:
            return not select.select([self.sock], [], [], 0)[0]


class IstioCni:
    """Serves at `path`.  pods: the snapshot, uid → (request, path of the network namespace or "" for Keep)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pods: dict[str, tuple[bytes, str]] = {}
        self.connections: list[Connection] = []
        self.accepted = 0
        self.errors: list[str] = []
        self.hold = threading.Event()  # cleared: connections get no snapshot
        self.hold.set()
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            assert self._thread is not None
            self._thread.join()
            self._listener.close()
            self._listener = None
        self.drop()
        self.path.unlink(missing_ok=True)

    def drop(self) -> None:
        """End all connections."""
        for connection in self.connections:
            connection.sock.close()
        self.connections.clear()

    def add(self, uid: str, name: str, namespace: str, account: str, netns: str) -> str:
        """A pod comes: to the newest connection, with the error that it answers."""
        request = add(uid, name, namespace, account)
        self.pods[uid] = request, netns
        return self._send(self.connections[-1], request, netns)

    def delete(self, uid: str) -> list[str]:
        """A pod goes: to all connections."""
        self.pods.pop(uid, None)
        return [connection.ask(delete(uid)) for connection in self.connections if connection.is_alive()]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            if not self.hold.wait(60):
                return
            with contextlib.suppress(OSError):
                self._serve(Connection(sock))

    def _serve(self, connection: Connection) -> None:
        for uid, (request, netns) in list(self.pods.items()):
            error = self._send(connection, request, netns) if netns else connection.ask(keep(uid))
            if error:
                self.errors.append(error)
        self.connections.append(connection)
        connection.ask(SNAPSHOT_SENT)

    def _send(self, connection: Connection, request: bytes, netns: str) -> str:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return connection.ask(request, fd)
        finally:
            os.close(fd)


# What istio-cni programs in a pod (cni/pkg/iptables), for both families, without its capture of DNS.
PROBES = {"iptables": "169.254.7.127", "ip6tables": "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"}
_LOOPBACK = {"iptables": "127.0.0.1/32", "ip6tables": "::1/128"}
_RULES = """
*mangle
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -s {probes} -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -d {probes} -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
"""


def program(host: Host, probes: dict[str, str] | None = None) -> None:
    """Make its rules in a pod.  probes: where they come from, as HOST_PROBE_SNAT_IP and HOST_PROBE_SNAT_IPV6 say it."""
    for tool, address in (probes or PROBES).items():
        rules = _RULES.format(probes=address, loopback=_LOOPBACK[tool])
        _run(host, f"{tool}-restore", "--noflush", input=rules)
    for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        _run(host, "ip", family, "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100")
        _run(host, "ip", family, "route", "add", "local", everything, "dev", "lo", "table", "100")


def capture_dns(host: Host) -> None:
    """Make the rules of its capture of DNS in a pod that has the others (UDP; TCP goes the same way)."""
    for tool in PROBES:
        rule = ["!", "-o", "lo", "-p", "udp", "-m", "mark", "!", "--mark", "0x539/0xfff", "-m", "udp", "--dport", "53"]
        _run(host, tool, "-t", "nat", "-I", "ISTIO_OUTPUT", *rule, "-j", "REDIRECT", "--to-port", "15053")


def translate(node: Host, pod: Host, probes: dict[str, str] | None = None) -> None:
    """Make its rules in the node: what a process there connects to a pod of the mesh comes from one address."""
    for tool, address in (probes or PROBES).items():
        to = pod.address4 if tool == "iptables" else pod.address6
        rule = ["-m", "owner", "--socket-exists", "-p", "tcp", "-d", to, "-j", "SNAT", "--to-source", address]
        _run(node, tool, "-t", "nat", "-A", "POSTROUTING", *rule)


def undo(host: Host) -> None:
    """Take them away, as before a Del of a pod that goes on."""
    for tool in PROBES:
        for table in ("mangle", "nat"):
            for chain, own in (("PREROUTING", "ISTIO_PRERT"), ("OUTPUT", "ISTIO_OUTPUT")):
                _run(host, tool, "-t", table, "-D", chain, "-j", own)
                _run(host, tool, "-t", table, "-F", own)
                _run(host, tool, "-t", table, "-X", own)
    for family in ("-4", "-6"):
        _run(host, "ip", family, "rule", "del", "pref", "32764")
        _run(host, "ip", family, "route", "flush", "table", "100")


def _run(host: Host, *argv: str, **options: Any) -> None:
    done = host.run(argv, **options)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
