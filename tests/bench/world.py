"""What all contestants of a run share: two nodes without a mesh, a directory, and the end of it all.

Closing leaves nothing behind, also after Ctrl-C: whatever is made registers its own end with `closing`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.lab.topology import Host, Lab
from nodeproxy.linux.cgroup import cgroup2_mount

# 10,000 connections are 20,000 descriptors in a proxy's process; the usual limit for root is about that.
_MAX_DESCRIPTORS = 200_000
# Ephemeral ports for 10,000 held connections and for those in TIME_WAIT, all to one port of one address; above those that listen.
_CLIENT_PORTS = "16000 65000"


@dataclass(frozen=True)
class Options:
    """How the run was asked for."""

    tree: Path
    """The checkout whose nodeproxy is measured."""
    against: Path | None = None
    """A second checkout, which takes part as one more contestant."""
    workers: int = 2
    """Of nodeproxy, on each node."""
    envoy_threads: int = 2
    """Of Envoy, on each node."""


class World:
    """A context manager."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.closing = contextlib.ExitStack()
        self.home = cgroup2_mount() / Path("/proc/self/cgroup").read_text().split("0::")[1].splitlines()[0].strip("/")
        _raise_descriptor_limit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.closing.close()

    @functools.cached_property
    def directory(self) -> Path:
        """For configurations and logs; goes with the world."""
        made = Path(tempfile.mkdtemp(prefix="nodeproxy-bench-"))
        self.closing.callback(shutil.rmtree, made, ignore_errors=True)
        return made

    @functools.cached_property
    def lab(self) -> Lab:
        """Two nodes that no nodeproxy runs on."""
        return self.closing.enter_context(Lab(f"npb{os.getpid()}"))

    @functools.cached_property
    def ca(self) -> Path:
        """A CA directory for whoever needs certificates."""
        made = self.directory / "ca"
        LocalCA.create(made)
        return made

    def pod(self, node: int, name: str) -> Host:
        """A pod beside any mesh."""
        return prepared(self.lab.pod(node, name))


def prepared(pod: Host) -> Host:
    """A pod with room for many connections."""
    pod.sysctl("net/ipv4/ip_local_port_range", _CLIENT_PORTS)
    pod.sysctl("net/core/somaxconn", "16384")
    pod.sysctl("net/ipv4/tcp_max_syn_backlog", "16384")
    return pod


def _raise_descriptor_limit() -> None:
    """As high as is allowed; in some containers root may not go beyond its hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < _MAX_DESCRIPTORS:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))
            return
        except ValueError:
            pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
