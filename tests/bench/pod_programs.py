"""Small programs that run inside pods: `python pod_programs.py NAME ARGUMENTS`.  They know nothing of the mesh.

echo PORT             answers every byte; any number of connections
once ADDR PORT        prints the milliseconds from connect to the answer to the first byte
hold ADDR PORT COUNT  opens connections, has one byte of each echoed, prints "held", and keeps them until its input ends
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable

_PATIENCE_S = 60.0
_BACKLOG = 16384


def echo(port: str) -> None:
    listener = socket.create_server(("", int(port)), backlog=_BACKLOG)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    held: dict[int, socket.socket] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                sock, _ = listener.accept()
                held[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
                continue
            try:
                data = held[number].recv(65536)
            except ConnectionResetError:
                data = b""
            if data:
                held[number].sendall(data)
            else:
                poll.unregister(number)
                held.pop(number).close()


def once(address: str, port: str) -> None:
    began = time.perf_counter()
    with socket.create_connection((address, int(port)), _PATIENCE_S) as sock:
        sock.sendall(b"x")
        if sock.recv(1) != b"x":
            sys.exit("no answer")
    print((time.perf_counter() - began) * 1000)


def hold(address: str, port: str, count: str) -> None:
    held = []
    for _ in range(int(count)):
        sock = socket.create_connection((address, int(port)), _PATIENCE_S)
        held.append(sock)
        sock.sendall(b"x")
        if sock.recv(1) != b"x":
            sys.exit(f"connection {len(held)} had no answer")
    print("held", flush=True)
    sys.stdin.read()


PROGRAMS: dict[str, Callable[..., None]] = {"echo": echo, "once": once, "hold": hold}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
