"""This process' own TCP connections, by who is at the other end: to end one that a library holds and will not end itself.

It must not know whose connections they are.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from nodeproxy.policy.address import ip_number

_DESCRIPTORS = Path("/proc/self/fd")


def shut_down(ip: str, port: int) -> bool:
    """Shut down the connections with this peer, both ways; False if there are none.  The descriptors stay their owner's."""
    wanted = (ip_number(ip), port)
    return any([_shut_down(int(entry), wanted) for entry in os.listdir(_DESCRIPTORS)])


def _shut_down(fd: int, wanted: tuple[int, int]) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        copy = os.dup(fd)  # a socket object closes what it was made of
    except OSError:  # closed since it was listed
        return False
    try:
        with socket.socket(fileno=copy) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                return False
            ip, port = connection.getpeername()[:2]
            if (ip_number(ip), port) != wanted:
                return False
            connection.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:  # not connected (any more)
        return False
