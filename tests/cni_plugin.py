"""The CNI plug-in as the image has it, called as a runtime calls it, and an agent whose answers a test chooses."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

SOURCES = Path(__file__).parents[1] / "daemonset" / "cni"
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def built(name: str, sources: tuple[Path, ...], flags: tuple[str, ...]) -> Path:
    """A program, compiled once for each state of its sources."""
    headers = sorted(SOURCES.glob("*.h"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*sources, *headers)) + repr(flags).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}-{digest}"
    if not path.exists():
        new = path.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", *WARNINGS, *flags, "-I", str(SOURCES), "-o", str(new), *map(str, sources)], check=True)
        new.rename(path)
    return path


@functools.cache
def plugin() -> Path:
    """As the Dockerfile compiles it."""
    return built("nodeproxy-cni", tuple(sorted(SOURCES.glob("*.c"))), ("-O2", "-static"))


def plugin_with_limits(directory: Path, **limits_ms: int) -> Path:
    """The same with other limits of time, which its sources name: who hangs is not waited for as long as in life."""
    text = (SOURCES / "main.c").read_text()
    for name, limit_ms in limits_ms.items():
        text, found = re.subn(rf"(?m)^#define {name} \d+", f"#define {name} {limit_ms}", text)
        assert found == 1, name
    main = directory / "main.c"
    main.write_text(text)
    others = (path for path in sorted(SOURCES.glob("*.c")) if path.name != main.name)
    return built("nodeproxy-cni", (main, *others), ("-O0",))


class Done(NamedTuple):
    """What a call came to; said: what it printed, None if nothing."""

    status: int
    said: Any
    stderr: bytes


def config(directory: Path, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    """What the plug-in gets on standard input; its files are in `directory`."""
    interfaces, ips = [{"name": "eth0"}], [{"address": "10.1.2.3/24", "interface": 0}]
    return {
        "cniVersion": version,
        "name": "pods",
        "type": "nodeproxy-cni",
        "socket": str(directory / "cni.sock"),
        "namespacesFile": str(directory / "namespaces"),
        "exemptNamespaces": ["kube-system"],
        "prevResult": {"cniVersion": version, "interfaces": interfaces, "ips": ips},
        **more,
    }


def environment(command: str, namespace: str = "shop", **more: str | None) -> dict[str, str]:
    given: dict[str, str | None] = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c0ffee",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=front;K8S_POD_UID=4711",
        "CNI_PATH": "/opt/cni/bin",
        **more,
    }
    return {name: value for name, value in given.items() if value is not None}


def call(stdin: bytes | dict[str, Any], env: Mapping[str, str | bytes], program: Path | None = None) -> Done:
    data = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
    done = subprocess.run([program or plugin()], input=data, env=env, capture_output=True, timeout=30)
    # A result is handed on as it is, whatever its bytes; what the plug-in says itself is UTF-8.
    text = done.stdout.decode(errors="strict" if done.returncode else "replace")
    return Done(done.returncode, json.loads(text) if text else None, done.stderr)


class FakeAgent:
    """Answers each call by what `answer` makes of it; None: hangs up, "end": and listens no more.  `calls`: what was asked."""

    def __init__(self, directory: Path, answer: Callable[[dict[str, Any]], dict[str, Any] | bytes | str | None]) -> None:
        self.calls: list[dict[str, Any]] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(directory / "cni.sock"))
        self._socket.listen(512)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeAgent:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                self.calls.append(json.loads(lines.readline()))
                answer = self._answer(self.calls[-1])
                if answer == "end":
                    self._socket.shutdown(socket.SHUT_RDWR)
                    return
                if answer is not None:
                    connection.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
