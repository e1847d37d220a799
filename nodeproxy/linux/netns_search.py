"""All network namespaces of this machine, for who must leave nothing behind in any of them.

Found are those that a process is in, and those that are kept under /run/netns, as container runtimes and `ip netns` do; not those
that only a descriptor or another mount keeps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nodeproxy.errors import EnrolmentError
from nodeproxy.linux.netns import netns_inode, open_netns

_PROC = Path("/proc")
_KEPT = Path("/run/netns")


def pod_namespaces() -> Iterator[int]:
    """A descriptor of each once, but for the node's own and this process's; it is closed when the next one is asked for.

    A process of another user is passed over without CAP_SYS_PTRACE.
    """
    seen = {os.stat(f"/proc/{process}/ns/net").st_ino for process in ("1", "self")}
    for path in (*_sorted(_KEPT), *(process / "ns" / "net" for process in _sorted(_PROC) if process.name.isdigit())):
        try:
            netns_fd = open_netns(str(path))
        except EnrolmentError:
            continue  # it has gone meanwhile, or is none
        try:
            if (inode := netns_inode(netns_fd)) not in seen:
                seen.add(inode)
                yield netns_fd
        finally:
            os.close(netns_fd)


def _sorted(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
